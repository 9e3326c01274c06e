"""The journal on disk: SQLite with a write-ahead log, every record flushed to the disk before its write returns.

One process at a time: a second one is refused when it opens the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import msgspec
import trio

from .journal import JournalError, JournalRecord, JournalState, fold

SCHEMA_VERSION = 1
RECORDS_KEPT_MAX = 10_000
"""Records kept for people; older ones of finished epochs are removed. A change writes three, of some hundred bytes each."""
_CREATE = "CREATE TABLE IF NOT EXISTS record (place INTEGER PRIMARY KEY, epoch INTEGER, kind TEXT, body BLOB, UNIQUE (epoch, kind))"


class SqliteJournal:
    """See `journal.Journal`."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path
        self._turn = trio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, pages_max: int | None = None) -> AsyncIterator[Self]:
        """The journal in the file ``path``, made where there is none. ``pages_max`` bounds it, in pages of 4 KiB.

        Raises `JournalError` where it cannot be had: in use by another process, of another version, no room.
        """
        database = await trio.to_thread.run_sync(_open, path, pages_max)
        try:
            yield cls(database, path)
        finally:
            database.close()

    async def write(self, record: JournalRecord) -> None:
        """See `Journal.write`."""
        async with self._turn:
            with trio.CancelScope(shield=True):  # whole, or not at all
                await trio.to_thread.run_sync(self._write, record)

    async def read(self) -> JournalState:
        """See `Journal.read`."""
        async with self._turn:
            with trio.CancelScope(shield=True):
                return fold(await trio.to_thread.run_sync(self._records))

    def _write(self, record: JournalRecord) -> None:
        known = self._records()
        if record in known:
            return
        fold([*known, record])
        body = msgspec.msgpack.encode(record)
        try:
            with self._database:
                self._database.execute(
                    "INSERT INTO record (epoch, kind, body) VALUES (?, ?, ?)", (record.epoch, record.kind, body)
                )
        except sqlite3.Error as error:
            raise JournalError(f"the journal {self._path} cannot be written: {error}") from error
        if record.kind == "released" and len(known) >= RECORDS_KEPT_MAX:
            self._forget_before(record.epoch)

    def _forget_before(self, epoch: int) -> None:
        """Keep what a coordinator that starts anew needs; the rest was for people."""
        with self._database:
            self._database.execute("DELETE FROM record WHERE epoch < ?", (epoch,))

    def _records(self) -> list[JournalRecord]:
        try:
            rows = self._database.execute("SELECT body FROM record ORDER BY place").fetchall()
            return [msgspec.msgpack.decode(body, type=JournalRecord) for (body,) in rows]
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise JournalError(f"the journal {self._path} cannot be read: {error}") from error


def _open(path: Path, pages_max: int | None) -> sqlite3.Connection:
    try:
        # Every call goes through one lock, from whichever thread trio lends.
        database = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if pages_max is not None:
            database.execute(f"PRAGMA max_page_count = {pages_max}")
        _check_version(database, path)
        with database:
            database.execute(_CREATE)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except sqlite3.Error as error:
        raise JournalError(f"the journal {path} cannot be opened: {error}; another server may be using it") from error
    return database


def _check_version(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, SCHEMA_VERSION):
        raise JournalError(
            f"the journal {path} has schema version {version}, this build reads {SCHEMA_VERSION}: use another folder"
        )
