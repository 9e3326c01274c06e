"""A cluster's store in etcd: several coordinators may want to lead, and whoever loses the lease cannot write any more.

The claim is the key ``leader``, put with a lease where it is not there. Its term is the revision at which that was first done,
which the key ``term``, without a lease, keeps: every new claim writes it in the same transaction. So a claim that lapsed may be
made anew in its old term exactly where ``term`` was not written since.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import NoReturn, Self

import msgspec
import trio

from ..journal import Journal
from .cluster_store import (
    AlreadyLedError,
    Candidate,
    ClusterStoreError,
    LeaderRecord,
    LeadershipLostError,
    StoreRefusedError,
    StoreUnavailableError,
    check_name,
)
from .etcd_client import EtcdClient, EtcdNotFoundError, EtcdPreconditionError, EtcdSettings
from .etcd_journal import EtcdShelf, Fence
from .etcd_messages import (
    Compare,
    KeptAlive,
    KeyValue,
    LeaseGrant,
    LeaseOf,
    Nothing,
    Operation,
    Put,
    Range,
    RangeAnswer,
    Transaction,
    TransactionAnswer,
)
from .store_journal import LapsedError, StoreJournal

TTL_S = 2
"""How long a claim outlives its leader. etcd's own least, with its usual election timeout; whole seconds."""


class _Stored(msgspec.Struct, frozen=True):
    """The value of the key ``leader``; ``term`` 0 is the revision at which the key was created."""

    name: str
    address: str
    term: int = 0


@dataclass(frozen=True, slots=True)
class EtcdKeys:
    """Where a cluster's keys lie. A role for FlexPipe needs to read and write those that begin with ``prefix``."""

    prefix: bytes

    @classmethod
    def of(cls, cluster: str) -> Self:
        """Those of the cluster of that name. Raises `StoreRefusedError` for a bad one."""
        check_name("cluster", cluster)
        return cls(f"/flexpipe/{cluster}/".encode())

    @property
    def leader(self) -> bytes:
        """There while somebody leads."""
        return self.prefix + b"leader"

    @property
    def term(self) -> bytes:
        """Written by each new claim, never removed."""
        return self.prefix + b"term"

    def journal(self, pipeline: str) -> bytes:
        """The prefix of a pipeline's journal. Raises `StoreRefusedError` for a bad name."""
        check_name("pipeline", pipeline)
        return self.prefix + f"journal/{pipeline}/".encode()


class EtcdClaim:
    """See `cluster_store.Claim`. ``revision`` is that of the key that the claim is now; None while it is not known to stand."""

    def __init__(self, client: EtcdClient, keys: EtcdKeys, candidate: Candidate, ttl_s: int) -> None:
        self._client = client
        self._keys = keys
        self._candidate = candidate
        self._ttl_s = ttl_s
        self._lease = 0
        self._term = 0
        self._is_over = False  # resigned, or overtaken
        self.revision: int | None = None

    @property
    def record(self) -> LeaderRecord:
        """See `Claim.record`."""
        return LeaderRecord(self._candidate.name, self._candidate.address, self._term)

    async def make(self) -> None:
        """Lead in a new term. Raises `AlreadyLedError`."""
        mark = Operation(request_put=Put(self._keys.term, self._candidate.name.encode()))
        found = await self._take((), (mark,))
        if self.revision is None:
            raise AlreadyLedError(f"{_record_of(found).name if found is not None else 'somebody'} leads already")
        self._term = self.revision

    async def keep_alive(self) -> None:
        """See `Claim.keep_alive`."""
        if self.revision is None:
            raise LeadershipLostError(f"{self._candidate.name} is not known to lead")
        kept = await self._client.call("lease/keepalive", LeaseOf(self._lease), KeptAlive)
        if kept.result.seconds <= 0:
            self.revision = None
            raise LeadershipLostError(f"the lease of {self._candidate.name} ran out")

    async def reclaim(self) -> None:
        """See `Claim.reclaim`."""
        if self._is_over:
            raise LeadershipLostError(f"{self._candidate.name} does not lead in term {self._term} any more")
        if self.revision is not None:
            with suppress(LeadershipLostError):
                return await self.keep_alive()
        await self._take((self._mark(),), ())
        if self.revision is None:
            self._is_over = True
            raise LeadershipLostError(f"somebody else led since term {self._term}, in which {self._candidate.name} did")
        return None

    async def resign(self) -> None:
        """See `Claim.resign`."""
        self._is_over, self.revision = True, None
        with suppress(EtcdNotFoundError):
            await self._client.call("lease/revoke", LeaseOf(self._lease), Nothing)

    def journal(self, pipeline: str) -> AbstractAsyncContextManager[Journal]:
        """See `Claim.journal`."""
        return self._journal(pipeline)

    @asynccontextmanager
    async def _journal(self, pipeline: str) -> AsyncIterator[Journal]:
        prefix = self._keys.journal(pipeline)
        yield StoreJournal(pipeline, EtcdShelf(self._client, prefix, self._fence))

    def _fence(self) -> Fence:
        """Raises `LeadershipLostError` once this claim will never stand again, `LapsedError` while it is not known to."""
        if self._is_over:
            raise LeadershipLostError(f"{self._candidate.name} does not lead in term {self._term} any more")
        if self.revision is None:
            raise LapsedError
        return Fence(Compare(self._keys.leader, "CREATE", create_revision=self.revision), self._mark())

    def _mark(self) -> Compare:
        """What holds until somebody else leads."""
        return Compare(self._keys.term, "MOD", mod_revision=self._term)

    async def _take(self, further: tuple[Compare, ...], marks: tuple[Operation, ...]) -> KeyValue | None:
        """Put the key where none is and ``further`` holds: then there is a ``revision``, else the key that is there is given."""
        await self._have_lease()
        stored = _Stored(self._candidate.name, self._candidate.address, self._term)
        put = Operation(request_put=Put(self._keys.leader, msgspec.json.encode(stored), self._lease))
        absent = Compare(self._keys.leader, "CREATE", create_revision=0)
        look = Operation(request_range=Range(self._keys.leader))
        transaction = Transaction((absent, *further), (put, *marks), (look,))
        answer = await self._client.call("kv/txn", transaction, TransactionAnswer)
        found = answer.found(0)
        if answer.succeeded:
            self.revision = answer.header.revision
        elif found is not None and found.lease == self._lease:  # put by an attempt whose answer was lost
            self.revision = found.create_revision
        else:
            with suppress(ClusterStoreError):  # it would run out anyway
                await self._client.call("lease/revoke", LeaseOf(self._lease), Nothing)
        return found

    async def _have_lease(self) -> None:
        """Keep the one that an attempt before this made, with which it may have put the key; else make one."""
        if self._lease:
            kept = await self._client.call("lease/keepalive", LeaseOf(self._lease), KeptAlive)
            if kept.result.seconds > 0:
                return
        self._lease = secrets.randbits(62) | 1
        with suppress(EtcdPreconditionError):  # another endpoint has made it, and did not answer
            await self._client.call("lease/grant", LeaseGrant(self._lease, self._ttl_s), Nothing)


class EtcdStore:
    """See `cluster_store.ClusterStore`."""

    def __init__(self, client: EtcdClient, keys: EtcdKeys, ttl_s: int) -> None:
        self._client = client
        self._keys = keys
        self._ttl_s = ttl_s

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: EtcdSettings, cluster: str, ttl_s: int = TTL_S) -> AsyncIterator[Self]:
        """The store of ``cluster``; nothing is sent yet. Raises `StoreRefusedError` for what can never be."""
        keys = EtcdKeys.of(cluster)
        # Within a third of a claim's life an endpoint has answered or the next one is asked.
        hasty = replace(settings, answer_s_max=min(settings.answer_s_max, ttl_s / 3))
        async with EtcdClient.open(hasty) as client:
            yield cls(client, keys, ttl_s)

    @property
    def ttl_s(self) -> float:
        """See `ClusterStore.ttl_s`."""
        return self._ttl_s

    async def claim(self, candidate: Candidate) -> EtcdClaim:
        """See `ClusterStore.claim`."""
        claim = EtcdClaim(self._client, self._keys, candidate, self._ttl_s)
        await claim.make()
        return claim

    async def watch(self, tell: Callable[[LeaderRecord | None], None]) -> NoReturn:
        """See `ClusterStore.watch`."""
        await _Watch(self._client, self._keys.leader, self._ttl_s, tell).run()


class _Watch:
    """Follows the key ``leader`` at one endpoint: by etcd's watch, and by looking often enough to know that it is still there."""

    def __init__(
        self, client: EtcdClient, key: bytes, ttl_s: float, tell: Callable[[LeaderRecord | None], None]
    ) -> None:
        self._client = client
        self._key = key
        self._look_s = ttl_s / 3
        self._tell = tell
        self._seen_revision = 0
        self._told: LeaderRecord | None = None
        self._failure: ClusterStoreError = StoreUnavailableError("etcd ended the watch")

    async def run(self) -> NoReturn:
        await self._client.call("kv/range", Range(self._key), RangeAnswer)  # turns to an endpoint that answers
        endpoint = self._client.endpoint
        await self._look(endpoint)
        async with trio.open_nursery() as nursery:
            for part in (self._look_often, self._read):
                nursery.start_soon(self._until_lost, part, endpoint, nursery.cancel_scope)
        raise self._failure

    async def _until_lost(self, part: Callable[[str], Awaitable[None]], endpoint: str, scope: trio.CancelScope) -> None:
        try:
            await part(endpoint)
        except ClusterStoreError as error:
            self._failure = error
        scope.cancel()

    async def _look_often(self, endpoint: str) -> None:
        while True:
            await trio.sleep(self._look_s)
            await self._look(endpoint)

    async def _look(self, endpoint: str) -> None:
        answer = await self._client.call("kv/range", Range(self._key), RangeAnswer, endpoint=endpoint)
        self._saw(answer.header.revision, answer.first)

    async def _read(self, endpoint: str) -> None:
        async with aclosing(self._client.watch(self._key, self._seen_revision + 1, endpoint)) as results:
            async for result in results:
                for event in result.events:
                    self._saw(event.kv.mod_revision, None if event.type == "DELETE" else event.kv)

    def _saw(self, revision: int, found: KeyValue | None) -> None:
        if revision <= self._seen_revision:
            return
        is_first, self._seen_revision = not self._seen_revision, revision
        record = _record_of(found) if found is not None else None
        if is_first or record != self._told:
            self._told = record
            self._tell(record)


def _record_of(found: KeyValue) -> LeaderRecord:
    try:
        stored = msgspec.json.decode(found.value, type=_Stored)
    except msgspec.MsgspecError as error:
        raise StoreRefusedError(f"the key {found.key.decode(errors='replace')} is not FlexPipe's: {error}") from error
    return LeaderRecord(stored.name, stored.address, stored.term or found.create_revision)
