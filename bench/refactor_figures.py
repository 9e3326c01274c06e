"""From what a refactoring bench saw to its figures: pauses, TPOT, medians over rounds, growth with context, equal tokens.

Pure: arrival times and reports in, plain data out. It must never know of processes, sockets or plots.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from ..actors.refactor import RefactorReport
from ..actors.token_times import TokenTimes
from .token_streams import TokenStream

Row = dict[str, Any]

KEY = "context", "strategy", "from", "to"
"""What changes have in common that are rounds of the same measurement."""
FIGURES = (
    "pause_p50_ms",
    "pause_p99_ms",
    "pause_max_ms",
    "cut_pause_p99_ms",
    "step_before_ms",
    "step_after_ms",
    "tpot_load_ms",
    "tpot_copy_ms",
    "pause_in_steps",
    "copy_ratio",
    "took_ms",
)
"""The figures of a change; None where no token fell into what they are about."""


@dataclass(frozen=True, slots=True)
class Window:
    """One change as the client saw it: when it asked, when each phase was first told of, when the report came (trio's seconds)."""

    strategy: str
    before: int
    after: int
    began_s: float
    ended_s: float
    phases_s: Mapping[str, float]
    report: RefactorReport


@dataclass(frozen=True, slots=True)
class Session:
    """One server's life under streams of ``context`` tokens and more, from ``began_s`` on. Cores are CPU seconds per second."""

    context: int
    began_s: float
    ended_s: float
    windows: tuple[Window, ...]
    streams: tuple[TokenStream, ...]
    cores: float
    cores_of_others: float

    @property
    def strategy(self) -> str:
        """That of its first change."""
        return self.windows[0].strategy


def figures(session: Session) -> list[Row]:
    """A row for each change of a session."""
    quiet_from = [session.began_s, *(window.ended_s for window in session.windows)]
    quiet_until = [*(window.began_s for window in session.windows[1:]), session.ended_s]
    return [
        _row(session, window, begin_s, end_s)
        for window, begin_s, end_s in zip(session.windows, quiet_from, quiet_until, strict=False)
    ]


def _row(session: Session, window: Window, quiet_from_s: float, quiet_until_s: float) -> Row:
    """``quiet_from_s`` is when the change before ended, ``quiet_until_s`` when the next began."""
    times = TokenTimes()
    for number, stream in enumerate(session.streams):
        for arrival_s in stream.arrivals_s:
            if quiet_from_s <= arrival_s <= quiet_until_s:
                times.token(number, arrival_s)
    pauses_ms = [pause * 1000 for pause in times.pauses_s(window.began_s, window.ended_s)]
    cut_s = window.phases_s.get("commit", window.began_s)
    # Of the whole change the longest gap may lie where weights are loaded; this one is at the cut.
    cut_pauses_ms = [pause * 1000 for pause in times.pauses_s(cut_s, window.ended_s)]
    step_ms = _ms(times.gap_s(quiet_from_s, window.began_s))
    phases = [*window.phases_s.items(), ("", window.ended_s)]
    spans = {name: (begin, end) for (name, begin), (_, end) in pairwise(phases)}
    tpot = {name: _ms(times.gap_s(*spans[name])) if name in spans else None for name in ("load", "copy")}
    p99 = _percentile(pauses_ms, 99)
    return {
        "context": session.context,
        "strategy": window.strategy,
        "from": window.before,
        "to": window.after,
        "requests": len(pauses_ms),
        "pause_p50_ms": _percentile(pauses_ms, 50),
        "pause_p99_ms": p99,
        "pause_max_ms": max(pauses_ms, default=None),
        "cut_pause_p99_ms": _percentile(cut_pauses_ms, 99),
        "step_before_ms": step_ms,
        "step_after_ms": _ms(times.gap_s(window.ended_s, quiet_until_s)),
        "tpot_load_ms": tpot["load"],
        "tpot_copy_ms": tpot["copy"],
        "pause_in_steps": _ratio(p99, step_ms),
        "copy_ratio": _ratio(tpot["copy"], step_ms),
        "took_ms": (window.ended_s - window.began_s) * 1000,
        # A stream is lost to its session; the last change answers for it.
        "lost": sum(bool(stream.lost) for stream in session.streams) if window is session.windows[-1] else 0,
        "report": msgspec.to_builtins(window.report),
    }


def medians(rows: Sequence[Row]) -> list[Row]:
    """One row for each measurement: medians over its rounds; requests lost are added up."""
    return [
        {
            **dict(zip(KEY, key, strict=True)),
            **_medians(same),
            "rounds": len(same),
            "lost": sum(r["lost"] for r in same),
        }
        for key, same in _grouped(rows, KEY).items()
    ]


def by_strategy(rows: Sequence[Row]) -> list[Row]:
    """One row for each strategy: medians over all its changes, the worst of them, and what it sent again."""
    return [
        {
            "strategy": strategy,
            **_medians(same),
            "worst_pause_ms": max((r["pause_max_ms"] for r in same if r["pause_max_ms"] is not None), default=None),
            "worst_in_steps": max((r["pause_in_steps"] for r in same if r["pause_in_steps"] is not None), default=None),
            "sent_bytes": sum(r["report"]["kv_sent_bytes"] for r in same),
            "resent_share": _ratio(
                sum(r["report"]["kv_resent_bytes"] for r in same), sum(r["report"]["kv_sent_bytes"] for r in same)
            ),
            "lost": sum(r["lost"] for r in same),
        }
        for (strategy,), same in _grouped(rows, ("strategy",)).items()
    ]


def by_context(rows: Sequence[Row]) -> list[Row]:
    """One row for each strategy and change: its pause at each context, and how it grows.

    ``growth_ms`` is the slope of the least-squares line, in ms per 1,024 tokens of context of every stream.
    """
    found = []
    for (strategy, before, after), same in _grouped(medians(rows), ("strategy", "from", "to")).items():
        known = [row for row in same if row["pause_p99_ms"] is not None]
        contexts = [row["context"] for row in known]
        pauses = [row["pause_p99_ms"] for row in known]
        slope = float(np.polyfit(contexts, pauses, 1)[0]) * 1024 if len(set(contexts)) > 1 else None
        found.append(
            {
                "strategy": strategy,
                "from": before,
                "to": after,
                "contexts": contexts,
                "pause_p99_ms": pauses,
                "cut_pause_p99_ms": [row["cut_pause_p99_ms"] for row in known],
                "step_before_ms": [row["step_before_ms"] for row in known],
                "growth_ms": slope,
            }
        )
    return found


def compared(sessions: Sequence[Session], undisturbed: Sequence[TokenStream]) -> Row:
    """Every stream of ``sessions`` against the undisturbed one of the same prompt.

    Tokens are compared as texts. The log-probabilities are those that either server gave for the tokens that it delivered: as far
    as the tokens are the same, both were computed over the same context, which is what teacher forcing means; ``nll_difference``
    is the largest difference of their means over a stream.
    """
    pairs = [
        (stream, quiet)
        for session in sessions
        for stream, quiet in zip(session.streams, undisturbed, strict=True)
        if stream.tokens
    ]
    same = [_common(stream.tokens, quiet.tokens) for stream, quiet in pairs]
    differences = [
        np.subtract(stream.logprobs[:length], quiet.logprobs[:length])
        for (stream, quiet), length in zip(pairs, same, strict=True)
    ]
    return {
        "streams": len(pairs),
        "equal": sum(length == len(stream.tokens) for (stream, _), length in zip(pairs, same, strict=True)),
        "tokens": sum(len(stream.tokens) for stream, _ in pairs),
        "tokens_compared": sum(same),
        "nll_difference": max((abs(float(each.mean())) for each in differences if each.size), default=None),
        "logprob_difference": max((float(np.abs(each).max()) for each in differences if each.size), default=None),
    }


def _common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Tokens before the first difference."""
    for place, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return place
    return min(len(ours), len(theirs))


def _grouped(rows: Iterable[Row], key: tuple[str, ...]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in key), []).append(row)
    return groups


def _medians(rows: Sequence[Row]) -> dict[str, float | None]:
    return {name: _median(row[name] for row in rows) for name in FIGURES}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
