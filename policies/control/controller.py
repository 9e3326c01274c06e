"""When a pipeline changes its shape: a policy's best candidate, held back until it is better for long enough and by enough.

Owns the hysteresis: `decide` about once a second, `settled` at the end of each change that it began. A change needs

1. a saving of at least ``gain_min`` of the present cost, and no more capacity than the load asks for;
2. to have been better without a break for ``confirm_grow_s`` where the load asks for more than there is, else for
   ``confirm_shrink_s``;
3. to have paid for itself: what staying has lost since then is at least what changing costs. How long a load will stay as it
   is nobody knows; waiting until regret equals the price costs at most twice the best hindsight (ski rental);
   a fleet goes no lower than the most that was advised meanwhile, as Kubernetes' autoscaler does;
4. ``dwell_s_min`` since the last change, a pause after one that failed, room in the budget of the hour, the last place of
   which is kept for growing;
5. the guard's consent; where it refuses the best candidate, the next best is asked for.

It must never read a clock: time is the observation's. Time that was not observed counts for nothing, and a clock that goes back
takes the memory with it. Wrong values are no errors here: it holds and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from .decision import HOUR_S, ControllerMemory, Decision, Guard, GuardInputs, Leaning, Limits, Refusal
from .demand import asked_tokens_per_s
from .granularity import GranularityPolicy, Score, Shape
from .observation import Observation
from .occupancy import asked_by_occupancy
from .weighing import Question, Verdict, Weighed, cost_of, weigh

ADVISED_ROUNDING = 1e-9
DOUBLINGS_MAX = 30  # of the pause after a failure; more would overflow


def decide(
    memory: ControllerMemory,
    observation: Observation,
    present: Shape,
    candidates: Sequence[Shape],
    policy: GranularityPolicy,
    limits: Limits,
    guard: Guard | None = None,
) -> tuple[ControllerMemory, Decision]:
    """What to do with a pipeline of shape ``present`` now.

    ``candidates`` need not contain ``present``; refused ones are welcome, since the decision then names why they are out. After a
    "change", every decision holds until `settled` is called. Never raises on values that are wrong: it holds and says why.
    """
    if (flaw := present.flaw()) is not None:
        present = Shape(present.stages, present.replicas, refused=flaw)
    if (flaw := observation.flaw()) is not None:
        nothing = Question(Observation(memory.at_s or 0.0), present, policy, limits, 0.0)
        return _not_leaning(memory), _decision(nothing, ("bad-signals", f"nothing can be decided: {flaw}"))
    asked = _asked(observation, present, limits)
    question = Question(observation, present, policy, limits, asked)
    memory, passed_s, verdict = _pass_time(memory, observation.at_s, limits)
    verdict = verdict or _unfit(memory, question)
    if verdict is not None:
        return _not_leaning(memory), _decision(question, verdict)
    weighed = weigh(question, candidates)
    verdict = weighed.nothing_better(limits)
    if verdict is not None:
        return _not_leaning(memory), _decision(question, verdict, weighed.scores, weighed.best)
    return _change(memory, question, weighed, passed_s, guard)


def _asked(observation: Observation, present: Shape, limits: Limits) -> float:
    """The capacity that the load asks for: by how full the pipeline will be where that can be told, else by the work that comes."""
    lag_s = limits.confirm_grow_s + (observation.startup_s or 0.0)
    by_occupancy = asked_by_occupancy(observation, present, lag_s) if present.refused is None else None
    if by_occupancy is None:
        return asked_tokens_per_s(observation, limits.drain_s, forecast=limits.forecast)
    return by_occupancy


def settled(memory: ControllerMemory, at_s: float, *, succeeded: bool) -> ControllerMemory:
    """The change that the last "change" began has ended at ``at_s``, on the observation's clock; or was refused by whoever acts."""
    known_s = memory.at_s or 0.0
    return replace(
        memory,
        under_way=False,
        settled_s=max(at_s, known_s) if isfinite(at_s) else known_s,
        failures=0 if succeeded else memory.failures + 1,
    )


def _change(
    memory: ControllerMemory, question: Question, weighed: Weighed, passed_s: float, guard: Guard | None
) -> tuple[ControllerMemory, Decision]:
    """The decision where another shape is better by enough: change to it, or why not yet."""
    best = weighed.worthwhile(question.limits)
    assert best is not None
    leaning: Leaning = "grow" if question.needs(best.shape) else "shrink"
    memory = _lean(memory, leaning, (weighed.here - cost_of(best)) * passed_s, best.shape.capacity_tokens_per_s)
    best = _as_advised(memory, question, weighed) or best
    verdict = _not_yet(memory, question, best)
    if verdict is not None:
        return memory, _decision(question, verdict, weighed.scores, best.shape)
    chosen, refusals = _guarded(memory, question, weighed, guard, best)
    scores = tuple(refusals.get(score, score) for score in weighed.scores)
    if chosen is None:
        sentence = refusals[best].refused or ""
        return memory, _decision(question, ("guard", f"{best.shape.words}: {sentence}"), scores, best.shape)
    began = replace(_not_leaning(memory), under_way=True, begun_s=(*memory.begun_s, question.observation.at_s))
    return began, _decision(question, ("worth-it", _why(question, weighed, chosen, leaning)), scores, chosen.shape)


def _decision(
    question: Question, verdict: Verdict, scores: tuple[Score, ...] = (), wanted: Shape | None = None
) -> Decision:
    reason, sentence = verdict
    return Decision(
        at_s=question.observation.at_s,
        action="change" if reason == "worth-it" else "hold",
        reason=reason,
        sentence=sentence,
        policy=question.policy.name,
        present=question.present,
        wanted=wanted,
        asked_tokens_per_s=question.asked,
        scores=scores,
        observation=question.observation,
    )


def _why(question: Question, weighed: Weighed, chosen: Score, leaning: Leaning) -> str:
    saves = f"{chosen.shape.words} instead of {question.present.words} saves {weighed.gain(chosen):.0%} of the cost"
    if leaning == "grow":
        has = question.present.capacity_tokens_per_s
        return f"{saves}; the load asks for {question.asked:.0f} tokens/s where there are {has:.0f}"
    return f"{saves}, and has for {question.limits.confirm_shrink_s:.0f} s"


def _pass_time(memory: ControllerMemory, at_s: float, limits: Limits) -> tuple[ControllerMemory, float, Verdict | None]:
    """(memory at ``at_s``, seconds that count as passed, why this moment decides nothing)."""
    if memory.at_s is None:
        return replace(memory, at_s=at_s), 0.0, None
    passed_s = at_s - memory.at_s
    if 0 <= passed_s <= limits.gap_s_max:
        kept = tuple(begun_s for begun_s in memory.begun_s if begun_s > at_s - HOUR_S)
        return replace(memory, at_s=at_s, begun_s=kept), passed_s, None
    moved = replace(
        memory,
        at_s=at_s,
        settled_s=None if memory.settled_s is None else memory.settled_s + passed_s,
        begun_s=tuple(begun_s + passed_s for begun_s in memory.begun_s),
    )
    anew = "what is better begins to count anew"
    if passed_s < 0:
        return moved, 0.0, ("clock-went-back", f"the clock went back by {-passed_s:.1f} s; {anew}")
    return moved, 0.0, ("not-observed", f"nothing was observed for {passed_s:.1f} s; {anew}")


def _unfit(memory: ControllerMemory, question: Question) -> Verdict | None:
    """Why candidates are not even weighed."""
    if memory.under_way:
        return "change-under-way", "a change of this pipeline is under way"
    if question.present.refused is not None:
        return "bad-present", f"the present shape cannot be weighed: {question.present.refused}"
    seen_s, least_s = question.observation.observed_s, question.limits.observed_s_min
    if seen_s < least_s:
        return "too-little-seen", f"{seen_s:.0f} s of load were seen, {least_s:.0f} s are needed"
    return None


def _lean(memory: ControllerMemory, leaning: Leaning, regret: float, advised: float) -> ControllerMemory:
    """Counts on where the same has been better since the decision before, anew where it has not."""
    if memory.leaning != leaning:
        since_s = memory.at_s or 0.0
        return replace(memory, leaning=leaning, leaning_since_s=since_s, regret=0.0, advised_tokens_per_s=advised)
    most = max(memory.advised_tokens_per_s, advised)
    return replace(memory, regret=memory.regret + regret, advised_tokens_per_s=most)


def _not_leaning(memory: ControllerMemory) -> ControllerMemory:
    return replace(memory, leaning=None, regret=0.0, advised_tokens_per_s=0.0)


def _as_advised(memory: ControllerMemory, question: Question, weighed: Weighed) -> Score | None:
    """The best of those worth a change that have as much capacity as was advised at any moment of the leaning; None for none.

    To grow, or where each change has its price (no ``gain_replicas_min``), the present advice is the one that counts.
    """
    if memory.leaning == "grow" or question.limits.gain_replicas_min is None:
        return None
    least = memory.advised_tokens_per_s * (1 - ADVISED_ROUNDING)
    return next((score for score in weighed.others if _suits(score, question, weighed, least)), None)


def _suits(score: Score, question: Question, weighed: Weighed, least: float) -> bool:
    enough = score.shape.capacity_tokens_per_s >= least
    return enough and not question.needs(score.shape) and weighed.is_worth(score, question.limits)


def _not_yet(memory: ControllerMemory, question: Question, best: Score) -> Verdict | None:
    """What still has to pass before the change to ``best`` may begin."""
    limits, now_s = question.limits, question.observation.at_s
    confirm_s = limits.confirm_grow_s if memory.leaning == "grow" else limits.confirm_shrink_s
    better = f"{best.shape.words} has been better for {now_s - memory.leaning_since_s:.0f} s"
    if now_s - memory.leaning_since_s < confirm_s:
        return "not-yet-confirmed", f"{better}, {confirm_s:.0f} s are needed"
    if memory.regret < best.switch_cost:
        return "not-yet-paid", f"{better}, which pays {memory.regret / best.switch_cost:.0%} of what changing costs"
    if memory.settled_s is not None:
        rested_s, pause_s = now_s - memory.settled_s, _pause_s(memory.failures, limits)
        if rested_s < pause_s:
            return "pause-after-failure", f"a change failed {rested_s:.0f} s ago; the next waits for {pause_s:.0f} s"
        if rested_s < limits.dwell_s_min:
            return "dwelling", f"the last change ended {rested_s:.0f} s ago, {limits.dwell_s_min:.0f} s must pass"
    return _over_budget(memory, limits)


def _over_budget(memory: ControllerMemory, limits: Limits) -> Verdict | None:
    left = limits.changes_per_hour_max - len(memory.begun_s)
    if left <= 0:
        return "budget-spent", f"{len(memory.begun_s)} changes were begun within an hour, as many as are allowed"
    if left == 1 and limits.changes_per_hour_max > 1 and memory.leaning != "grow":
        return "budget-kept-to-grow", "one change is left of this hour's, and it is kept for a load that grows"
    return None


def _pause_s(failures: int, limits: Limits) -> float:
    """How long to wait after that many failures in a row."""
    if failures == 0:
        return 0.0
    return min(limits.failure_pause_s * 2.0 ** min(failures - 1, DOUBLINGS_MAX), limits.failure_pause_s_max)


def _guarded(
    memory: ControllerMemory, question: Question, weighed: Weighed, guard: Guard | None, best: Score
) -> tuple[Score | None, dict[Score, Score]]:
    """(the best that the guard lets pass, those that it refused and what has become of them).

    Only ``best`` and what comes after it, is better by enough, and for the same reason: that alone has been confirmed.
    """
    refused: dict[Score, Score] = {}
    for score in weighed.others[weighed.others.index(best) :]:
        if not weighed.is_worth(score, question.limits):
            continue
        if question.needs(score.shape) != (memory.leaning == "grow"):
            continue
        refusal = guard(_guard_inputs(memory, question, score.shape)) if guard is not None else None
        if refusal is None:
            return score, refused
        refused[score] = _refused(score, refusal)
    return None, refused


def _refused(score: Score, refusal: Refusal) -> Score:
    return replace(score, cost=None, refused=f"the guard refuses it: {refusal.sentence}")


def _guard_inputs(memory: ControllerMemory, question: Question, wanted: Shape) -> GuardInputs:
    observation, limits = question.observation, question.limits
    return GuardInputs(
        observation=observation,
        present=question.present,
        wanted=wanted,
        drain_s=limits.drain_s,
        startup_s=max(wanted.startup_s, observation.startup_least_s or 0.0),
        lag_s=limits.confirm_grow_s,
        dwell_s=None if memory.settled_s is None else observation.at_s - memory.settled_s,
    )
