"""A pipeline's journal in a store that several coordinators share: each record written once, and only by who leads.

Owns what a write does while the store cannot be reached, its answer is lost, or the claim has lapsed and may yet be made anew: it
asks again until it knows, since a decision whose record may or may not be durable can be neither acted on nor taken back. Where
records lie is the `Shelf`'s to know.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec
import trio

from ..journal import JournalError, JournalRecord, JournalState, follow
from .cluster_store import ClusterStoreError, LeadershipLostError, StoreUnavailableError

RETRY_S = 0.2
"""From an attempt that was not answered to the next."""

T = TypeVar("T")


class Head(msgspec.Struct, frozen=True):
    """What a journal's records add up to, and the store's revision at which the last one was written; 0 before the first."""

    state: JournalState
    revision: int


class OvertakenError(Exception):
    """Something was written since the head that was built on; nothing was changed."""


class LapsedError(Exception):
    """The claim does not stand, but nobody led since: it may be made anew, or somebody else may. Nothing was changed."""


class Shelf(Protocol):
    """Where one journal's records lie. Every call raises `StoreUnavailableError`, `StoreRefusedError`, `JournalError`."""

    async def head(self) -> Head:
        """Where the journal stands, with everything in it that was ever acknowledged."""
        ...

    async def has(self, record: JournalRecord) -> bool:
        """Whether that very record is among those kept."""
        ...

    async def append(self, record: JournalRecord, state: JournalState, after: Head) -> Head:
        """Write ``record``, with which the journal adds up to ``state``, whole or not at all.

        Raises `OvertakenError` where ``after`` is not the head or the record is there already; where the claim does not stand
        `LapsedError`, and `LeadershipLostError` once it never will again.
        """
        ...


class StoreJournal:
    """See `journal.Journal`. A write that is cancelled may still happen."""

    def __init__(self, name: str, shelf: Shelf) -> None:
        self._name = name
        self._shelf = shelf
        self._head: Head | None = None
        self._turn = trio.Lock()

    async def write(self, record: JournalRecord) -> None:
        """See `Journal.write`. Waits while the store cannot be reached, or it is open whether the claim will stand again."""
        async with self._turn:
            await self._until_known("written", lambda: self._write(record))

    async def read(self) -> JournalState:
        """See `Journal.read`. Waits while the store cannot be reached."""
        async with self._turn:
            self._head = await self._until_known("read", self._shelf.head)
            return self._head.state

    async def _until_known(self, deed: str, attempt: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await attempt()
            except (StoreUnavailableError, OvertakenError, LapsedError):
                await trio.sleep(RETRY_S)
            except ClusterStoreError as error:
                raise JournalError(f"the journal of {self._name} cannot be {deed}: {error}") from error

    async def _write(self, record: JournalRecord) -> None:
        head, self._head = self._head or await self._shelf.head(), None  # not known again before an answer came
        try:
            state = follow(head.state, record)
        except JournalError:
            if await self._shelf.has(record):
                return
            raise
        try:
            self._head = await self._shelf.append(record, state, head)
        except (OvertakenError, LapsedError, LeadershipLostError):
            # Perhaps by an earlier attempt, whose answer was lost.
            if not await self._shelf.has(record):
                raise
