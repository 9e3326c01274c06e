"""A server's folder in shared memory, where its workers keep one copy of the weights for all of them.

Shared memory outlives its processes, so a server that was killed leaves its folder behind. Each folder is locked by its
server for as long as that lives; whoever starts next removes those that nobody locks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - memory is the point; folders in it are this user's only
_LOCK = "lock"


@contextmanager
def warm_folder(root: Path = SHARED_MEMORY) -> Iterator[str]:
    """A fresh folder that only this user can enter, gone afterwards; "" where there is no shared memory."""
    prefix = f"flexpipe-{os.getuid()}-"
    _sweep(root, prefix)
    try:
        folder, lock = _locked_folder(root, prefix)
    except OSError:
        yield ""
        return
    try:
        with lock:
            yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def held_bytes(folder: Path) -> int:
    """How much the copy takes now. Workers rename and remove files meanwhile; those do not count."""
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _locked_folder(root: Path, prefix: str) -> tuple[Path, TextIO]:
    """A fresh folder, and the lock on it that lasts while the file is open. Raises `OSError` where there can be none."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        lock = (folder / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():
            return folder, lock
        lock.close()  # another server that starts now took it for one that is left behind, before it was locked


def _sweep(root: Path, prefix: str) -> None:
    """Remove the folders of servers that are gone."""
    for folder in root.glob(f"{prefix}*"):
        with suppress(OSError), (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
