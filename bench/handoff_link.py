"""How fast a handoff moves KV pages between two processes, checksums included, as a share of memcpy in the same run.

    python -m flexpipe.bench.handoff_link [--mib 256] [--page-bytes 24576] [--rounds 7] [--run-kib 1024,4096]

The real path: two `Handoff` actors, their links, the shared-memory ring, pages gathered and scattered as a worker's `EngineThread`
does it. Everything is sent after the cut, so nothing rests. A round is from the donor's cut until the acquirer has it all; memcpy,
of as many bytes between arrays on huge pages, takes turns with it in the donor's process, and the best rounds count.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import trio

from ..actors.engine_thread import EngineThread
from ..actors.event_log import EventLog
from ..actors.handoff import Handoff, PagePort
from ..actors.handoff_machine import HandoffLimits
from ..actors.link_place import LinkPlace, Surroundings
from ..actors.messages import CopyTotals, Open, Transfer
from ..actors.page_ledger import PageLedger
from ..runtime.interface import BLOCK_TOKENS, EngineSpec, Int32Array, StageEngine, StageFacts
from ..runtime.kv_pages import KvPages
from ..runtime.mapped_memory import AddressSpace
from ..runtime.program import AttentionLayer
from ..transport.interface import Link, Transport
from ..transport.zmq_link import ZmqTransport

DONOR, ACQUIRER = 0, 1
LAYERS = 8
MEASURED = "memcpy", "handoff"


@dataclass(frozen=True, slots=True)
class Shape:
    """What is handed over in a round."""

    blocks: int
    page_bytes: int
    run_bytes: tuple[int, ...]
    rounds: int

    @property
    def round_bytes(self) -> int:
        """Bytes of all pages."""
        return LAYERS * self.blocks * self.page_bytes


class PagesEngine:
    """The page half of an engine, full of one value: what `EngineThread` copies pages with."""

    def __init__(self, shape: Shape, value: float) -> None:
        geometries = [
            AttentionLayer(layer, kv_heads=1, key_dim=1, value_dim=1, query_heads=1) for layer in range(LAYERS)
        ]
        self.held = KvPages(geometries, lambda _: shape.page_bytes // 4, torch.float32, torch.device("cpu"))
        self.held.add([self.held.make(layer) for layer in range(LAYERS)])
        self.held.reserve(range(LAYERS), shape.blocks)
        for layer in self.held.layers.values():
            layer.pages.fill_(value)

    def load(self, _atoms: range, _progress: Callable[[int, int], None]) -> StageFacts:
        """There is nothing to load."""
        return StageFacts(0, 0, 0, (), (), (), "", "pages only")

    def use_threads(self, _threads: int) -> None:
        """It computes nothing."""

    def back_pages(self, _blocks: int, _rest: Callable[[], None]) -> int:
        """All have memory: they are full."""
        return self.held.blocks

    def gather_pages(self, layer: int, blocks: Int32Array, out: memoryview) -> None:
        """See `StageEngine`."""
        self.held.gather(layer, blocks, out)

    def scatter_pages(self, layer: int, blocks: Int32Array, data: memoryview) -> None:
        """See `StageEngine`."""
        self.held.scatter(layer, blocks, data)


async def engine_with_pages(shape: Shape, value: float) -> tuple[EngineThread, KvPages]:
    """A worker's engine as its actor has it, and its pages."""
    pages = PagesEngine(shape, value)
    engine = EngineThread(lambda _spec: cast("StageEngine", pages))
    await engine.load(EngineSpec(), range(1), _unheard)
    return engine, pages.held


async def _unheard(_done: int, _total: int) -> None:
    """Loading nothing tells nothing."""


class Party:
    """One end of one round: runs a handoff to its end and waits for what it tells."""

    def __init__(self, number: int, epoch: int, shape: Shape, run_bytes: int, pages: PagePort, folder: str) -> None:
        layers = tuple(range(LAYERS))
        transfer = Transfer(
            DONOR, ACQUIRER, LinkPlace(f"ipc://{folder}/pages-{epoch}"), layers, (shape.page_bytes,) * LAYERS
        )
        self.live = np.packbits(np.ones(shape.blocks, bool), bitorder="little").tobytes()
        opened = Open(epoch, shape.blocks, None, None, (transfer,), precopy=False, live=self.live)
        ledger = PageLedger()
        ledger.ensure(shape.blocks)
        if number == DONOR:
            ledger.arrived(np.arange(shape.blocks, dtype=np.int32), np.full(shape.blocks, BLOCK_TOKENS, np.uint8))
        limits = HandoffLimits(run_bytes_max=run_bytes, hurried_run_bytes_max=run_bytes)
        log = EventLog(io.StringIO(), process="bench")
        self.handoff = Handoff(opened, number, pages, ledger, self, log, limits)
        self._voted, self._across = trio.Event(), trio.Event()

    async def take_part(self, transport: Transport, control: Link) -> float:
        """Seconds from the cut until the acquirer had everything."""
        async with trio.open_nursery() as nursery:
            await self.handoff.open(Surroundings(transport))
            nursery.start_soon(self.handoff.run)
            await self._voted.wait()
            began_s = time.perf_counter()
            await self.handoff.cut(self.live)
            await self._across.wait()
            if self.handoff.machine.takes:
                await control.send([b"all here"])
                await control.receive()  # or the donor might see its link close before its end was sent
                took_s = time.perf_counter() - began_s
            else:
                await control.receive()
                took_s = time.perf_counter() - began_s
                await control.send([b"seen"])
            nursery.cancel_scope.cancel()
        self.handoff.close()
        return took_s

    async def handoff_voted(self, epoch: int) -> None:  # noqa: ARG002 - the protocol's name
        """See `HandoffListener`."""
        self._voted.set()

    async def handoff_progressed(self, epoch: int, sent_bytes: int, remaining_bytes: int) -> None:
        """See `HandoffListener`."""

    async def handoff_across(self, epoch: int, copied: CopyTotals) -> None:  # noqa: ARG002
        """See `HandoffListener`."""
        self._across.set()

    async def handoff_failed(self, epoch: int, sentence: str) -> None:  # noqa: ARG002
        """See `HandoffListener`."""
        raise RuntimeError(sentence)


async def _take(shape: Shape, folder: str) -> None:
    """The acquirer's process."""
    engine, pages = await engine_with_pages(shape, 2.0)
    async with ZmqTransport.open() as transport:
        control = await transport.bind(f"ipc://{folder}/control", name="donor")
        for epoch in range(shape.rounds * len(shape.run_bytes)):
            run_bytes = shape.run_bytes[epoch % len(shape.run_bytes)]
            await Party(ACQUIRER, epoch, shape, run_bytes, engine, folder).take_part(transport, control)
        await control.receive()
        assert all((layer.pages == 1.0).all() for layer in pages.layers.values()), "a page did not arrive"
        await control.send([b"right"])
        await trio.sleep(0.2)


def _acquirer_process(shape: Shape, folder: str) -> None:
    trio.run(_take, shape, folder)


async def _give(shape: Shape, folder: str) -> dict[int, dict[str, list[float]]]:
    """Seconds of every round, by size of a run."""
    engine, _ = await engine_with_pages(shape, 1.0)
    source, target = (AddressSpace(shape.round_bytes).open(shape.round_bytes) for _ in range(2))
    source[:] = target[:] = 1
    took: dict[int, dict[str, list[float]]] = {size: {name: [] for name in MEASURED} for size in shape.run_bytes}
    async with ZmqTransport.open() as transport:
        control = await transport.connect(f"ipc://{folder}/control", name="acquirer")
        for epoch in range(shape.rounds * len(shape.run_bytes)):
            run_bytes = shape.run_bytes[epoch % len(shape.run_bytes)]
            party = Party(DONOR, epoch, shape, run_bytes, engine, folder)
            took[run_bytes]["handoff"].append(await party.take_part(transport, control))
            began_s = time.perf_counter()
            np.copyto(target, source)
            took[run_bytes]["memcpy"].append(time.perf_counter() - began_s)
        await control.send([b"check"])
        await control.receive()
    return took


def measured(shape: Shape) -> dict[int, dict[str, list[float]]]:
    """Seconds of every round of what `MEASURED` names, by size of a run."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        acquirer = multiprocessing.get_context("spawn").Process(target=_acquirer_process, args=(shape, folder))
        acquirer.start()
        try:
            return trio.run(_give, shape, folder)
        finally:
            acquirer.join(5)
            acquirer.kill()


def bench(shape: Shape) -> None:
    """Measure and print a line for each size of a run."""
    for run_bytes, seconds in measured(shape).items():
        best = {name: shape.round_bytes / min(seconds[name]) / 1e9 for name in MEASURED}
        median = statistics.median(seconds["memcpy"]) / statistics.median(seconds["handoff"])
        print(
            f"{shape.round_bytes >> 20} MiB in runs of {run_bytes >> 10:5d} KiB  memcpy {best['memcpy']:5.2f} GB/s  "
            f"handoff {best['handoff']:5.2f} GB/s  {best['handoff'] / best['memcpy']:4.0%} of memcpy (medians {median:4.0%})"
        )


def main() -> int:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--page-bytes", type=int, default=24576)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--run-kib", default="1024,4096", help="sizes of a run, comma-separated")
    options = parser.parse_args()
    blocks = (options.mib << 20) // (LAYERS * options.page_bytes)
    run_bytes = tuple(int(size) << 10 for size in options.run_kib.split(","))
    bench(Shape(blocks, options.page_bytes, run_bytes, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
