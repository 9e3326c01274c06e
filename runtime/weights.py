"""Reads a checkpoint's tensors by name: owns the safetensors format on disk. Knows no model and no device.

Tensors are read with ``pread`` straight into memory of their own: at page-cache speed, like a memory map, but a stage's
resident memory counts only what it keeps, and a file replaced while serving cannot kill the process with SIGBUS.

Format: https://huggingface.co/docs/safetensors/index#format (8 bytes length, a JSON header, then the data).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec
import torch

from .interface import EngineError
from .program import WeightSpec

HEADER_BYTES_MAX = 100 << 20
"""Longest header accepted, the limit of the safetensors library itself."""

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class WeightsError(EngineError):
    """A checkpoint lacks a tensor, is damaged, or does not fit the model; names the file and the tensor."""


class _Header(msgspec.Struct):
    """One tensor's entry in a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    """The index of a sharded checkpoint: tensor name to file name."""

    weight_map: dict[str, str]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: ``offset`` and ``size`` in bytes from the start of the file."""

    file: Path
    offset: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Checkpoint:
    """The safetensors files of one model folder, opened for reading; a context manager.

    Raises `WeightsError` at once where the folder holds no safetensors, an index names a file that is not there, or a
    file is shorter than its header says.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptors: dict[Path, int] = {}
        self._tensors: dict[str, StoredTensor] = {}
        self._files = _files(folder)
        for file in self._files:
            self._tensors.update(_read_header(file))
        self.folder = folder

    def identity(self) -> tuple[tuple[str, int, int, int], ...]:
        """Path, inode, size and time of each file: whether two checkpoints are the same, without reading them.

        Raises `WeightsError` where one of them is gone.
        """
        try:
            facts = [(str(file.resolve()), file.stat()) for file in self._files]
        except OSError as error:
            raise WeightsError(f"{self.folder} has lost a file of its weights: {error}") from error
        return tuple((path, status.st_ino, status.st_size, status.st_mtime_ns) for path, status in facts)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; tensors read so far stay, and a later `read` opens them again."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def stored_bytes(self, spec: WeightSpec) -> int:
        """Bytes on disk of a weight. Raises `WeightsError` where a part of it is missing or has another shape."""
        return sum(part.size for row in self._locate(spec) for part in row)

    def read(
        self, spec: WeightSpec, dtype: torch.dtype, first_row: int = 0, end_row: int | None = None
    ) -> torch.Tensor:
        """Rows ``[first_row, end_row)`` of a weight, in fresh memory; floating-point ones converted to ``dtype``.

        Constants that the program holds itself (rotary frequencies) keep their precision.
        """
        if spec.value is not None:
            return torch.frombuffer(bytearray(spec.value), dtype=getattr(torch, spec.dtype)).reshape(spec.shape)
        rows = self._locate(spec)
        if len(rows) == 1 and rows[0][0].shape == tuple(spec.shape):
            tensor = self._read_rows(rows[0][0], spec.name, first_row, end_row)
        else:
            tensor = torch.empty(len(rows[first_row:end_row]), *spec.shape[1:], dtype=rows[0][0].dtype)
            for place, row in zip(tensor, rows[first_row:end_row], strict=True):
                torch.cat([self._read_rows(part, spec.name, 0, None) for part in row], out=place)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def _locate(self, spec: WeightSpec) -> list[list[StoredTensor]]:
        """Where a weight lies: one row of one tensor, or for each row of its first axis the parts to be joined.

        A name is looked for as it is, as the one it is tied to (checkpoints of tied models leave the head out), and
        without its first part (checkpoints written from a base model, as GPT-2's on the hub, lack the base's prefix).
        """
        whole = self._find(spec.name, *((spec.tied_to,) if spec.tied_to else ()))
        if whole is not None:
            rows, shape = [[whole]], whole.shape
        else:
            found = [[self._find(key) for key in keys] for keys in spec.stacked]
            rows = [[part for part in row if part is not None] for row in found]
            if not rows or any(None in row for row in found):
                missing = next((key for keys in spec.stacked for key in keys if self._find(key) is None), spec.name)
                raise WeightsError(
                    f"{self.folder} has no tensor {missing!r}; the checkpoint does not belong to this model"
                )
            heights = [sum(part.shape[0] for part in row) for row in rows]
            shape = (len(rows), heights[0], *rows[0][0].shape[1:])
        if shape != tuple(spec.shape):
            raise WeightsError(
                f"{rows[0][0].file} holds {spec.name!r} with shape {list(shape)}, the model needs {list(spec.shape)}"
            )
        return rows

    def _find(self, *names: str) -> StoredTensor | None:
        spellings = (*names, *(name.partition(".")[2] for name in names))
        return next((self._tensors[name] for name in spellings if name in self._tensors), None)

    def _read_rows(self, stored: StoredTensor, name: str, first_row: int, end_row: int | None) -> torch.Tensor:
        shape, offset, size = stored.shape, stored.offset, stored.size
        if shape and (first_row or end_row is not None):
            row_bytes = size // max(shape[0], 1)
            rows = len(range(shape[0])[first_row:end_row])
            shape, offset, size = (rows, *shape[1:]), offset + first_row * row_bytes, rows * row_bytes
        tensor = torch.empty(shape, dtype=stored.dtype)
        if size == 0:
            return tensor
        target: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
        done = 0
        while done < size:
            count = os.preadv(self._descriptor(stored.file), [target[done:]], offset + done)
            if count == 0:
                raise WeightsError(f"{stored.file} ends inside tensor {name!r}; the file was truncated, fetch it again")
            done += count
        return tensor

    def _descriptor(self, file: Path) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = os.open(file, os.O_RDONLY)
        return self._descriptors[file]


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, by its index where it has one."""
    index = folder / INDEX_FILE
    if index.exists():
        try:
            names = sorted(set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()))
        except msgspec.MsgspecError as error:
            raise WeightsError(f"{index} is not a safetensors index: {error}") from error
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise WeightsError(f"{index} names {missing[0]}, which is not in the folder; the download is incomplete")
        return [folder / name for name in names]
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    raise WeightsError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; give the folder of a converted model")


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, checked against the file's length."""
    length = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if length < 8 or header_bytes > min(length - 8, HEADER_BYTES_MAX):
            raise WeightsError(f"{file} is not a safetensors file or was truncated inside its header; fetch it again")
        header = stream.read(header_bytes)
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(entry, type=_Header) for name, entry in raw.items()}
    except msgspec.MsgspecError as error:
        raise WeightsError(f"{file} has a header that is not safetensors': {error}") from error
    return {name: _located(file, name, entry, 8 + header_bytes, length) for name, entry in entries.items()}


def _located(file: Path, name: str, entry: _Header, data_start: int, length: int) -> StoredTensor:
    """One checked entry."""
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise WeightsError(f"{file} holds {name!r} as {entry.dtype}, which is not supported; convert it to F32 or BF16")
    start, end = entry.data_offsets
    if data_start + end > length:
        raise WeightsError(f"{file} ends before tensor {name!r} is complete; the file was truncated, fetch it again")
    elements = 1
    for extent in entry.shape:
        elements *= extent
    if end - start != elements * dtype.itemsize or start < 0:
        raise WeightsError(f"{file} holds {name!r} with offsets that do not match its shape; the file is damaged")
    return StoredTensor(file, data_start + start, end - start, dtype, tuple(entry.shape))
