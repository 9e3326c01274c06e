"""Finished runs on disk, one JSON line each, by the digest of all that went in: what lets an interrupted sweep go on.

Owns the file's format and its lock. A line is written whole and forced to disk before the run counts as done; a line that an
interruption tore is cut off when the file is opened again, and its run is run anew. A run that stands in the file twice counts
once. It must never know what a run is of.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

FILE = "runs.jsonl"


class StoreError(Exception):
    """The folder cannot be used; the sentence says why and what to do."""


class Run(msgspec.Struct, frozen=True):
    """One finished run: its digest, what it was of, and what came out, as plain JSON."""

    key: str
    cell: msgspec.Raw
    outcome: msgspec.Raw


class Store:
    """The runs of one folder. Make one with `open_store`."""

    def __init__(self, file: IO[bytes], runs: dict[str, Run]) -> None:
        self._file = file
        self._runs = runs

    def __contains__(self, key: str) -> bool:
        return key in self._runs

    def get(self, key: str) -> Run | None:
        """The finished run of that digest."""
        return self._runs.get(key)

    def add(self, run: Run) -> None:
        """Write a finished run down; it is on disk when this returns. One that is there already is not written again."""
        if run.key in self._runs:
            return
        self._file.write(msgspec.json.encode(run) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._runs[run.key] = run


@contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The store in ``folder``, which is made where there is none, locked until it is left. Raises `StoreError`."""
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise StoreError(f"{folder} cannot hold results: {error.strerror}; give another folder with --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(
                f"another evaluation writes to {folder} now; wait for it, or give another folder"
            ) from None
        yield Store(file, _read(file, path))


def _read(file: IO[bytes], path: Path) -> dict[str, Run]:
    """What the file holds, with a torn end cut off."""
    file.seek(0)
    data = file.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        file.truncate(whole)
    runs: dict[str, Run] = {}
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            run = msgspec.json.decode(line, type=Run)
        except msgspec.MsgspecError as error:
            raise StoreError(
                f"{path}, line {number} is no result of an evaluation ({error}); mend or remove the line"
            ) from error
        runs.setdefault(run.key, run)
    return runs
