"""What encryption costs between nodes: the same link in the clear, sealed and under CURVE, in turns within one run.

Over tcp on this host, between two processes. A *hop* is half a round trip; *pages* are messages as a handoff of KV pages sends
them, one after another, until the other end has them all. The medians of all rounds count, and what is said of encryption is a
ratio to the clear link of the same run.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from ..transport.interface import SEAL_BYTES, Link
from ..transport.key_ring import KeyRing, allow, make_ring
from ..transport.zmq_link import ZmqTransport

KINDS = "clear", "sealed", "curve"
HOP_BYTES = 64, 8192
PAGE_BYTES = 256 << 10, 1 << 20, 4 << 20
HOPS_A_ROUND = 300
WARM_UP_HOPS = 100
_ECHO, _PAGE = b"e", b"p"
_NODES = "left", "right"


@dataclass(frozen=True, slots=True)
class EncryptionFigures:
    """Medians over the rounds by kind of link and size in bytes: one way of a hop, microseconds; throughput of pages, GB/s."""

    hop_us: dict[str, dict[int, float]]
    pages_gb_s: dict[str, dict[int, float]]

    def hop_ratio(self, kind: str, size: int) -> float:
        """How many times as long as in the clear a hop takes."""
        return self.hop_us[kind][size] / self.hop_us["clear"][size]

    def pages_share(self, kind: str, size: int) -> float:
        """Which share of the clear throughput is left."""
        return self.pages_gb_s[kind][size] / self.pages_gb_s["clear"][size]


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the links meet, and what they share."""

    folder: str
    ports: tuple[int, ...]
    seal: bytes


def measure(rounds: int, mib: int) -> EncryptionFigures:
    """Measure with ``rounds`` turns of each kind and ``mib`` MiB of pages a turn."""
    with tempfile.TemporaryDirectory() as folder:
        _make_keys(Path(folder))
        places = _Places(folder, tuple(_free_port() for _ in KINDS), os.urandom(SEAL_BYTES))
        peer = multiprocessing.get_context("spawn").Process(target=_answer, args=(places,))
        peer.start()
        try:
            return trio.run(_ask, places, rounds, mib << 20)
        finally:
            peer.join(5)
            peer.kill()


def _make_keys(folder: Path) -> None:
    rings = [make_ring(folder / node, node) for node in _NODES]
    for ring in rings:
        for other in rings:
            allow(ring.folder, other.name, other.public)


@asynccontextmanager
async def _links(places: _Places, own: str) -> AsyncIterator[dict[str, Link]]:
    """One link of each kind; the node "left" binds."""
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(ZmqTransport.open())
        keyed = await stack.enter_async_context(ZmqTransport.open(KeyRing.load(Path(places.folder) / own)))
        links: dict[str, Link] = {}
        for kind, port in zip(KINDS, places.ports, strict=True):
            transport = keyed if kind == "curve" else plain
            make = transport.bind if own == "left" else transport.connect
            seal = places.seal if kind == "sealed" else b""
            links[kind] = await make(f"tcp://left@127.0.0.1:{port}", name=kind, seal=seal)
        yield links


def _answer(places: _Places) -> None:
    """The other process: sends back what is to be echoed, takes pages."""

    async def serve(link: Link) -> None:
        while True:
            parts = await link.receive()
            if parts[0] == _ECHO:
                if len(parts) == 1:
                    return
                await link.send(parts)

    async def main() -> None:
        async with _links(places, "left") as links, trio.open_nursery() as nursery:
            for link in links.values():
                nursery.start_soon(serve, link)

    trio.run(main)


async def _ask(places: _Places, rounds: int, round_bytes: int) -> EncryptionFigures:
    hops: dict[str, dict[int, list[float]]] = {kind: {size: [] for size in HOP_BYTES} for kind in KINDS}
    pages: dict[str, dict[int, list[float]]] = {kind: {size: [] for size in PAGE_BYTES} for kind in KINDS}
    async with _links(places, "right") as links:
        for link in links.values():
            await _hops(link, HOP_BYTES[0], WARM_UP_HOPS)
            await _pages(link, PAGE_BYTES[0], 16)
        for _ in range(rounds):
            for size in HOP_BYTES:
                for kind, link in links.items():
                    hops[kind][size].append(await _hops(link, size, HOPS_A_ROUND))
            for size in PAGE_BYTES:
                for kind, link in links.items():
                    count = max(1, round_bytes // size)
                    pages[kind][size].append(count * size / await _pages(link, size, count) / 1e9)
        for link in links.values():
            await link.send([_ECHO])
            await link.aclose()
    return EncryptionFigures(_medians(hops), _medians(pages))


def _medians(taken: dict[str, dict[int, list[float]]]) -> dict[str, dict[int, float]]:
    return {kind: {size: statistics.median(each) for size, each in sizes.items()} for kind, sizes in taken.items()}


async def _hops(link: Link, size: int, count: int) -> float:
    """The median of one way, microseconds."""
    body = os.urandom(size)
    times = []
    for _ in range(count):
        began_s = time.perf_counter()
        await _round_trip(link, [_ECHO, body])
        times.append(time.perf_counter() - began_s)
    return statistics.median(times) * 1e6 / 2


async def _pages(link: Link, size: int, count: int) -> float:
    """Seconds until the other end has had ``count`` pages."""
    body = os.urandom(size)
    began_s = time.perf_counter()
    for _ in range(count):
        await link.send([_PAGE, body])
    await _round_trip(link, [_ECHO, b"had them all?"])
    return time.perf_counter() - began_s


async def _round_trip(link: Link, parts: Sequence[bytes]) -> None:
    await link.send(parts)
    await link.receive()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
