"""Large float32 arrays on huge pages.

Weights and KV pages are streamed from memory once a step; with 4 KiB pages every 64th cache line waits for an address
translation (two-dimensional under virtualisation). Owns the allocation only: an array frees its memory with its last view.
"""

from __future__ import annotations

import mmap
import threading

import numpy as np
import numpy.typing as npt

from .machine import FLOAT_BYTES

_HUGE_PAGE_BYTES = 2 << 20
_SEGMENT_BYTES = 32 << 20
_CACHE_LINE_BYTES = 64


def allocate(*shape: int) -> npt.NDArray[np.float32]:
    """A zeroed array that begins on a huge page; physical memory is taken as it is first written.

    Raises MemoryError where the address space is exhausted.
    """
    count = int(np.prod(shape))
    size = -(-max(count * FLOAT_BYTES, 1) // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    try:
        memory = mmap.mmap(-1, size + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {size} bytes for an array of shape {shape}: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -int(whole.ctypes.data) % _HUGE_PAGE_BYTES
    return whole[start : start + count * FLOAT_BYTES].view(np.float32).reshape(shape)


class Arena:
    """Hands out pieces of large segments, so that weights of 1 to 3 MB share huge pages without waste.

    A segment is freed when every piece of it is gone; pieces handed out one after the other lie side by side.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segment = np.empty(0, np.float32)
        self._used = 0

    def take(self, count: int) -> npt.NDArray[np.float32]:
        """``count`` zeroed floats that begin on a cache line. Raises MemoryError as `allocate` does."""
        size = -(-count * FLOAT_BYTES // _CACHE_LINE_BYTES) * _CACHE_LINE_BYTES // FLOAT_BYTES
        if size * FLOAT_BYTES > _SEGMENT_BYTES // 2:
            return allocate(count)
        with self._lock:
            if self._used + size > len(self._segment):
                self._segment, self._used = allocate(_SEGMENT_BYTES // FLOAT_BYTES), 0
            piece = self._segment[self._used : self._used + count]
            self._used += size
            return piece
