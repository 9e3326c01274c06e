"""A worker's engine as an actor sees it: `runtime.interface.StageEngine` with its calls awaited.

Three implementations: `engine_thread.EngineThread` (a real engine in threads of its own), `sim.modelled_engine` (verifiable
pages in virtual time), and whatever a test needs to break.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ..runtime.interface import BufferView, EngineSpec, RaggedBatch, SampleRow, StageFacts, StageOutput
from .layer_pages import LayerPages

LoadProgressed = Callable[[int, int], Awaitable[None]]
"""Told bytes done and bytes in all, in the actor's loop."""


class EnginePort(Protocol):
    """See the module. Only `run`, `reserve`, `use_threads` and `drop` wait for each other; the rest goes on beside a step."""

    async def load(self, spec: EngineSpec, atoms: range, progress: LoadProgressed) -> StageFacts:
        """Make ``atoms`` resident beside those that are. ``spec`` never changes over a worker's life."""
        ...

    async def reserve(self, atoms: range, blocks: int) -> int:
        """Make room for ``blocks`` KV blocks in the layers of ``atoms`` and warm up; the bytes that all pages may take."""
        ...

    async def run(
        self, atoms: range, batch: RaggedBatch, hidden: BufferView | None, rows: Sequence[SampleRow]
    ) -> StageOutput:
        """Run one step through ``atoms``."""
        ...

    async def use_threads(self, threads: int) -> None:
        """Compute with so many threads from the next step on."""
        ...

    async def drop(self, keep: range, blocks: int) -> int:
        """Let go of atoms outside ``keep`` and their pages, and of KV blocks from ``blocks`` on; the bytes freed."""
        ...

    async def gather_pages(self, pages: Sequence[LayerPages], out: memoryview) -> int:
        """Copy pages into ``out``, one after another; a checksum of what ``out`` then holds (`page_checksum` of it)."""
        ...

    async def scatter_pages(self, pages: Sequence[LayerPages], data: memoryview, checksum: int) -> bool:
        """Put pages in their places where ``data`` has this checksum; False, and nothing changed, where it has not."""
        ...

    def peak_rss_bytes(self) -> int:
        """The most memory this process held so far."""
        ...
