"""What a coordinator writes down before it acts, and what one that starts anew makes of it.

Owns the records and their meaning (`fold`), not where they lie: `sqlite_journal` is the durable one, `sim.memory_journal` the
simulated disk. A commit is the point of no return of its epoch (DESIGN 5): it is on disk before anyone is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from .route import Route

RecordKind = Literal["planned", "commit", "released", "aborted"]


class JournalError(Exception):
    """A record could not be made durable, or what is there makes no sense; the sentence says why. Nothing was changed."""


class JournalRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step of one epoch's making. ``route`` and ``strategy`` come with "planned", ``kv_blocks`` with "commit"."""

    kind: RecordKind
    epoch: int
    route: Route | None = None
    strategy: str = ""
    kv_blocks: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Committed:
    """An epoch that was decided."""

    route: Route
    strategy: str
    kv_blocks: int


@dataclass(frozen=True, slots=True)
class JournalState:
    """Where things stand: the last epoch decided, whether its old one was let go of, and a plan not decided yet."""

    committed: Committed | None = None
    released: bool = True
    undecided: Route | None = None
    highest_epoch: int = 0


class Journal(Protocol):
    """Durable records of one pipeline. A write has happened whole when it returns, and not at all when it raises."""

    async def write(self, record: JournalRecord) -> None:
        """Append. The same record again: nothing. Raises `JournalError`, also for one that cannot follow what is there."""
        ...

    async def read(self) -> JournalState:
        """What the records add up to. Raises `JournalError`."""
        ...


def fold(records: Iterable[JournalRecord]) -> JournalState:
    """What ``records``, in the order in which they were written, add up to. Raises `JournalError` for impossible ones."""
    state, planned = JournalState(), {}
    for record in records:
        if record.kind == "planned":
            planned[record.epoch] = record
        state = _follow(state, record, planned)
    return state


def _follow(state: JournalState, record: JournalRecord, planned: dict[int, JournalRecord]) -> JournalState:
    epoch = record.epoch
    match record.kind:
        case "planned":
            if epoch <= state.highest_epoch or record.route is None:
                raise JournalError(f"epoch {epoch} was planned after epoch {state.highest_epoch}: epochs only ascend")
            return JournalState(state.committed, state.released, record.route, epoch)
        case "aborted":
            if state.undecided is None or state.undecided.epoch != epoch:
                raise JournalError(f"epoch {epoch} was aborted, but is not the one that is undecided")
            return JournalState(state.committed, state.released, None, state.highest_epoch)
        case "commit":
            if state.undecided is None or state.undecided.epoch != epoch:
                raise JournalError(f"epoch {epoch} was committed, but is not the one that is undecided")
            committed = Committed(state.undecided, planned[epoch].strategy, record.kv_blocks)
            return JournalState(committed, False, None, state.highest_epoch)
        case "released":
            if state.committed is None or state.committed.route.epoch != epoch:
                raise JournalError(f"epoch {epoch} was released, but is not the one that was committed last")
            return JournalState(state.committed, True, state.undecided, state.highest_epoch)
