"""Keeps what the autopilot decided: the last ones for whoever asks, all of them in the log.

A decision that says the same as the one before it (the same reason, for the same shape) is counted, not written again; the count
goes with the next that is written, at the latest after `REPEATED_MAX`. So a quiet day makes a few thousand lines.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import msgspec
import trio

from ..policies.control.decision import Decision
from ..policies.control.decision_words import words
from ..policies.control.granularity import Shape
from .event_log import EventLog

KEPT_MAX = 1000
"""Decisions that can be asked for."""
REPEATED_MAX = 60
"""Decisions that say the same before one is written again: a minute at pace 1."""


class WrittenDecision(msgspec.Struct, frozen=True):
    """A decision with ``repeated``, how many like the one before it were not written, and ``words`` for people.

    ``time_s`` is the wall clock's.
    """

    time_s: float
    decision: Decision
    words: str
    repeated: int


class DecisionJournal:
    """See the module."""

    def __init__(self, log: EventLog, clock: Callable[[], float] = time.time) -> None:
        self._log = log
        self._clock = clock
        self._written: deque[WrittenDecision] = deque(maxlen=KEPT_MAX)
        self._repeated = 0

    def write(self, decision: Decision) -> None:
        """Write ``decision`` down, or count it."""
        if self._written and _alike(self._written[-1].decision, decision) and self._repeated < REPEATED_MAX:
            self._repeated += 1
            return
        written = WrittenDecision(round(self._clock(), 3), decision, words(decision), self._repeated)
        self._repeated = 0
        self._written.append(written)
        self._log.emit(
            "autopilot_decided",
            decision=msgspec.to_builtins(decision),
            words=written.words,
            repeated=written.repeated,
        )

    def acted(self, wanted: Shape, seconds: float, sentence: str, *, dry_run: bool) -> None:
        """A change has ended: well where ``sentence`` is ""."""
        self._log.emit(
            "autopilot_acted", wanted=wanted.words, seconds=round(seconds, 3), failure=sentence, dry_run=dry_run
        )

    def last(self, count: int) -> list[WrittenDecision]:
        """The last ``count`` that were written, oldest first."""
        return list(self._written)[-count:] if count > 0 else []

    async def recall(self, count: int) -> list[WrittenDecision]:
        """`last`, for those who might have to ask another daemon."""
        await trio.lowlevel.checkpoint()
        return self.last(count)


def _alike(one: Decision, other: Decision) -> bool:
    return one.action == other.action == "hold" and (
        one.reason,
        one.present.words,
        one.wanted and one.wanted.words,
    ) == (
        other.reason,
        other.present.words,
        other.wanted and other.wanted.words,
    )
