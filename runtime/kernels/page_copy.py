"""Copies pages between their places and a packed buffer, without the GIL.

Owns the kernel and the check that every block exists; knows nothing of layers. Neighbouring pages go in one ``memcpy``. Stores past
the caches were tried for large copies: a quarter faster to scatter 16 MiB, slower to gather, and a checksum found nothing cached.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from . import compiler
from .machine import load_int32

Bytes = npt.NDArray[np.uint8]
Blocks = npt.NDArray[np.int32]

_memcpy: Any = types.ExternalFunction("memcpy", types.int64(types.int64, types.int64, types.int64))


@compiler.entry(types.int64(*[types.int64] * 7))
def _copy(pages: int, held: int, page_bytes: int, blocks: int, count: int, packed: int, gathers: int) -> int:
    """Copy run after run of neighbouring blocks; or, where a block is not below ``held``, say where it stands, and copy none."""
    for index in range(count):
        if load_int32(blocks + 4 * index) < 0 or load_int32(blocks + 4 * index) >= held:
            return index
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
    return -1


def gather_rows(pages: Bytes, blocks: Blocks, out: Bytes) -> None:
    """``out[i] = pages[blocks[i]]`` for rows of bytes: ``pages`` [held, page bytes], ``out`` as many bytes as the blocks have.

    Raises IndexError, and copies nothing, where a block is not in ``pages``.
    """
    _run(pages, blocks, out, 1)


def scatter_rows(pages: Bytes, blocks: Blocks, data: Bytes) -> None:
    """``pages[blocks[i]] = data[i]`` likewise."""
    _run(pages, blocks, data, 0)


def _run(pages: Bytes, blocks: Blocks, packed: Bytes, gathers: int) -> None:
    held, page_bytes = pages.shape
    blocks = np.ascontiguousarray(blocks, np.int32)
    wrong = _copy(
        pages.ctypes.data, held, page_bytes, blocks.ctypes.data, len(blocks), packed.ctypes.data, gathers
    )  # fmt: skip
    if wrong >= 0:
        raise IndexError(f"block {blocks[wrong]} is not among {held}")
