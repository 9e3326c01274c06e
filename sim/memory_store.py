"""A cluster's store in memory and virtual time: a server that can be down, and clients that can be cut off, slow, or not answered.

Keeps the promises of `cluster_store` under faults drawn from a seed; its journals are `store_journal`'s, as in etcd.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

import trio

from ..actors.cluster.cluster_store import (
    AlreadyLedError,
    Candidate,
    LeaderRecord,
    LeadershipLostError,
    StoreUnavailableError,
    check_name,
)
from ..actors.cluster.store_journal import Head, LapsedError, OvertakenError, StoreJournal
from ..actors.journal import NOTHING, Journal, JournalRecord, JournalState

T = TypeVar("T")
EMPTY = Head(NOTHING, 0)


@dataclass(frozen=True, slots=True)
class StoreFaults:
    """What goes wrong with a client's calls. Of ``unanswered`` (a probability) half happen all the same.

    A call and its answer each take up to ``delay_s_max``; a client gives up after ``answer_s_max``, like etcd's.
    """

    unanswered: float = 0.0
    delay_s_max: float = 0.0
    answer_s_max: float = 0.5


@dataclass(slots=True)
class _Shelf:
    head: Head = EMPTY
    records: list[JournalRecord] = field(default_factory=list)


class MemoryStoreServer:
    """The state, and the moment at which the claim lapses. While it is ``down`` nobody is answered, and claims grow old."""

    def __init__(self, ttl_s: float = 2.0) -> None:
        self.ttl_s = ttl_s
        self.down = False
        self.changed = trio.lowlevel.ParkingLot()
        self.shelves: dict[str, _Shelf] = {}
        self.last_term = 0
        self._revision = 0
        self._claim: MemoryClaim | None = None
        self._stands_until_s = 0.0

    def standing(self) -> MemoryClaim | None:
        """Whose claim stands now."""
        if self._claim is not None and trio.current_time() >= self._stands_until_s:
            self._claim = None
        return self._claim

    def stands_for_s(self) -> float:
        """How long the claim that stands now would without being kept alive; the time to live where none does."""
        return self._stands_until_s - trio.current_time() if self.standing() is not None else self.ttl_s

    def grant(self, claim: MemoryClaim) -> None:
        """Let ``claim`` stand from now on."""
        self._claim, self._stands_until_s = claim, trio.current_time() + self.ttl_s
        self.changed.unpark_all()

    def expire(self) -> None:
        """Let the claim lapse now, whoever keeps it alive."""
        self._claim = None
        self.changed.unpark_all()

    def next_revision(self) -> int:
        """A number above all before."""
        self._revision += 1
        return self._revision


class MemoryStore:
    """See `cluster_store.ClusterStore`. One client; while it is ``cut`` off it reaches nobody."""

    def __init__(self, server: MemoryStoreServer, seed: int = 0, faults: StoreFaults = StoreFaults()) -> None:
        self.server = server
        self.cut = False
        self.faults = faults
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose

    @property
    def ttl_s(self) -> float:
        """See `ClusterStore.ttl_s`."""
        return self.server.ttl_s

    async def ask(self, deed: Callable[[], T]) -> T:
        """Let the server do ``deed``, which neither waits nor fails half-way."""
        is_lost = self._random.random() < self.faults.unanswered
        await self._travel()
        if self.cut or self.server.down or (is_lost and self._random.random() < 0.5):
            await self._give_up()
        done = deed()
        if is_lost:
            await self._give_up()
        await self._travel()
        return done

    async def _travel(self) -> None:
        await trio.sleep(self._random.uniform(0.0, self.faults.delay_s_max))

    async def _give_up(self) -> NoReturn:
        await trio.sleep(self.faults.answer_s_max)
        raise StoreUnavailableError(f"the store in memory did not answer within {self.faults.answer_s_max:g} s")

    async def claim(self, candidate: Candidate) -> MemoryClaim:
        """See `ClusterStore.claim`."""
        claim = MemoryClaim(self, candidate)
        await self.ask(claim.begin)
        return claim

    async def watch(self, tell: Callable[[LeaderRecord | None], None]) -> NoReturn:
        """See `ClusterStore.watch`."""
        told: list[LeaderRecord | None] = []
        while True:
            claim = await self.ask(self.server.standing)
            record = claim.record if claim is not None else None
            if told != [record]:
                told = [record]
                tell(record)
            with trio.move_on_after(min(self.ttl_s / 3, self.server.stands_for_s())):
                await self.server.changed.park()


class MemoryClaim:
    """See `cluster_store.Claim`."""

    def __init__(self, store: MemoryStore, candidate: Candidate) -> None:
        self._store = store
        self._candidate = candidate
        self._term = 0
        self._resigned = False

    @property
    def record(self) -> LeaderRecord:
        """See `Claim.record`."""
        return LeaderRecord(self._candidate.name, self._candidate.address, self._term)

    async def keep_alive(self) -> None:
        """See `Claim.keep_alive`."""
        await self._store.ask(self._prolong)

    async def reclaim(self) -> None:
        """See `Claim.reclaim`."""
        await self._store.ask(self._renew)

    async def resign(self) -> None:
        """See `Claim.resign`."""
        self._resigned = True
        await self._store.ask(self._give_back)

    def journal(self, pipeline: str) -> AbstractAsyncContextManager[Journal]:
        """See `Claim.journal`."""
        return self._journal(pipeline)

    @asynccontextmanager
    async def _journal(self, pipeline: str) -> AsyncIterator[Journal]:
        check_name("pipeline", pipeline)
        shelf = self._store.server.shelves.setdefault(pipeline, _Shelf())
        yield StoreJournal(pipeline, _ClaimedShelf(self._store, self, shelf))

    def begin(self) -> None:
        """At the server: lead in a new term."""
        server = self._store.server
        if (other := server.standing()) is not None:
            raise AlreadyLedError(f"{other.record.name} leads already")
        self._term = server.last_term = server.next_revision()
        server.grant(self)

    def stands(self) -> bool:
        """At the server: whether it does. Raises `LeadershipLostError` where it never will again."""
        if self._resigned or self._store.server.last_term != self._term:
            raise LeadershipLostError(f"{self._candidate.name} does not lead in term {self._term} any more")
        return self._store.server.standing() is self

    def _prolong(self) -> None:
        if not self.stands():
            raise LeadershipLostError(f"the claim of {self._candidate.name} lapsed")
        self._store.server.grant(self)

    def _renew(self) -> None:
        self.stands()
        self._store.server.grant(self)

    def _give_back(self) -> None:
        if self._store.server.standing() is self:
            self._store.server.expire()


class _ClaimedShelf:
    """See `store_journal.Shelf`."""

    def __init__(self, store: MemoryStore, claim: MemoryClaim, shelf: _Shelf) -> None:
        self._store = store
        self._claim = claim
        self._shelf = shelf

    async def head(self) -> Head:
        """See `Shelf.head`."""
        return await self._store.ask(lambda: self._shelf.head)

    async def has(self, record: JournalRecord) -> bool:
        """See `Shelf.has`."""
        return await self._store.ask(lambda: record in self._shelf.records)

    async def append(self, record: JournalRecord, state: JournalState, after: Head) -> Head:
        """See `Shelf.append`."""

        def put() -> Head:
            if not self._claim.stands():
                raise LapsedError
            if self._shelf.head.revision != after.revision or record in self._shelf.records:
                raise OvertakenError
            self._shelf.records.append(record)
            self._shelf.head = Head(state, self._store.server.next_revision())
            return self._shelf.head

        return await self._store.ask(put)
