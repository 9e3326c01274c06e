"""What a coordinator writes down before it acts, and what one that starts anew makes of it.

Owns the records and their meaning (`follow`), not where they lie: `sqlite_journal` is the durable one, `sim.memory_journal`
the simulated disk. A commit is the point of no return of its epoch: it is on disk before anyone is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec

from .route import Route

RecordKind = Literal["planned", "commit", "released", "aborted"]
EPOCHS_KEPT_MAX = 1_000
"""Epochs whose records stay, for people. An epoch takes three records; the largest, a route of 64 stages, has some 8 KiB."""


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


class Planned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An epoch that somebody began to make."""

    route: Route
    strategy: str

    @property
    def epoch(self) -> int:
        """Its number."""
        return self.route.epoch

    @property
    def workers(self) -> tuple[int, ...]:
        """Its workers in pipeline order."""
        return self.route.workers


class Committed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An epoch that was decided."""

    route: Route
    strategy: str
    kv_blocks: int

    @property
    def epoch(self) -> int:
        """Its number."""
        return self.route.epoch

    @property
    def workers(self) -> tuple[int, ...]:
        """Its workers in pipeline order."""
        return self.route.workers


class JournalState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where things stand.

    ``committed`` is the epoch decided last; until it is ``released``, ``before`` is the one that it took over from, whose
    workers may still hold what they held. ``undecided`` was planned and neither committed nor aborted. No epoch above
    ``highest_epoch`` and no worker from ``next_worker`` on was ever named.
    """

    committed: Committed | None = None
    before: Committed | None = None
    released: bool = True
    undecided: Planned | None = None
    highest_epoch: int = 0
    next_worker: int = 0


NOTHING = JournalState()
"""What an empty journal says."""


class Journal(Protocol):
    """Durable records of one pipeline. A write has happened whole when it returns, and not at all when it raises."""

    async def write(self, record: JournalRecord) -> None:
        """Append. The same record again: nothing. Raises `JournalError`, also for one that cannot follow what is there."""
        ...

    async def read(self) -> JournalState:
        """What the records add up to. Raises `JournalError`."""
        ...


def fold(records: Iterable[JournalRecord], state: JournalState = NOTHING) -> JournalState:
    """What ``records``, in the order in which they were written after ``state``, add up to. Raises `JournalError`."""
    for record in records:
        state = follow(state, record)
    return state


def follow(state: JournalState, record: JournalRecord) -> JournalState:
    """``state`` with one record more. Raises `JournalError` where that cannot be."""
    match record.kind:
        case "planned":
            return _plan(state, record)
        case "commit":
            return _commit(state, record)
        case "released":
            return _release(state, record)
        case "aborted":
            return _abort(state, record)


def _plan(state: JournalState, record: JournalRecord) -> JournalState:
    """A plan takes the place of one that nobody decided: the coordinator died, or could not write that it gave it up."""
    route = record.route
    if route is None or route.epoch != record.epoch:
        raise JournalError(f"the plan of epoch {record.epoch} has no route of that epoch")
    if record.epoch <= state.highest_epoch:
        raise JournalError(
            f"epoch {record.epoch} cannot be planned after epoch {state.highest_epoch}: epochs only ascend"
        )
    next_worker = max([state.next_worker, *(worker + 1 for worker in route.workers)])
    return msgspec.structs.replace(
        state, undecided=Planned(route, record.strategy), highest_epoch=record.epoch, next_worker=next_worker
    )


def _commit(state: JournalState, record: JournalRecord) -> JournalState:
    plan = state.undecided
    if plan is None or plan.epoch != record.epoch:
        raise JournalError(f"epoch {record.epoch} cannot be committed: it was never planned, or its plan was given up")
    committed = Committed(plan.route, plan.strategy, record.kv_blocks)
    return msgspec.structs.replace(state, committed=committed, before=state.committed, released=False, undecided=None)


def _release(state: JournalState, record: JournalRecord) -> JournalState:
    if state.committed is None or state.committed.epoch != record.epoch:
        raise JournalError(f"epoch {record.epoch} cannot be released: it is not the one that was committed last")
    return msgspec.structs.replace(state, before=None, released=True)


def _abort(state: JournalState, record: JournalRecord) -> JournalState:
    """An epoch may be given up without a plan, whose writing failed. Its number is used up all the same."""
    if state.committed is not None and record.epoch <= state.committed.epoch:
        raise JournalError(f"epoch {record.epoch} cannot be aborted: epoch {state.committed.epoch} is committed")
    undecided = state.undecided if state.undecided is None or state.undecided.epoch != record.epoch else None
    return msgspec.structs.replace(state, undecided=undecided, highest_epoch=max(state.highest_epoch, record.epoch))
