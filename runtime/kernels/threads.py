"""The threads that run the kernels: one pool per process, fork and join in about a microsecond.

Owns the pool, its size (`set_threads`) and the hand-over of work (`run_chunks`). Knows nothing of what the work is.

Why not OpenMP: torch brings its own libgomp and numba's OpenMP layer loads the system's, so two pools of spinning threads
fought for the cores; a static split also makes every region as slow as its slowest thread, which on a busy machine is a
preempted one. Here the caller publishes a *job* (a task's address, its arguments, a number of chunks) and everyone,
the caller first of all, draws chunks from one counter until none is left. A worker that is late finds nothing to do and
nobody waits for it; the caller waits only for chunks that somebody has begun. Torch should run with one thread beside
this pool.

Between jobs a worker spins for `SPIN_MICROSECONDS`, so that the next operator of the same step finds it awake, and then
sleeps on a condition variable: a stage without work burns nothing.

The counter (the *ticket*) counts down. Whoever brings it from n >= 1 to n - 1 owns chunk n - 1, and only then reads the
job's fields: the caller does not publish another job before every chunk of this one is done, so they cannot change.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from typing import Any, NamedTuple

import numpy as np
from numba import types

from . import compiler
from .machine import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_task,
    load_word,
    pause,
    store_word,
)

SPIN_MICROSECONDS = 300.0
"""How long a worker waits awake for the next job. A decode step's gaps between operators are 5 to 50 us."""

# The control block: words that different threads write lie on cache lines of their own (offsets in bytes).
_TICKET = 0
_PENDING = 128
_FUNCTION = 256
_ARGUMENTS = 264
_WANTED = 272  # threads that may take part, the caller among them
_SPINS = 280
_SLEEPERS = 384
_MUTEX = 512
_CONDITION = 640
_CONTROL_BYTES = 1024

_SPINS_BEFORE_YIELD = 4096

_external: Any = types.ExternalFunction
_mutex_lock = _external("pthread_mutex_lock", types.int32(types.int64))
_mutex_unlock = _external("pthread_mutex_unlock", types.int32(types.int64))
_condition_wait = _external("pthread_cond_wait", types.int32(types.int64, types.int64))
_condition_broadcast = _external("pthread_cond_broadcast", types.int32(types.int64))
_sched_yield = _external("sched_yield", types.int32())


@compiler.inlined
def _draw_chunks(control: int, thread: int) -> None:
    """Run chunks until the ticket is used up."""
    chunk = atomic_add(control + _TICKET, -1) - 1
    while chunk >= 0:
        call_task(
            load_word(control + _FUNCTION),
            load_word(control + _ARGUMENTS),
            chunk,
            thread,
        )
        atomic_add(control + _PENDING, -1)
        chunk = atomic_add(control + _TICKET, -1) - 1


@compiler.inlined
def _sleep(control: int, thread: int) -> None:
    """Sleep until there is work or this thread is no longer wanted."""
    _mutex_lock(control + _MUTEX)
    atomic_add(control + _SLEEPERS, 1)  # before the look at the ticket: the caller writes the ticket, then looks here
    while atomic_load(control + _TICKET) <= 0 and atomic_load(control + _WANTED) > thread:
        _condition_wait(control + _CONDITION, control + _MUTEX)
    atomic_add(control + _SLEEPERS, -1)
    _mutex_unlock(control + _MUTEX)


@compiler.inlined
def _wake(control: int) -> None:
    if atomic_load(control + _SLEEPERS) > 0:
        _mutex_lock(control + _MUTEX)
        _condition_broadcast(control + _CONDITION)
        _mutex_unlock(control + _MUTEX)


@compiler.entry(types.void(types.int64, types.int64))
def _serve(control: int, thread: int) -> None:
    """A worker's life: wait, work, until the pool shrinks below it."""
    idle = 0
    while atomic_load(control + _WANTED) > thread:
        if atomic_load(control + _TICKET) > 0:
            _draw_chunks(control, thread)
            idle = 0
        elif idle < load_word(control + _SPINS):
            pause()
            idle += 1
        else:
            _sleep(control, thread)
            idle = 0


@compiler.entry(types.void(types.int64))
def _retire(control: int) -> None:
    """Let every worker see that fewer are wanted."""
    _wake(control)


@compiler.entry(types.void(types.int64))
def _spin(count: int) -> None:
    for _ in range(count):
        pause()


@compiler.inlined
def run_chunks(control: int, function: int, arguments: int, chunks: int) -> None:
    """Run ``function(arguments, chunk, thread)`` for every chunk in ``range(chunks)`` and return when all are done.

    Chunks start from the highest number down. ``thread`` is below the number of threads, and 0 for the caller: tasks use
    it to find scratch memory of their own. Must be called by one thread at a time (hold ``pool.lock``).
    """
    if chunks <= 1 or load_word(control + _WANTED) <= 1:
        for index in range(chunks):
            call_task(function, arguments, chunks - 1 - index, 0)
        return
    store_word(control + _FUNCTION, function)
    store_word(control + _ARGUMENTS, arguments)
    atomic_store(control + _PENDING, chunks)
    atomic_store(control + _TICKET, chunks)
    _wake(control)
    _draw_chunks(control, 0)
    spins = 0
    while atomic_load(control + _PENDING) > 0:
        pause()
        spins += 1
        if spins % _SPINS_BEFORE_YIELD == 0:  # the chunk's owner may be waiting for this very core
            _sched_yield()


@compiler.entry(types.void(types.int64, types.int64, types.int64, types.int64))
def _run(control: int, function: int, arguments: int, chunks: int) -> None:
    run_chunks(control, function, arguments, chunks)


class Workspace(NamedTuple):
    """Scratch memory that begins on a cache line."""

    address: int
    size: int
    memory: memoryview

    @classmethod
    def of(cls, size: int) -> Workspace:
        """Zeroed memory of ``size`` bytes."""
        memory = np.zeros(size + 64, np.uint8)
        start = -int(memory.ctypes.data) % 64
        return cls(int(memory.ctypes.data) + start, size, memory[start : start + size].data)


class Pool:
    """The process's kernel threads. ``control`` is the address that kernels pass to `run_chunks`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads = 1
        self._memory = np.zeros(_CONTROL_BYTES + 128, np.uint8)
        self.control = -(-self._memory.ctypes.data // 128) * 128
        self._words = self._memory[self.control - int(self._memory.ctypes.data) :][:_CONTROL_BYTES].view(np.int64)
        self._words[_WANTED // 8] = 1
        libc = ctypes.CDLL(None)
        libc.pthread_mutex_init(ctypes.c_void_p(self.control + _MUTEX), None)
        libc.pthread_cond_init(ctypes.c_void_p(self.control + _CONDITION), None)
        self._workers: list[threading.Thread] = []
        self._workspaces: dict[str, Workspace] = {}

    def resize(self, threads: int) -> None:
        """Start or end workers so that ``threads`` threads, the caller included, share the work."""
        with self.lock:
            if threads == self.threads:
                return
            self._words[_WANTED // 8] = 1
            _retire(self.control)
            for worker in self._workers:
                worker.join()
            self._words[_SPINS // 8] = _spins_in(SPIN_MICROSECONDS)
            self._words[_WANTED // 8] = threads
            self._workers = [
                threading.Thread(
                    target=_serve,
                    args=(self.control, index),
                    name=f"kernel-{index}",
                    daemon=True,
                )
                for index in range(1, threads)
            ]
            for worker in self._workers:
                worker.start()
            self.threads = threads

    def wait_asleep(self) -> None:
        """Return when every worker sleeps (`SPIN_MICROSECONDS` after the last job, or a little later)."""
        while self._words[_SLEEPERS // 8] < self.threads - 1:
            time.sleep(SPIN_MICROSECONDS * 1e-6)

    def run(self, task: int, arguments: int, chunks: int) -> None:
        """Run a task's chunks on all threads (see `run_chunks`). The caller holds ``lock``."""
        _run(self.control, task, arguments, chunks)

    def workspace(self, name: str, size: int) -> Workspace:
        """At least ``size`` bytes kept under a name, overwritten by whoever next asks for that name."""
        space = self._workspaces.get(name)
        if space is None or space.size < size:
            space = self._workspaces[name] = Workspace.of(max(size * 3 // 2, 4096))
        return space


def _spins_in(microseconds: float) -> int:
    """How many turns of the waiting loop take that long here; a pause is 10 to 140 cycles, by CPU."""
    probe = 2000
    start = time.perf_counter()
    _spin(probe)
    return max(1, int(microseconds * 1e-6 * probe / max(time.perf_counter() - start, 1e-9)))


pool = Pool()


def _after_fork() -> None:
    """A forked child has the memory but not the workers: it starts over, alone."""
    pool.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)


def set_threads(threads: int) -> None:
    """Use ``threads`` threads for every kernel from now on, the calling thread included.

    Raises ValueError below 1. Torch keeps a pool of its own: give it one thread (``torch.set_num_threads(1)``) where
    kernels do the heavy work.
    """
    if threads < 1:
        raise ValueError(f"kernels need at least one thread, not {threads}: pass the number of cores they may use")
    pool.resize(threads)


def get_threads() -> int:
    """How many threads the kernels use, the calling thread included."""
    return pool.threads
