"""A GGUF file's header and tensors, read from a memory map.

Owns the format (versions 2 and 3, little-endian, as documented with ggml). Dequantising is the ``gguf`` package's work.
The header is read here because that package's reader keeps a numpy array per string: 2.6 s for SmolLM2's vocabulary of
49,152, where one pass over the map takes 0.3 s and notices a cut-off file. Knows no model family and no torch.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .model_folder import BrokenCheckpointError, UnknownArchitectureError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DIMENSIONS_MAX = 4
DEFAULT_ALIGNMENT_BYTES = 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One stored tensor. ``shape`` is in torch's order (slowest axis first); ``data`` is its raw blocks, not copied."""

    path: Path
    name: str
    shape: tuple[int, ...]
    ggml_type: int
    data: memoryview

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The tensor as float32 of ``shape``; raises `BrokenCheckpointError` where a value is no finite number."""
        with np.errstate(invalid="ignore", over="ignore"):  # found below, by name
            values = self._values()
        if not np.isfinite(values).all():
            raise BrokenCheckpointError(
                f"{self.path}: the tensor {self.name!r} holds values that are no finite numbers; fetch it again"
            )
        return values.reshape(self.shape)

    def _values(self) -> npt.NDArray[np.float32]:
        import gguf

        kind = gguf.GGMLQuantizationType(self.ggml_type)
        if kind == gguf.GGMLQuantizationType.F32:
            return np.frombuffer(self.data, np.float32)
        if kind == gguf.GGMLQuantizationType.F16:
            return np.frombuffer(self.data, np.float16).astype(np.float32)
        try:
            blocks = np.frombuffer(self.data, np.uint8).reshape(gguf.quant_shape_to_byte_shape(self.shape, kind))
            values: npt.NDArray[np.float32] = gguf.dequantize(blocks, kind)
        except NotImplementedError:
            raise UnknownArchitectureError(
                f"{self.path}: the tensor {self.name!r} is stored as {kind.name}, which cannot be dequantised here; "
                "use another quantisation of this model (Q4_K, Q8_0, F16, ...)"
            ) from None
        except ValueError as error:  # rows that are no whole number of blocks
            raise BrokenCheckpointError(
                f"{self.path}: the tensor {self.name!r} is damaged ({error}); fetch it again"
            ) from error
        return values


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A whole file: ``metadata`` by key (strings, numbers, lists) and ``tensors`` by name, in the file's order."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the family ("llama", "qwen2", ...)."""
        return str(self.metadata["general.architecture"])


def read_gguf(path: Path) -> GgufFile:
    """Map ``path`` and read its header; tensor data is touched only when it is dequantised.

    Raises `BrokenCheckpointError` where the file is not GGUF, is cut short, or has lengths that lead outside of it.
    """
    try:
        with path.open("rb") as file:
            image = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
        raise BrokenCheckpointError(f"{path} cannot be read ({error})") from error
    try:
        return _HeaderReader(path, image).read()
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise BrokenCheckpointError(f"{path} is cut short or damaged; fetch it again") from error


class _HeaderReader:
    """One pass over the header; a length that leads beyond the file is an error before anything is read by it."""

    def __init__(self, path: Path, image: memoryview) -> None:
        self._path = path
        self._image = image
        self._at = 0

    def read(self) -> GgufFile:
        if bytes(self._image[:4]) != MAGIC:
            raise BrokenCheckpointError(f"{self._path} is not a GGUF file")
        self._at = 4
        (version,) = self._take("<I")
        if version not in VERSIONS:
            raise BrokenCheckpointError(f"{self._path} is GGUF version {version}; versions 2 and 3 are read here")
        tensor_count, metadata_count = self._take("<QQ")
        metadata = dict(self._entry() for _ in range(metadata_count))
        if not isinstance(metadata.get("general.architecture"), str):
            raise BrokenCheckpointError(f"{self._path} does not say its architecture; it holds no model")
        places = [self._tensor_place() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
        if not isinstance(alignment, int) or alignment < 1:
            raise BrokenCheckpointError(f"{self._path} states an impossible alignment ({alignment!r}); fetch it again")
        start = -(-self._at // alignment) * alignment
        tensors = {name: self._tensor(name, shape, kind, start + offset) for name, shape, kind, offset in places}
        return GgufFile(self._path, metadata, tensors)

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._image, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        (length,) = struct.unpack_from("<Q", self._image, self._at)
        start, end = self._at + 8, self._at + 8 + length
        if end > len(self._image):
            raise BrokenCheckpointError(f"{self._path} is cut short: its header ends inside a string; fetch it again")
        self._at = end
        return str(self._image[start:end], "utf-8")

    def _entry(self) -> tuple[str, Any]:
        key = self._string()
        (kind,) = self._take("<I")
        return key, self._value(kind)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise BrokenCheckpointError(f"{self._path} holds metadata of unknown type {kind}; fetch it again")
        return self._take("<" + _SCALARS[kind])[0]

    def _array(self) -> list[Any]:
        kind, count = self._take("<IQ")
        if count > len(self._image) - self._at:  # every element takes at least a byte
            raise BrokenCheckpointError(f"{self._path} is cut short: its header ends inside a list; fetch it again")
        if kind in _SCALARS:
            return list(self._take(f"<{count}{_SCALARS[kind]}"))
        if kind != _STRING:
            raise BrokenCheckpointError(f"{self._path} holds lists of unknown type {kind}; fetch it again")
        return [self._string() for _ in range(count)]

    def _tensor_place(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (dimensions,) = self._take("<I")
        if dimensions > DIMENSIONS_MAX:
            raise BrokenCheckpointError(f"{self._path}: the tensor {name!r} has {dimensions} axes; fetch it again")
        shape = self._take(f"<{dimensions}Q")[::-1]  # ggml counts the fastest axis first, torch last
        kind, offset = self._take("<IQ")
        return name, shape, kind, offset

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> GgufTensor:
        import gguf

        try:
            values_per_block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise BrokenCheckpointError(
                f"{self._path}: the tensor {name!r} is stored as ggml type {kind}, which is not known here; "
                "use another quantisation of this model (Q4_K, Q8_0, F16, ...)"
            ) from None
        end = start + prod(shape) // values_per_block * block_bytes
        if end > len(self._image):
            raise BrokenCheckpointError(
                f"{self._path} is cut short: the tensor {name!r} ends at byte {end}, "
                f"the file at {len(self._image)}; fetch it again"
            )
        return GgufTensor(self._path, name, shape, kind, self._image[start:end])
