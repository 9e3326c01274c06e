"""Converted models in the cache: whole or not there, whoever else is converting.

Owns the publication of a folder and its place; knows nothing of what a conversion does.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..cache_folder import cache_folder
from .model_folder import BrokenCheckpointError, ModelError, ModelFolder, open_model_folder

CONVERSION_VERSION = 1
"""Bumped when the same source gives other bytes; folders made by another version are not used."""


def converted_model(name: str, build: Callable[[Path], None]) -> ModelFolder:
    """The converted model called ``name``, made by ``build`` where it is missing or has been damaged since.

    Raises what ``build`` raises, and `ModelError` where the disk refuses.
    """
    folder = converted_folder(name)
    build_once(folder, build)
    try:
        return open_model_folder(folder)
    except BrokenCheckpointError:  # bytes lost after the conversion, by a power cut or by hand: make it again
        with _locked(_lock_of(folder)):
            shutil.rmtree(folder)
    build_once(folder, build)
    return open_model_folder(folder)


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """``folder``, made by ``build(partial)`` if it is not there; it appears whole or not at all.

    ``build`` fills an empty folder beside the final one, and a rename publishes it. Processes that want the same folder
    at once wait for each other on a file lock, which the kernel drops when its holder dies; what a killed build left
    behind is thrown away by the next. Raises what ``build`` raises, and `ModelError` where the disk refuses.
    """
    if folder.is_dir():
        return folder
    try:
        with _locked(_lock_of(folder)):
            if not folder.is_dir():
                _build(folder, build)
    except OSError as error:
        raise ModelError(f"cannot write {folder} ({error}); free space there or set FLEXPIPE_CACHE") from error
    return folder


def converted_folder(name: str) -> Path:
    """Where the converted model called ``name`` belongs, whether or not it is there yet."""
    return cache_folder("models", f"v{CONVERSION_VERSION}") / name


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
