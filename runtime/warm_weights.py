"""This host's shared copy of atoms' weights, as the backend lays them out: loaded once, mapped by every worker.

A file per atom in a folder in memory (tmpfs) that the daemon made. The first worker that reads an atom from the checkpoint
writes it there; every later one maps the file, which costs next to no time, no processor and no memory. It stays when workers
go: what the paper calls parameters kept in host memory (section 6). A file appears whole or not at all.

Owns the file format. Everything that decides the bytes is in the key (`warm_key`), so a stale file is one of another name.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

FORMAT_VERSION = 1
_MAGIC = b"flexwarm"
_ALIGNMENT_BYTES = 64


class FrozenArray(msgspec.Struct, frozen=True):
    """Where an array lies in the file's payload."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


class FrozenWeight(msgspec.Struct, frozen=True):
    """One weight: a tensor, or a form of the backend's own that is made of ``arrays`` and plain ``facts``."""

    form: str
    facts: dict[str, int]
    arrays: tuple[FrozenArray, ...] = ()
    parts: tuple[FrozenWeight, ...] = ()


class _Header(msgspec.Struct, frozen=True):
    weights: tuple[FrozenWeight, ...]
    payload_bytes: int


def warm_key(*parts: object) -> str:
    """A file name for weights that ``parts`` decide."""
    return hashlib.sha256(repr((FORMAT_VERSION, *parts)).encode()).hexdigest()


class WarmWeights:
    """The files of one folder; without one, nothing is ever found or kept."""

    def __init__(self, folder: str, backend: Any) -> None:
        self._folder = Path(folder) if folder else None
        self._backend = backend

    def fetch(self, key: str) -> tuple[Any, ...] | None:
        """The weights kept under ``key``, mapped in place; None where there are none, or none that can be read."""
        if self._folder is None:
            return None
        try:
            payload, header = _map(self._folder / key)
        except (OSError, ValueError, msgspec.MsgspecError):
            return None
        return tuple(self._thaw(weight, payload) for weight in header.weights)

    def keep(self, key: str, weights: Sequence[Any]) -> tuple[Any, ...]:
        """Keep ``weights`` under ``key`` and give them back as they now are: mapped, or as they were where there is no room."""
        if self._folder is None:
            return tuple(weights)
        arrays: list[np.ndarray[Any, Any]] = []
        frozen = _Freezer(self._backend, arrays)
        header = _Header(tuple(frozen.freeze(weight) for weight in weights), frozen.size)
        partial = self._folder / f"{key}.{os.getpid()}.partial"
        try:
            _write(partial, header, arrays)
            partial.replace(self._folder / key)
        except OSError:  # no room: the weights serve from where they are
            with suppress(OSError):
                partial.unlink()
            return tuple(weights)
        return self.fetch(key) or tuple(weights)

    def _thaw(self, frozen: FrozenWeight, payload: memoryview) -> Any:
        arrays = [_array(array, payload) for array in frozen.arrays]
        if frozen.form == "tensor":
            return torch.from_numpy(arrays[0])
        return self._backend.thaw(
            frozen.form, frozen.facts, arrays, [self._thaw(part, payload) for part in frozen.parts]
        )


class _Freezer:
    """Lays arrays out one after the other, each on a cache line."""

    def __init__(self, backend: Any, arrays: list[np.ndarray[Any, Any]]) -> None:
        self.size = 0
        self._backend = backend
        self._arrays = arrays

    def freeze(self, weight: Any) -> FrozenWeight:
        """Describe a weight and remember its arrays."""
        if isinstance(weight, torch.Tensor):
            return FrozenWeight("tensor", {}, (self._place(weight.detach().contiguous().numpy()),))
        form, facts, arrays, parts = self._backend.freeze(weight)
        placed = tuple(self._place(array) for array in arrays)
        return FrozenWeight(form, facts, placed, tuple(self.freeze(part) for part in parts))

    def _place(self, array: np.ndarray[Any, Any]) -> FrozenArray:
        placed = FrozenArray(array.dtype.str, array.shape, self.size)
        self._arrays.append(array)
        self.size += array.nbytes + -array.nbytes % _ALIGNMENT_BYTES
        return placed


def _write(path: Path, header: _Header, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
    encoded = msgspec.msgpack.encode(header)
    start = len(_MAGIC) + 8 + len(encoded)
    with path.open("wb") as file:
        file.write(_MAGIC + len(encoded).to_bytes(8, "little") + encoded)
        file.write(bytes(-start % _ALIGNMENT_BYTES))
        for array in arrays:
            file.write(memoryview(np.ascontiguousarray(array)).cast("B") if array.nbytes else b"")
            file.write(bytes(-array.nbytes % _ALIGNMENT_BYTES))


def _map(path: Path) -> tuple[memoryview, _Header]:
    with path.open("rb") as file:
        # Private and writable, so that torch takes it; nobody writes, so every page stays shared. Touched now, not in a step.
        memory = mmap.mmap(
            file.fileno(), 0, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    whole = memoryview(memory)
    length = int.from_bytes(whole[len(_MAGIC) : len(_MAGIC) + 8], "little")
    start = len(_MAGIC) + 8 + length
    if bytes(whole[: len(_MAGIC)]) != _MAGIC or start > len(whole):
        raise ValueError(f"{path} is no file of weights")
    header = msgspec.msgpack.decode(whole[len(_MAGIC) + 8 : start], type=_Header)
    payload = whole[start + -start % _ALIGNMENT_BYTES :]
    if len(payload) != header.payload_bytes:
        raise ValueError(f"{path} is cut off")
    return payload, header


def _array(array: FrozenArray, payload: memoryview) -> np.ndarray[Any, Any]:
    count = int(np.prod(array.shape))
    return np.frombuffer(payload, np.dtype(array.dtype), count, array.offset).reshape(array.shape)
