"""The journal on disk: SQLite with a write-ahead log, every record flushed to the disk before its write returns.

One process at a time: a second one is refused when it opens the file. The file is bounded: records of old epochs give way
to the state that they add up to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Self

import msgspec
import trio

from .journal import EPOCHS_KEPT_MAX, NOTHING, JournalError, JournalRecord, JournalState, fold, follow
from .sqlite_file import SchemaVersionError, open_exclusively, reason_of

SCHEMA_VERSION = 1
_CREATE = (
    "CREATE TABLE IF NOT EXISTS record (place INTEGER PRIMARY KEY, epoch INTEGER, body BLOB)",
    "CREATE INDEX IF NOT EXISTS record_epoch ON record (epoch)",
    "CREATE TABLE IF NOT EXISTS forgotten (place INTEGER PRIMARY KEY CHECK (place = 0), state BLOB)",
)


class SqliteJournal:
    """See `journal.Journal`.

    One exception to "not at all": where the disk fails to flush, and the process ends before the next write, the record may
    be found later.
    """

    def __init__(self, database: sqlite3.Connection, path: Path, state: JournalState) -> None:
        self._database = database
        self._path = path
        self._state = state
        self._turn = trio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, pages_max: int | None = None) -> AsyncIterator[Self]:
        """The journal in the file ``path``, made where there is none. ``pages_max`` bounds it, in pages of 4 KiB.

        Raises `JournalError` where it cannot be had: in use by another process, of another version, damaged, no room.
        """
        database, state = await trio.to_thread.run_sync(_open, path, pages_max)
        try:
            yield cls(database, path, state)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(database.close)

    async def write(self, record: JournalRecord) -> None:
        """See `Journal.write`."""
        async with self._turn:
            with trio.CancelScope(shield=True):  # whole, or not at all
                await trio.to_thread.run_sync(self._write, record)

    async def read(self) -> JournalState:
        """See `Journal.read`. Nobody else writes, so this is what was found at first and what was written since."""
        async with self._turn:
            return self._state

    def _write(self, record: JournalRecord) -> None:
        with _in_words(self._path, "written"):
            if record in _records(self._database, "WHERE epoch = ?", record.epoch):
                return
            state = follow(self._state, record)
            with self._database:
                body = msgspec.msgpack.encode(record)
                self._database.execute("INSERT INTO record (epoch, body) VALUES (?, ?)", (record.epoch, body))
                self._forget_before(record.epoch - EPOCHS_KEPT_MAX)
            self._state = state

    def _forget_before(self, epoch: int) -> None:
        """Put what the oldest records add up to in their place. Part of a transaction."""
        (first_kept,) = self._database.execute("SELECT min(place) FROM record WHERE epoch > ?", (epoch,)).fetchone()
        old = _records(self._database, "WHERE place < ?", first_kept)
        if old:
            state = msgspec.msgpack.encode(fold(old, _forgotten(self._database)))
            self._database.execute("INSERT OR REPLACE INTO forgotten (place, state) VALUES (0, ?)", (state,))
            self._database.execute("DELETE FROM record WHERE place < ?", (first_kept,))


def _open(path: Path, pages_max: int | None) -> tuple[sqlite3.Connection, JournalState]:
    with _in_words(path, "opened"):
        database = open_exclusively(path, SCHEMA_VERSION, _CREATE, pages_max=pages_max)
        try:
            return database, fold(_records(database, ""), _forgotten(database))
        except BaseException:
            with suppress(sqlite3.Error):
                database.close()
            raise


def _records(database: sqlite3.Connection, which: str, *values: int | None) -> list[JournalRecord]:
    rows = database.execute(f"SELECT body FROM record {which} ORDER BY place", values)  # noqa: S608 - our own text
    return [msgspec.msgpack.decode(body, type=JournalRecord) for (body,) in rows]


def _forgotten(database: sqlite3.Connection) -> JournalState:
    row = database.execute("SELECT state FROM forgotten").fetchone()
    return NOTHING if row is None else msgspec.msgpack.decode(row[0], type=JournalState)


@contextmanager
def _in_words(path: Path, deed: str) -> Iterator[None]:
    """Turn what can go wrong with a database into `JournalError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise JournalError(f"the journal {path} cannot be {deed}: {reason_of(error)}") from error
    except SchemaVersionError as error:
        raise JournalError(f"the journal {path} {error}") from error
    except msgspec.MsgspecError as error:
        raise JournalError(f"the journal {path} cannot be {deed}: a record is not of this version ({error})") from error
