"""What kernels accept: rows of float32 in memory, as torch CPU tensors or numpy arrays, without importing torch.

Owns the step from such an array to (address, rows, bytes between rows), its checks, and making results of the same kind.
A decode step takes it 20 times a layer, so the usual case, a contiguous tensor, is told apart by four attribute reads.
"""

from __future__ import annotations

import sys
from math import prod
from typing import Any

import numpy as np

from .machine import FLOAT_BYTES

Array = Any
"""A torch CPU tensor or numpy array of float32. Its rows may be apart (a slice of a wider array), each itself is dense."""


class KernelInputError(ValueError):
    """An array that the kernels cannot read; the sentence says what it should have been."""


_torch_float32: Any = None  # known once torch is


def rows_of(array: Array, width: int) -> tuple[int, int, int]:
    """(address, rows, bytes between rows) of an array whose last dimensions make rows of ``width`` floats.

    Raises KernelInputError for another dtype or device, for a row that is not dense and for rows that are not evenly apart.
    """
    if type(array) is np.ndarray:
        return _ndarray_rows(array, width)
    if array.dtype is not _torch_float32 or not array.is_cpu:
        _check_tensor(array)
    shape = array.shape
    if array.is_contiguous() and shape[-1] == width:
        return array.data_ptr(), array.numel() // width, width * FLOAT_BYTES
    rows, step = _collapse(shape, array.stride(), width)
    return array.data_ptr(), rows, step * FLOAT_BYTES


def address_of(vector: Array) -> int:
    """Address of a dense vector, a layer's weight or bias."""
    return rows_of(vector, vector.shape[0])[0]


def _ndarray_rows(array: np.ndarray[Any, Any], width: int) -> tuple[int, int, int]:
    if array.dtype != np.float32:
        raise KernelInputError(f"kernels compute in float32, not {array.dtype}: convert the array first")
    rows, step = _collapse(array.shape, tuple(stride // FLOAT_BYTES for stride in array.strides), width)
    return int(array.ctypes.data), rows, step * FLOAT_BYTES


def _check_tensor(tensor: Array) -> None:
    """Raise for what is not a float32 CPU tensor; from the first good one on the dtype is known by identity."""
    global _torch_float32  # noqa: PLW0603 - torch is not imported here, so its dtype is learnt
    _torch_float32 = sys.modules["torch"].float32
    if tensor.dtype is not _torch_float32:
        raise KernelInputError(f"kernels compute in float32, not {tensor.dtype}: convert the tensor first")
    if not tensor.is_cpu:
        raise KernelInputError("kernels read CPU memory: move the tensor to the CPU or use its device's own operators")


def _collapse(shape: tuple[int, ...], strides: tuple[int, ...], width: int) -> tuple[int, int]:
    """(rows, floats between rows) of an array of that shape and strides (in floats)."""
    first = len(shape)
    dense = 1
    while first > 0 and (dense < width or first == len(shape)):
        first -= 1
        if shape[first] > 1 and strides[first] != dense and prod(shape) > 0:
            raise KernelInputError(
                f"each row must be dense, but {tuple(shape)} has strides {tuple(strides)}: copy it first"
            )
        dense *= shape[first]
    if dense != width:
        raise KernelInputError(f"rows of {width} numbers were wanted, but the array's shape is {tuple(shape)}")
    rows, step = 1, width
    for size, stride in zip(reversed(shape[:first]), reversed(strides[:first]), strict=True):
        if size == 1:
            continue
        if rows == 1:
            step = stride
        elif stride != rows * step:
            raise KernelInputError(
                f"rows must be evenly apart, but {tuple(shape)} has strides {tuple(strides)}: copy it first"
            )
        rows *= size
    return rows, step


def empty_beside(array: Array, shape: tuple[int, ...]) -> Array:
    """An uninitialised float32 array of the same kind as ``array``."""
    return np.empty(shape, np.float32) if type(array) is np.ndarray else array.new_empty(shape)
