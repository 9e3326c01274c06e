"""Mapped memory of this process: address space that fills as it is needed, and files in shared memory, on huge pages.

Owns the calls into the operating system (Linux), all of them without the GIL: a step must not wait while a gigabyte is mapped
or given back. Knows nothing of what lies there.

Why address space of its own for what grows: nothing ever moves, so no content is copied, and another thread may read meanwhile.
Why huge pages in shared memory, too: see `collapse`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

HUGE_PAGE_BYTES = 2 << 20

_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MADV_DONTNEED = 4
_MADV_HUGEPAGE = 14
_MADV_POPULATE_READ = 22
"""Linux 5.14: read every page now. Where the kernel is older, pages come as they are first read."""
_MADV_POPULATE_WRITE = 23
"""As above, to write to them."""
_MADV_COLLAPSE = 25
"""Linux 6.1."""
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _Range:
    """``size`` bytes of address space that begin on a huge page, unmapped with the last array over them."""

    def __init__(self, size: int) -> None:
        span = _up(size, HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        base = _map(None, span, _PROT_NONE, flags, -1)
        self.size = size
        self.address = _up(base, HUGE_PAGE_BYTES)
        # numpy takes an array's memory from here, and keeps this object.
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (self.address, False)}
        weakref.finalize(self, _libc.munmap, base, span).atexit = False  # threads may still compute at exit


class AddressSpace:
    """Room for ``size`` bytes that costs nothing until it is opened: private memory that starts as zeros and never moves.

    Raises MemoryError where the address space, or in `open` the memory that the system promises, is exhausted.
    """

    def __init__(self, size: int) -> None:
        self._range = _Range(size)
        self._opened = 0
        self._backed = 0

    def open(self, size: int) -> Bytes:
        """The first ``size`` bytes, for reading and writing. Physical memory is taken as they are first written."""
        end = _up(size, HUGE_PAGE_BYTES)
        if size > self._range.size:
            raise MemoryError(f"{size} bytes were asked for, of address space for {self._range.size}")
        if end > self._opened:
            address, more = self._range.address + self._opened, end - self._opened
            if _libc.mprotect(address, more, mmap.PROT_READ | mmap.PROT_WRITE) != 0:
                raise MemoryError(f"no {more} bytes: {os.strerror(ctypes.get_errno())}")
            _libc.madvise(address, more, _MADV_HUGEPAGE)
            self._opened = end
        return np.asarray(self._range)[:size]

    @property
    def backed(self) -> int:
        """How many of the first bytes `back` put memory behind."""
        return self._backed

    def back(self) -> None:
        """Put physical memory behind one huge page more of what is opened. Any thread may, while others read and write."""
        if self._backed < self._opened:
            _libc.madvise(self._range.address + self._backed, HUGE_PAGE_BYTES, _MADV_POPULATE_WRITE)
            self._backed += HUGE_PAGE_BYTES

    def discard(self, first: int) -> None:
        """Give the physical memory of whole small pages from byte ``first`` on back to the system; they read as zeros."""
        first = _up(first, mmap.PAGESIZE)
        self._backed = min(self._backed, first // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES)
        if first < self._opened:
            _libc.madvise(self._range.address + first, self._opened - first, _MADV_DONTNEED)


def map_file(descriptor: int, size: int) -> Bytes:
    """The first ``size`` bytes of a file, shared with whoever else maps them. Not to be written to, whatever numpy says.

    Raises OSError, and MemoryError where the address space is exhausted.
    """
    mapped = _Range(size)
    if size > 0:
        _map(mapped.address, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor)
    return np.asarray(mapped)


def populate(mapped: Bytes) -> None:
    """Have every page of a mapped file in this process's tables, so that no step has to wait for one."""
    _libc.madvise(int(mapped.ctypes.data), mapped.nbytes, _MADV_POPULATE_READ)


def collapse(mapped: Bytes) -> bool:
    """Put a mapped file of shared memory on huge pages, all but its end; whether it now is.

    The system makes none there by itself (`shmem_enabled` is "never" by default), but does so when it is asked. The file must
    have at least one page in each of them; the others appear. Costs nothing where it is done already, by whichever process.
    """
    size = mapped.nbytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    return size == 0 or _libc.madvise(int(mapped.ctypes.data), size, _MADV_COLLAPSE) == 0


def _map(address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    place = _libc.mmap(address, size, protection, flags, descriptor, 0)
    if place == _FAILED or place is None:
        code = ctypes.get_errno()
        if descriptor < 0:
            raise MemoryError(f"no address space for {size} bytes: {os.strerror(code)}")
        raise OSError(code, os.strerror(code))
    return int(place)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
