"""How far the clocks of nodes are apart, from events that must follow each other at two of them.

A cut arrives after it was sent, and a phase ends after all workers have answered: each pair bounds the difference from one side.
Owns that reasoning and the correction. It must never know what a story tells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .log_lines import Record

ANSWERED_BEFORE = {"worker_loaded": "copy", "worker_switched": "release"}
"""What each worker says before the change enters that phase."""


@dataclass(slots=True)
class Bounds:
    """``low`` <= a clock less the leader's <= ``high``, in seconds; from ``pairs`` pairs of events."""

    low_s: float = float("-inf")
    high_s: float = float("inf")
    pairs: int = 0

    @property
    def offset_s(self) -> float:
        """The smallest correction that the pairs allow from one side, the middle where they bound it from both."""
        if self.low_s > self.high_s or self.low_s <= 0.0 <= self.high_s:
            return 0.0
        if self.low_s > float("-inf") and self.high_s < float("inf"):
            return (self.low_s + self.high_s) / 2
        return self.low_s if self.low_s > 0 else self.high_s


def bounds(crossings: Iterable[Record], leader: int) -> dict[int, Bounds]:
    """Of each other clock. ``crossings`` are of all files; ``leader`` is the clock of the process that plans steps."""
    records = list(crossings)
    sent: dict[tuple[object, ...], float] = {}
    phases: dict[tuple[object, ...], float] = {}
    for record in records:
        if record.file.clock == leader and record.event == "cut_sent":
            sent[record.replica, record.fields.get("epoch"), record.fields.get("step")] = record.time_s
        elif record.file.clock == leader and record.event == "change_phase":
            phases[record.replica, record.fields.get("epoch"), record.fields.get("phase")] = record.time_s
    found: dict[int, Bounds] = {}
    for record in records:
        if record.file.clock == leader or record.event not in ANSWERED_BEFORE:
            continue
        epoch = record.fields.get("epoch")
        after_s = sent.get((record.replica, epoch, record.fields.get("step")))
        before_s = phases.get((record.replica, epoch, ANSWERED_BEFORE[record.event]))
        bound = found.setdefault(record.file.clock, Bounds())
        if record.event == "worker_switched" and after_s is not None:
            bound.high_s = min(bound.high_s, record.time_s - after_s)
            bound.pairs += 1
        if before_s is not None:
            bound.low_s = max(bound.low_s, record.time_s - before_s)
            bound.pairs += 1
    return found


def sentence(found: dict[int, Bounds], clocks: set[int], leader: int, names: dict[int, str]) -> str:
    """What is known of the clocks; empty where there is only one."""
    if len(clocks) < 2:
        return ""
    parts = []
    for clock in sorted(clocks - {leader}):
        bound = found.get(clock, Bounds())
        name = names[clock]
        if not bound.pairs:
            parts.append(f"nothing in the logs tells how far the clock of {name} is off: it is taken as it is")
        elif bound.low_s > bound.high_s:
            parts.append(f"the clock of {name} jumped meanwhile: it is taken as it is")
        elif bound.offset_s == 0.0:
            parts.append(f"the clock of {name} agrees, as far as {bound.pairs} pairs of events can tell")
        else:
            parts.append(
                f"the clock of {name} is {bound.offset_s * 1e3:+.0f} ms off by {bound.pairs} pairs of events: corrected"
            )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
