"""A synchronous `StageEngine` behind the awaited `EnginePort`, in four threads that live as long as the worker.

One thread computes, always the same, because a CPU engine's workers belong to the thread that first used them. Loading, the copying
of many pages, and the finding of memory for blocks that are not used yet have threads of their own, so that a step never waits
behind them; loading and finding give way to steps (nice).
The actor's loop stays free meanwhile, so heartbeats go on while a step computes.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec
import outcome
import trio

from ..runtime.interface import (
    BufferView,
    EngineSpec,
    RaggedBatch,
    SampleRow,
    StageEngine,
    StageFacts,
    StageOutput,
)
from ..runtime.page_checksum import page_checksum
from .engine_port import LoadProgressed
from .layer_pages import LayerPages, parts_of

P = ParamSpec("P")
T = TypeVar("T")

PROGRESS_INTERVAL_S = 0.1
"""Least time between two progress messages of one load."""
LOADING_NICENESS = 5
"""How far the loading thread stands back: a third of a step's weight. At 10 a load from disk took twice as long on two busy
cores, and steps gained nothing: a loader without a core may hold the GIL for which they wait."""
SMALL_COPY_BYTES_MAX = 4 * 1024 * 1024
"""Pages that are copied in the actor's own thread, which then hears nothing for half a millisecond. There and back again another
thread costs as much at each end, so that 1 MiB, copied in 0.1 ms, took 0.9 (`bench/handoff_link.py`). Not on a GPU, whose copies
wait for the step that it computes."""
BACKING_SHARE_MAX = 0.05
"""Share of a core that the finding of memory may take: 25 MiB a second where it costs most."""
LOADING_PAUSE_S = 0.015
"""How long a load rests after each piece (an atom that is mapped, a weight that is read) while steps run. Mapping an atom
takes 0.25 ms, most of it with the GIL, for which a step asks after every operator: without rests, mapping 31 atoms added
10 ms to one step of 16; with them, steps take 1.03 times as long while it lasts."""


class EngineThread:
    """Runs the engine that ``make(spec)`` builds; ``cores`` are those that this process may use at most.

    A call that has begun cannot be cancelled: the worker waits for its end.
    """

    def __init__(self, make: Callable[[EngineSpec], StageEngine], cores: Collection[int] = ()) -> None:
        self._make = make
        self._cores = frozenset(cores)
        self._engine: StageEngine | None = None
        self._in_host_memory = False
        self._computing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._loading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader", initializer=_stand_back)
        self._copying = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pages")
        self._backing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory", initializer=_stand_back)
        self._backed_blocks = 0  # with more of them in use, memory is to be found
        self._last_backing: Future[None] | None = None
        self._steps = 0
        self._computes = False

    async def load(self, spec: EngineSpec, atoms: range, progress: LoadProgressed) -> StageFacts:
        """Make ``atoms`` resident; ``progress`` is awaited in the actor's loop now and then."""
        latest: list[tuple[int, int]] = []
        steps_before = self._steps

        def note(done_bytes: int, total_bytes: int) -> None:
            nonlocal steps_before
            latest[:] = [(done_bytes, total_bytes)]
            if self._computes or self._steps > steps_before:
                steps_before = self._steps
                time.sleep(LOADING_PAUSE_S)

        async def tell() -> None:
            while True:
                await trio.sleep(PROGRESS_INTERVAL_S)
                if latest:
                    await progress(*latest.pop())

        if self._engine is None:
            self._engine = await self._made(spec)
            self._in_host_memory = spec.device.startswith("cpu")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            # An error is raised outside, or the nursery would wrap it.
            loaded = await outcome.acapture(_call, self._loading, self._engine.load, atoms, note)
            nursery.cancel_scope.cancel()
        self._backed_blocks = 0  # not in the new layers
        return loaded.unwrap()

    async def _made(self, spec: EngineSpec) -> StageEngine:
        """A new engine: made in the loading thread, since others may serve on the same cores, but with no worker threads there.

        They would stand back for ever, as it does.
        """
        engine = await _call(self._loading, self._make, msgspec.structs.replace(spec, threads=1))
        await _call(self._computing, engine.use_threads, spec.threads)
        return engine

    async def reserve(self, atoms: range, blocks: int) -> int:
        """Make room for ``blocks`` KV blocks of ``atoms``; the bytes that all pages may take."""
        reserved_bytes = await _call(self._computing, self._loaded.reserve, atoms, blocks)
        self._back(0)  # even while another is under way, which may not know the new layers
        return reserved_bytes

    async def run(
        self, atoms: range, batch: RaggedBatch, hidden: BufferView | None, rows: Sequence[SampleRow]
    ) -> StageOutput:
        """Run one step through ``atoms``."""
        self._back_if_short(int(batch.block_tables.max(initial=0)) + 1)
        self._steps += 1
        self._computes = True
        try:
            return await _call(self._computing, self._loaded.run, atoms, batch, hidden, rows)
        finally:
            self._computes = False

    async def use_threads(self, threads: int) -> None:
        """Compute with so many threads from the next step on; a process held to fewer cores is let go to all of ``cores``."""
        if self._cores and threads > len(os.sched_getaffinity(0)):
            await _call(self._computing, _stay_on, self._cores)
        await _call(self._computing, self._loaded.use_threads, threads)

    async def drop(self, keep: range, blocks: int) -> int:
        """Let go of atoms outside ``keep`` and their pages, and of KV blocks from ``blocks`` on; the bytes freed."""
        if self._engine is None:
            return 0
        self._backed_blocks = min(self._backed_blocks, blocks)
        return await _call(self._computing, self._loaded.drop, keep, blocks)

    async def gather_pages(self, pages: Sequence[LayerPages], out: memoryview) -> int:
        """Copy pages into ``out``; their checksum."""
        engine = self._loaded

        def gather() -> int:
            for part, data in parts_of(pages, out):
                engine.gather_pages(part.layer, part.block_numbers, data)
            return page_checksum(out)

        return await self._copy(out.nbytes, gather)

    async def scatter_pages(self, pages: Sequence[LayerPages], data: memoryview, checksum: int) -> bool:
        """Put pages in their places where their checksum is right."""
        engine = self._loaded

        def scatter() -> bool:
            if page_checksum(data) != checksum:
                return False
            for part, its_data in parts_of(pages, data):
                engine.scatter_pages(part.layer, part.block_numbers, its_data)
            return True

        self._back_if_short(max(int(part.block_numbers.max(initial=0)) for part in pages) + 1)
        return await self._copy(data.nbytes, scatter)

    @property
    def is_backed(self) -> bool:
        """Whether no memory is being found for KV blocks just now."""
        return self._last_backing is None or self._last_backing.done()

    def _back_if_short(self, blocks: int) -> None:
        """Have memory for more than these ``blocks`` soon; costs nothing where it is there."""
        if blocks > self._backed_blocks and self.is_backed:
            self._back(blocks)

    def _back(self, blocks: int) -> None:
        engine = self._loaded

        def back() -> None:
            self._backed_blocks = engine.back_pages(blocks, _resting(BACKING_SHARE_MAX))

        self._last_backing = self._backing.submit(back)

    async def _copy(self, size: int, copy: Callable[[], T]) -> T:
        if self._in_host_memory and size <= SMALL_COPY_BYTES_MAX:
            await trio.lowlevel.checkpoint()
            return copy()
        return await _call(self._copying, copy)

    def peak_rss_bytes(self) -> int:
        """The most memory this process held so far."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @property
    def _loaded(self) -> StageEngine:
        assert self._engine is not None, "the coordinator opens an epoch only once its weights are loaded"
        return self._engine


def _stay_on(cores: Collection[int]) -> None:
    """Hold every thread of this process to ``cores``."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(task.name), cores)


def _resting(share_max: float) -> Callable[[], None]:
    """To be called between pieces of what may take ``share_max`` of a core: sleeps as long as the last piece deserves."""
    began_s = time.perf_counter()

    def rest() -> None:
        nonlocal began_s
        time.sleep((time.perf_counter() - began_s) * (1 / share_max - 1))
        began_s = time.perf_counter()

    return rest


def _stand_back() -> None:
    with suppress(OSError):  # a kernel without priorities per thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADING_NICENESS)


async def _call(executor: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    done = trio.Event()
    wake = trio.lowlevel.current_trio_token().run_sync_soon
    future = executor.submit(function, *args, **kwargs)
    future.add_done_callback(lambda _: wake(done.set))
    with trio.CancelScope(shield=True):
        await done.wait()
    return future.result()
