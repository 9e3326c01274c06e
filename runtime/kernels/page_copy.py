"""Copies pages between their places and a packed buffer, without the GIL.

Owns the kernel; knows nothing of layers. Neighbouring pages go in one copy, which the C library's ``memcpy`` does best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from . import compiler
from .machine import load_int32

_memcpy: Any = types.ExternalFunction("memcpy", types.int64(types.int64, types.int64, types.int64))


@compiler.entry(types.void(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64))
def _copy(pages: int, page_bytes: int, blocks: int, count: int, packed: int, gathers: int) -> None:
    """Run after run of neighbouring blocks, from the pages or to them."""
    first = 0
    while first < count:
        block = load_int32(blocks + 4 * first)
        end = first + 1
        while end < count and load_int32(blocks + 4 * end) == block + end - first:
            end += 1
        place, beside, size = pages + block * page_bytes, packed + first * page_bytes, (end - first) * page_bytes
        if gathers != 0:
            _memcpy(beside, place, size)
        else:
            _memcpy(place, beside, size)
        first = end


def gather_rows(pages: npt.NDArray[np.uint8], blocks: npt.NDArray[np.int32], out: npt.NDArray[np.uint8]) -> None:
    """``out[i] = pages[blocks[i]]`` for contiguous rows of bytes. The caller checks that blocks and sizes fit."""
    _run(pages, blocks, out, 1)


def scatter_rows(pages: npt.NDArray[np.uint8], blocks: npt.NDArray[np.int32], data: npt.NDArray[np.uint8]) -> None:
    """``pages[blocks[i]] = data[i]`` likewise."""
    _run(pages, blocks, data, 0)


def _run(
    pages: npt.NDArray[np.uint8], blocks: npt.NDArray[np.int32], packed: npt.NDArray[np.uint8], gathers: int
) -> None:
    blocks = np.ascontiguousarray(blocks, np.int32)
    _copy(pages.ctypes.data, pages.shape[1], blocks.ctypes.data, len(blocks), packed.ctypes.data, gathers)
