"""A synchronous `StageEngine` behind the awaited `EnginePort`: one thread that lives as long as the stage.

One and the same thread for every call, because a CPU engine's OpenMP workers belong to the thread that first used them. The
actor's loop stays free meanwhile, so heartbeats go on while a step computes.
"""

from __future__ import annotations

import resource
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import trio

from ..runtime.interface import (
    BufferView,
    RaggedBatch,
    SampleRow,
    StageEngine,
    StageFacts,
    StageOutput,
    StageSpec,
)

P = ParamSpec("P")
T = TypeVar("T")

PROGRESS_INTERVAL_S = 0.1
"""Least time between two progress messages of one load."""


class EngineThread:
    """Runs the engine that ``make(spec)`` builds. A call that has begun cannot be cancelled: the stage waits for its end."""

    def __init__(self, make: Callable[[StageSpec], StageEngine]) -> None:
        self._make = make
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._engine: StageEngine | None = None
        self._kv_bytes_per_block = 0

    async def load(self, spec: StageSpec, progress: Callable[[int, int], Awaitable[None]]) -> StageFacts:
        """Build the engine and load its weights; ``progress`` is awaited in the actor's loop now and then."""
        latest: list[tuple[int, int]] = []

        def note(done_bytes: int, total_bytes: int) -> None:
            latest[:] = [(done_bytes, total_bytes)]

        async def tell() -> None:
            while True:
                await trio.sleep(PROGRESS_INTERVAL_S)
                if latest:
                    await progress(*latest.pop())

        self._engine = await self._call(self._make, spec)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            facts = await self._call(self._engine.load, note)
            nursery.cancel_scope.cancel()
        self._kv_bytes_per_block = facts.kv_bytes_per_block
        return facts

    async def reserve(self, blocks: int) -> int:
        """Make room for ``blocks`` KV blocks; the bytes they take."""
        assert self._engine is not None
        await self._call(self._engine.reserve, blocks)
        return blocks * self._kv_bytes_per_block

    async def run(self, batch: RaggedBatch, hidden: BufferView | None, rows: Sequence[SampleRow]) -> StageOutput:
        """Run one step."""
        assert self._engine is not None
        return await self._call(self._engine.run, batch, hidden, rows)

    def peak_rss_bytes(self) -> int:
        """The most memory this process held so far."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        done = trio.Event()
        wake = trio.lowlevel.current_trio_token().run_sync_soon
        future = self._executor.submit(function, *args, **kwargs)
        future.add_done_callback(lambda _: wake(done.set))
        with trio.CancelScope(shield=True):
            await done.wait()
        return future.result()
