"""How the kernels are compiled: explicit signatures, no GIL, and machine code kept between processes.

Owns numba's options and the place of the code cache. Knows nothing of what the kernels compute.

Numba decides whether cached code is stale by looking at one source file only, so a change in `tile` would go unnoticed in
`linear`. The cache therefore lives in a folder named by a digest of all of this package's sources and of numba's version;
numba itself tells CPUs apart inside it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numba.extending
import platformdirs
from numba import types

ADDRESS = types.int64
"""Kernels take memory as plain integers: unboxing one costs 30 ns, a numpy array 300 ns, a tensor's view 1.5 us."""

TASK = types.void(types.int64, types.int64, types.int64)
"""A task's signature: address of its arguments, chunk number, thread number (see `threads`)."""


_config: Any = numba.config


@cache
def _cache_folder() -> str:
    """Where compiled kernels of exactly these sources live; the user's NUMBA_CACHE_DIR is respected as the parent."""
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    parent = os.environ.get("NUMBA_CACHE_DIR") or platformdirs.user_cache_dir("flexpipe")
    return str(Path(parent) / f"kernels-{digest.hexdigest()[:16]}")


def _cached(decorate: Callable[[], Any]) -> Any:
    """Run a numba decorator with its cache pointed at our folder, leaving other users of numba as they were."""
    before = _config.CACHE_DIR
    _config.CACHE_DIR = _cache_folder()
    try:
        return decorate()
    finally:
        _config.CACHE_DIR = before


def entry(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function that Python calls: compiled at import for one signature, or read from the cache."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        compile_ = numba.njit(signature, cache=True, nogil=True, error_model="numpy")
        compiled: Callable[..., Any] = _cached(lambda: compile_(function))
        return compiled

    return decorate


def task(function: Callable[[int, int, int], None]) -> int:
    """Compile a function that the threads run chunk by chunk; what comes back is its address."""
    callback = _cached(lambda: numba.cfunc(TASK, cache=True, nogil=True, error_model="numpy")(function))
    _callbacks.append(callback)
    address: int = callback.address
    return address


_callbacks: list[Any] = []  # their machine code lives as long as they do

intrinsic: Any = numba.extending.intrinsic
"""Numba's decorator, untyped: its stub counts the typing context among the arguments of a call."""

inlined = numba.njit(nogil=True, error_model="numpy")
"""Decorate a function that only other kernels call; it is compiled into each of them."""
