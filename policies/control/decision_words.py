"""A decision in plain words: what was seen, what it was weighed against, and why nothing or something was done.

Owns the sentences for people; programs read the decision itself. It must never know how the decision was reached.
"""

from __future__ import annotations

from .decision import Decision
from .granularity import Score
from .observation import Observation

ALTERNATIVES_MAX = 4
"""How many shapes besides the present one are told of; the rest are counted."""


def words(decision: Decision) -> str:
    """Several lines without a line break at the end: the verdict, the load, then a line per alternative, best first."""
    return "\n".join((_verdict(decision), *_load(decision), *_alternatives(decision)))


def _verdict(decision: Decision) -> str:
    if decision.action == "change":
        return f"Change to {_shape(decision)}: {decision.sentence}."
    return f"Keep {decision.present.words}: {decision.sentence}."


def _shape(decision: Decision) -> str:
    return decision.present.words if decision.wanted is None else decision.wanted.words


def _load(decision: Decision) -> list[str]:
    seen = decision.observation
    if seen.observed_s == 0:
        return ["  load: nothing was seen yet", *_faults(seen)]
    facts = [
        f"{seen.rate_per_s:.1f} requests/s",
        f"{seen.tokens_per_s:.0f} tokens/s{_trend(seen)}",
        f"{seen.queue} waiting",
        f"{seen.running} running",
        f"KV {seen.kv_used_share:.0%} full",
    ]
    has = decision.present.capacity_tokens_per_s
    lines = [f"  load: {', '.join(facts)}; it asks for {decision.asked_tokens_per_s:.0f} tokens/s of {has:.0f}"]
    if seen.dispersion:
        curve = ", ".join(f"{point.idc:.0f} over {point.tau_s:g} s" for point in seen.dispersion)
        lines.append(f"  bursts: dispersion {curve} (1 is Poisson)")
    return [*lines, *_faults(seen)]


def _trend(seen: Observation) -> str:
    if seen.slope_tokens_per_s2 == 0:
        return ""
    way = "rising" if seen.slope_tokens_per_s2 > 0 else "falling"
    return f" and {way} by {abs(seen.slope_tokens_per_s2):.1f} a second"


def _faults(seen: Observation) -> list[str]:
    return [f"  doubt: {fault}" for fault in seen.faults]


def _alternatives(decision: Decision) -> list[str]:
    if not decision.scores:
        return []
    present, *others = decision.scores
    possible = sorted((score for score in others if score.cost is not None), key=lambda score: score.cost or 0.0)
    told = [*possible, *(score for score in others if score.cost is None)]
    lines = [f"  {decision.policy}: {_score(score)}" for score in told[:ALTERNATIVES_MAX]]
    if len(told) > ALTERNATIVES_MAX:
        lines.append(f"  {decision.policy}: and {len(told) - ALTERNATIVES_MAX} more")
    return [f"  {decision.policy}: {_score(present)}, as now", *lines]


def _score(score: Score) -> str:
    if score.cost is None:
        return f"{score.shape.words} is out, {score.refused}"
    terms = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in score.terms)
    return (
        f"{score.shape.words} costs {score.cost:.3g} ({terms})"
        if terms
        else f"{score.shape.words} costs {score.cost:.3g}"
    )
