"""This host's shared copy of atoms' weights, as the backend lays them out: made once, mapped by every worker.

A file per atom in a folder in memory (tmpfs) that the daemon made. The first worker that reads an atom from the checkpoint
writes it there; every later one maps the file, which costs next to no time, no processor and no memory. It stays when workers
go: what the paper calls parameters kept in host memory (section 6). A file appears whole or not at all.

Owns the file format. Everything that decides the bytes is in the key (`warm_key`), so a stale file is one of another name.
The description of what lies where carries a checksum; the weights themselves do not, any more than those in private memory.

Weights are computed with where they are mapped, on huge pages (`mapped_memory.collapse`). SmolLM2's 651 MB on an AMD EPYC, one
thread, rounds taking turns: a decode step takes 1.006 times (batch 1) and 1.02 times (8) what it takes from private memory, the
medians' ratio; on small pages, where the system gives no others, 1.04 times. Mapping them all takes 21 ms, reading them from the
checkpoint 1,000.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import msgspec
import numpy as np
import torch

from .mapped_memory import HUGE_PAGE_BYTES, Bytes, collapse, map_file, populate

FORMAT_VERSION = 2
"""Bumped when the same weights give other bytes: this format, the packed layout of a backend, a pass over graphs."""

_MAGIC = b"flexwarm"
_DIGEST_BYTES = 32
_ALIGNMENT_BYTES = 64
_HEADER_START = len(_MAGIC) + 8 + _DIGEST_BYTES


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


@runtime_checkable
class SharedForm(Protocol):
    """How a backend's packed weights become arrays and plain numbers, and weights again over arrays that lie elsewhere."""

    def freeze(self, weight: Any) -> tuple[str, dict[str, int], list[np.ndarray[Any, Any]], list[Any]]:
        """Form, facts, arrays, and parts that are weights themselves."""
        ...

    def thaw(self, form: str, facts: dict[str, int], arrays: list[np.ndarray[Any, Any]], parts: list[Any]) -> Any:
        """The weight again. ``arrays`` begin on cache lines, must not be written to, and are not copied."""
        ...


def warm_key(*parts: object) -> str:
    """A file name for weights that ``parts`` decide."""
    return hashlib.sha256(repr((FORMAT_VERSION, *parts)).encode()).hexdigest()


class WarmWeights:
    """The files of one folder. Without a folder, or a form that can be shared, nothing is ever found or kept.

    Nothing here ever fails a load.
    """

    def __init__(self, folder: str, form: SharedForm | None) -> None:
        self._folder = Path(folder) if folder and form is not None else None
        self._form = form

    def holds(self, key: str) -> bool:
        """Whether there is a file under ``key``; it may turn out to be damaged."""
        return self._folder is not None and (self._folder / key).exists()

    def fetch(self, key: str) -> tuple[Any, ...] | None:
        """The weights kept under ``key``, mapped in place; None where there are none. A damaged file is removed."""
        if self._folder is None or self._form is None:
            return None
        file = self._folder / key
        try:
            header, payload = _map(file)
            return tuple(_thaw(weight, payload, self._form) for weight in header.weights)
        except FileNotFoundError:
            return None
        except (OSError, MemoryError, ValueError, msgspec.MsgspecError):
            with suppress(OSError):
                file.unlink()
            return None

    def keep(self, key: str, weights: Sequence[Any]) -> tuple[Any, ...]:
        """Keep ``weights`` under ``key`` and give them back as they now are: mapped, or as they were where there is no room."""
        if self._folder is None or self._form is None:
            return tuple(weights)
        freezer = _Freezer(self._form)
        header = _Header(tuple(freezer.freeze(weight) for weight in weights), freezer.size)
        partial = self._folder / f"{key}.{os.getpid()}.partial"
        try:
            with partial.open("w+b") as file:
                _write(file, header, freezer.arrays)
            partial.chmod(0o400)
            with suppress(FileExistsError):  # another worker was quicker: its copy serves both
                (self._folder / key).hardlink_to(partial)
        except (OSError, MemoryError):  # no room: the weights serve from where they are
            return tuple(weights)
        finally:
            with suppress(OSError):
                partial.unlink()
        return self.fetch(key) or tuple(weights)


class _Freezer:
    """Lays arrays out one after the other, each on a cache line."""

    def __init__(self, form: SharedForm) -> None:
        self.size = 0
        self.arrays: list[np.ndarray[Any, Any]] = []
        self._form = form

    def freeze(self, weight: Any) -> FrozenWeight:
        """Describe a weight and remember its arrays."""
        if isinstance(weight, torch.Tensor):
            return FrozenWeight("tensor", {}, (self._place(weight.detach().contiguous().numpy()),))
        form, facts, arrays, parts = self._form.freeze(weight)
        placed = tuple(self._place(array) for array in arrays)
        return FrozenWeight(form, facts, placed, tuple(self.freeze(part) for part in parts))

    def _place(self, array: np.ndarray[Any, Any]) -> FrozenArray:
        placed = FrozenArray(array.dtype.str, array.shape, self.size)
        self.arrays.append(array)
        self.size += _aligned(array.nbytes)
        return placed


def _thaw(frozen: FrozenWeight, payload: Bytes, form: SharedForm) -> Any:
    arrays = [_array(array, payload) for array in frozen.arrays]
    if frozen.form == "tensor":
        return torch.from_numpy(arrays[0])
    return form.thaw(frozen.form, frozen.facts, arrays, [_thaw(part, payload, form) for part in frozen.parts])


def _write(file: BinaryIO, header: _Header, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
    """Write header and arrays, on huge pages where the system gives some. Raises OSError where the folder is full."""
    encoded = msgspec.msgpack.encode(header)
    start = _HEADER_START + len(encoded)
    _make_room(file, _aligned(start) + header.payload_bytes)
    file.write(_MAGIC + len(encoded).to_bytes(8, "little") + hashlib.sha256(encoded).digest() + encoded)
    file.write(bytes(_aligned(start) - start))
    for array in arrays:
        if array.nbytes:
            file.write(np.ascontiguousarray(array).data.cast("B"))
        file.write(bytes(_aligned(array.nbytes) - array.nbytes))


def _make_room(file: BinaryIO, size: int) -> None:
    """Huge pages for a file that is still empty: then filling it costs a seventh of what small pages cost.

    Written to through the file, never through the mapping: in a full folder a write fails, a mapping kills the process.
    """
    for place in range(0, size, HUGE_PAGE_BYTES):
        os.pwrite(file.fileno(), b"\0", place)
    file.truncate(size)
    collapse(map_file(file.fileno(), size))


def _map(path: Path) -> tuple[_Header, Bytes]:
    """A file's header and payload. Raises OSError, ValueError or MsgspecError where it is not whole."""
    with path.open("rb") as file:
        whole = map_file(file.fileno(), os.fstat(file.fileno()).st_size)
    populate(whole)
    length = int.from_bytes(whole[len(_MAGIC) : len(_MAGIC) + 8].tobytes(), "little")
    start = _HEADER_START + length
    if whole[: len(_MAGIC)].tobytes() != _MAGIC or start > len(whole):
        raise ValueError(f"{path} is no file of weights")
    encoded = whole[_HEADER_START:start].tobytes()
    if hashlib.sha256(encoded).digest() != whole[len(_MAGIC) + 8 : _HEADER_START].tobytes():
        raise ValueError(f"{path} has a damaged header")
    header = msgspec.msgpack.decode(encoded, type=_Header)
    payload = whole[_aligned(start) :]
    if len(payload) != header.payload_bytes:
        raise ValueError(f"{path} is cut off")
    return header, payload


def _array(array: FrozenArray, payload: Bytes) -> np.ndarray[Any, Any]:
    count = prod(array.shape)
    return np.frombuffer(payload, np.dtype(array.dtype), count, array.offset).reshape(array.shape)


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT_BYTES
