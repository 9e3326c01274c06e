"""An SQLite file of one process: a write-ahead log, every transaction flushed to the disk before it returns, nobody else let in.

Owns how such a file is opened, and what SQLite's failures mean to people. Knows no tables.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full; make room and try again",
    sqlite3.SQLITE_IOERR: "the disk failed or is full; make room, or use another folder",
    sqlite3.SQLITE_BUSY: "another process uses it; stop that server, or use another folder",
    sqlite3.SQLITE_LOCKED: "another process uses it; stop that server, or use another folder",
    sqlite3.SQLITE_CANTOPEN: "its folder does not exist or may not be written to",
    sqlite3.SQLITE_READONLY: "it may not be written to",
    sqlite3.SQLITE_NOTADB: "it is another kind of file; remove it, or use another folder",
    sqlite3.SQLITE_CORRUPT: "it is damaged; remove it, or use another folder",
}
"""What SQLite's primary error codes mean to people."""


class SchemaVersionError(Exception):
    """The file was made by another version: the sentence says which."""


def reason_of(error: sqlite3.Error) -> str:
    """What went wrong and what to do, for people."""
    return _REASONS.get(_code(error), str(error))


def is_in_use(error: sqlite3.Error) -> bool:
    """Whether another process has the file."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def open_exclusively(
    path: Path, version: int, tables: Sequence[str], *, pages_max: int | None = None
) -> sqlite3.Connection:
    """The file, with ``tables`` made where there are none, closed to other processes; at most ``pages_max`` pages of 4 KiB.

    Raises `sqlite3.Error`, and `SchemaVersionError` unless it is new or of ``version``.
    """
    # Calls come one after another, from whichever thread trio lends.
    database = sqlite3.connect(path, timeout=0.0, check_same_thread=False)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if pages_max is not None:
            database.execute(f"PRAGMA max_page_count = {pages_max}")
        _prepare_schema(database, version, tables)
    except BaseException:
        with suppress(sqlite3.Error):
            database.close()
        raise
    return database


def _prepare_schema(database: sqlite3.Connection, version: int, tables: Sequence[str]) -> None:
    (found,) = database.execute("PRAGMA user_version").fetchone()
    if found not in (0, version):
        raise SchemaVersionError(f"has schema version {found}, this build reads {version}: use another folder")
    with database:
        database.execute("BEGIN IMMEDIATE")
        for statement in tables:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {version}")


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
