"""The folders of a daemon: logs, which stay, and sockets, which do not."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

LOG_FOLDERS_KEPT = 20
"""Log folders of earlier runs that stay in the state folder; older ones are removed."""


def log_folder(wanted: Path | None) -> Path:
    """``wanted``, or a fresh folder in the user's state folder; there the oldest of earlier runs are removed."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted
    root = _log_root()
    root.mkdir(parents=True, exist_ok=True)
    for old in sorted(root.iterdir())[: -(LOG_FOLDERS_KEPT - 1)]:
        shutil.rmtree(old, ignore_errors=True)
    folder = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir()
    return folder


def newest_log_folder() -> Path | None:
    """That of the last server that was started without a folder of its own; None where there is none."""
    root = _log_root()
    return max(root.iterdir(), default=None) if root.is_dir() else None


def _log_root() -> Path:
    return platformdirs.user_state_path("flexpipe") / "logs"


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A folder for one daemon's sockets that only its user can enter; gone afterwards. Short, since socket paths are."""
    with tempfile.TemporaryDirectory(prefix="flexpipe-") as folder:
        yield Path(folder)
