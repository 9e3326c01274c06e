"""What kernels accept: rows of float32 in memory, as torch CPU tensors or numpy arrays, without importing torch.

Owns the step from such an array to (address, rows, bytes between rows), its checks, and making results of the same kind.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
"""A torch CPU tensor or numpy array of float32; rows (dimension 0) may be apart, each row itself is dense."""

_float32_dtypes: set[Any] = {np.dtype(np.float32)}


class KernelInputError(ValueError):
    """An array that the kernels cannot read; the sentence says what it should have been."""


def _check_dtype(array: Array) -> None:
    if array.dtype in _float32_dtypes:
        return
    if str(array.dtype) != "torch.float32":
        raise KernelInputError(f"kernels compute in float32, not {array.dtype}: convert the array first")
    _float32_dtypes.add(array.dtype)


def rows_of(array: Array) -> tuple[int, int, int]:
    """(address, rows, bytes between rows) of an array of two or three dimensions.

    Raises KernelInputError for another dtype, device or a row that is not dense.
    """
    _check_dtype(array)
    if isinstance(array, np.ndarray):
        address = int(array.ctypes.data)
        strides = tuple(step // 4 for step in array.strides)
    else:
        if array.is_cuda:
            raise KernelInputError(
                "kernels read CPU memory: move the tensor to the CPU or use the device's own operators"
            )
        address, strides = array.data_ptr(), array.stride()
    shape = array.shape
    dense = strides[-1] == 1 or shape[-1] == 1
    if len(strides) == 3:
        dense = dense and (strides[1] == shape[2] or shape[1] == 1)
    if not dense and shape[0] > 0:
        raise KernelInputError(f"each row must be dense, but shape {tuple(shape)} has strides {strides}: copy it first")
    return address, shape[0], strides[0] * 4


def empty_beside(array: Array, shape: tuple[int, ...]) -> Array:
    """An uninitialised float32 array of the same kind as ``array``."""
    return np.empty(shape, np.float32) if isinstance(array, np.ndarray) else array.new_empty(shape)
