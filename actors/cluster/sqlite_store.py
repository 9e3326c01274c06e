"""The store of a cluster with one coordinator: SQLite files in one folder, which belongs to one process at a time.

A claim stands until it is resigned or its process ends. The term is a counter in a file, whose lock keeps a second process out.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NoReturn, Self

import trio

from ..journal import Journal, JournalError, JournalRecord, JournalState
from ..sqlite_file import SchemaVersionError, is_in_use, open_exclusively, reason_of
from ..sqlite_journal import SqliteJournal
from .cluster_store import (
    AlreadyLedError,
    Candidate,
    LeaderRecord,
    LeadershipLostError,
    StoreInUseError,
    StoreRefusedError,
    check_name,
)
from .leader_cell import LeaderCell

SCHEMA_VERSION = 1
_CREATE = (
    "CREATE TABLE IF NOT EXISTS term (place INTEGER PRIMARY KEY CHECK (place = 0), number INTEGER)",
    "INSERT OR IGNORE INTO term (place, number) VALUES (0, 0)",
)


class SqliteClaim:
    """See `cluster_store.Claim`."""

    def __init__(self, store: SqliteStore, record: LeaderRecord) -> None:
        self._store = store
        self._record = record

    @property
    def record(self) -> LeaderRecord:
        """See `Claim.record`."""
        return self._record

    async def keep_alive(self) -> None:
        """See `Claim.keep_alive`."""
        await trio.lowlevel.checkpoint()
        self.check()

    async def reclaim(self) -> None:
        """See `Claim.reclaim`."""
        await self.keep_alive()

    async def resign(self) -> None:
        """See `Claim.resign`."""
        await trio.lowlevel.checkpoint()
        if self._store.leader.value == self._record:
            self._store.leader.set(None)

    def journal(self, pipeline: str) -> AbstractAsyncContextManager[Journal]:
        """See `Claim.journal`."""
        return self._journal(pipeline)

    def check(self) -> None:
        """Raise `LeadershipLostError` unless this claim stands."""
        if self._store.leader.value != self._record:
            raise LeadershipLostError(f"{self._record.name} gave term {self._record.term} back")

    @asynccontextmanager
    async def _journal(self, pipeline: str) -> AsyncIterator[Journal]:
        yield _ClaimedJournal(self, pipeline, await self._store.journal(pipeline))


class _ClaimedJournal:
    """A journal that is written while a claim stands."""

    def __init__(self, claim: SqliteClaim, pipeline: str, journal: SqliteJournal) -> None:
        self._claim = claim
        self._pipeline = pipeline
        self._journal = journal

    async def write(self, record: JournalRecord) -> None:
        """See `Journal.write`."""
        try:
            self._claim.check()
        except LeadershipLostError as error:
            raise JournalError(f"the journal of {self._pipeline} cannot be written: {error}") from error
        await self._journal.write(record)

    async def read(self) -> JournalState:
        """See `Journal.read`."""
        return await self._journal.read()


class SqliteStore:
    """See `cluster_store.ClusterStore`. ``leader`` is whose claim stands."""

    def __init__(self, folder: Path, database: sqlite3.Connection, journals: AsyncExitStack) -> None:
        self.leader = LeaderCell()
        self._folder = folder
        self._database = database
        self._turn = trio.Lock()
        self._stack = journals
        self._journals: dict[str, SqliteJournal] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator[Self]:
        """The store in ``folder``, which exists. Raises `StoreInUseError` where another process has it, `StoreRefusedError`."""
        database = await trio.to_thread.run_sync(_open, folder)
        try:
            async with AsyncExitStack() as journals:
                yield cls(folder, database, journals)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(database.close)

    @property
    def ttl_s(self) -> float:
        """See `ClusterStore.ttl_s`."""
        return math.inf

    async def claim(self, candidate: Candidate) -> SqliteClaim:
        """See `ClusterStore.claim`."""
        async with self._turn:
            if self.leader.value is not None:
                raise AlreadyLedError(f"{self.leader.value.name} leads already")
            with trio.CancelScope(shield=True):
                term = await trio.to_thread.run_sync(_next_term, self._folder, self._database)
            record = LeaderRecord(candidate.name, candidate.address, term)
            self.leader.set(record)
            return SqliteClaim(self, record)

    async def watch(self, tell: Callable[[LeaderRecord | None], None]) -> NoReturn:
        """See `ClusterStore.watch`."""
        while True:
            tell(self.leader.value)
            await self.leader.changed()

    async def journal(self, pipeline: str) -> SqliteJournal:
        """The journal of ``pipeline``, open as long as the store. Raises `JournalError`, `StoreRefusedError`."""
        check_name("pipeline", pipeline)
        async with self._turn:
            if pipeline not in self._journals:
                path = self._folder / f"journal-{pipeline}.sqlite"
                self._journals[pipeline] = await self._stack.enter_async_context(SqliteJournal.open(path))
            return self._journals[pipeline]


def _open(folder: Path) -> sqlite3.Connection:
    with _in_words(folder):
        return open_exclusively(_path(folder), SCHEMA_VERSION, _CREATE)


def _next_term(folder: Path, database: sqlite3.Connection) -> int:
    with _in_words(folder), database:
        (term,) = database.execute("UPDATE term SET number = number + 1 RETURNING number").fetchone()
        return int(term)


def _path(folder: Path) -> Path:
    return folder / "leader.sqlite"


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if is_in_use(error):
            raise StoreInUseError(
                f"another coordinator uses the folder {folder}: stop it, use another folder, or keep the state of several in etcd"
            ) from error
        raise StoreRefusedError(f"the file {_path(folder)} cannot be used: {reason_of(error)}") from error
    except SchemaVersionError as error:
        raise StoreRefusedError(f"the file {_path(folder)} {error}") from error
