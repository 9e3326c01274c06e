"""Where one pipeline's journal lies in etcd: a key for where it stands, a key for each record of the last epochs.

Each record is one transaction: it happens where the leader's key is the one that its claim made, where nothing was written since,
and where the record is not there yet. The head holds the whole state, so old records are dropped and nothing is lost; what etcd
keeps of earlier revisions is for its own compaction (``--auto-compaction-retention``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ..journal import EPOCHS_KEPT_MAX, NOTHING, JournalError, JournalRecord, JournalState
from .cluster_store import LeadershipLostError
from .etcd_client import EtcdClient
from .etcd_messages import (
    Compare,
    DeleteRange,
    KeyValue,
    Operation,
    Put,
    Range,
    RangeAnswer,
    Transaction,
    TransactionAnswer,
)
from .store_journal import Head, LapsedError, OvertakenError

FORMAT = 1
"""Of the head and the records."""


class _StoredHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    state: JournalState
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Fence:
    """``stands`` holds while the claim does, ``may_stand`` until somebody else leads."""

    stands: Compare
    may_stand: Compare


class EtcdShelf:
    """See `store_journal.Shelf`. ``fence`` raises `LapsedError` and `LeadershipLostError`."""

    def __init__(self, client: EtcdClient, prefix: bytes, fence: Callable[[], Fence]) -> None:
        self._client = client
        self._prefix = prefix
        self._fence = fence

    async def head(self) -> Head:
        """See `Shelf.head`."""
        answer = await self._client.call("kv/range", Range(self._head_key), RangeAnswer)
        return self._head_of(answer.first)

    async def has(self, record: JournalRecord) -> bool:
        """See `Shelf.has`."""
        answer = await self._client.call("kv/range", Range(self._key(record)), RangeAnswer)
        return answer.first is not None

    async def append(self, record: JournalRecord, state: JournalState, after: Head) -> Head:
        """See `Shelf.append`."""
        fence, key = self._fence(), self._key(record)
        built_on = Compare(self._head_key, "MOD", mod_revision=after.revision)
        absent = Compare(key, "CREATE", create_revision=0)
        puts = (
            Operation(request_put=Put(self._head_key, msgspec.json.encode(_StoredHead(state)))),
            Operation(request_put=Put(key, msgspec.json.encode(record))),
        )
        looks = tuple(Operation(request_range=Range(compare.key)) for compare in (fence.stands, fence.may_stand))
        transaction = Transaction((fence.stands, built_on, absent), (*puts, *self._forget(record.epoch)), looks)
        answer = await self._client.call("kv/txn", transaction, TransactionAnswer)
        if answer.succeeded:
            return Head(state, answer.header.revision)
        leader, term = answer.found(0), answer.found(1)
        if leader is not None and leader.create_revision == fence.stands.create_revision:
            raise OvertakenError
        if term is not None and term.mod_revision == fence.may_stand.mod_revision:
            raise LapsedError
        raise LeadershipLostError("this coordinator does not lead any more; whoever leads now decides")

    @property
    def _head_key(self) -> bytes:
        return self._prefix + b"head"

    def _key(self, record: JournalRecord) -> bytes:
        """By what it says: the same record has the same key."""
        digest = hashlib.sha256(msgspec.json.encode(record)).hexdigest()[:16]
        return self._epoch_key(record.epoch) + f"{record.kind}-{digest}".encode()

    def _epoch_key(self, epoch: int) -> bytes:
        return self._prefix + f"record/{epoch:016d}/".encode()

    def _forget(self, epoch: int) -> tuple[Operation, ...]:
        first_kept = epoch - EPOCHS_KEPT_MAX + 1
        if first_kept <= 0:
            return ()
        return (Operation(request_delete_range=DeleteRange(self._epoch_key(0), self._epoch_key(first_kept))),)

    def _head_of(self, found: KeyValue | None) -> Head:
        if found is None:
            return Head(NOTHING, 0)
        try:
            stored = msgspec.json.decode(found.value, type=_StoredHead)
        except msgspec.MsgspecError as error:
            raise JournalError(f"the journal at {self._prefix.decode()} is not of this version ({error})") from error
        if stored.format != FORMAT:
            raise JournalError(
                f"the journal at {self._prefix.decode()} has format {stored.format}, this build {FORMAT}"
            )
        return Head(stored.state, found.mod_revision)
