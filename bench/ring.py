"""Throughput of the memfd ring between two processes, as a share of memcpy in the same run.

``python -m flexpipe.bench.ring [--mib N] [--seconds S]``: the writer copies a tensor into a slot and sends the slot's number over a
link; the reader sums one number per page in place (so that it really touches the data) and releases. Beside it: memcpy
between warm buffers of the same size, and the same tensor sent as a part of the link's message.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time

import numpy as np
import trio

from ..transport.interface import LinkLimits
from ..transport.ring import RingReader, RingWriter
from ..transport.zmq_link import ZmqTransport

SLOTS = 3
PAGE_BYTES = 4096
LIMITS = LinkLimits(credit_messages=8, message_bytes_max=256 << 20)


async def _read(folder: str, size: int) -> None:
    async with ZmqTransport.open() as transport:
        with RingReader.listen(f"{folder}/ring") as ring:
            link = await transport.bind(f"ipc://{folder}/link", name="reader", limits=LIMITS)
            while len(part := (await link.receive())[0]):
                if len(part) == size:
                    _touch(part)
                else:
                    slot = part[0]
                    _touch(ring.view(slot, size))
                    ring.release(slot)
            await link.send([b"done"])
            await trio.sleep(0.1)


def _touch(data: memoryview) -> None:
    np.frombuffer(data, np.uint8)[::PAGE_BYTES].sum()


def _reader_process(folder: str, size: int) -> None:
    trio.run(_read, folder, size)


async def _write(folder: str, size: int, seconds: float) -> tuple[float, float]:
    """Bytes per second through the ring, and through the link alone."""
    data = np.random.default_rng(1).integers(0, 255, size, dtype=np.uint8)
    async with ZmqTransport.open() as transport:
        link = await transport.connect(f"ipc://{folder}/link", name="writer", limits=LIMITS)
        await link.send([b"x" * size])  # the reader is there from here on
        with RingWriter.connect(f"{folder}/ring", slots=SLOTS, slot_bytes=size) as ring:
            start, moved = time.perf_counter(), 0
            while time.perf_counter() < start + seconds:
                slot = await ring.acquire()
                moved += ring.write(slot, data.data)
                await link.send([bytes([slot])])
            ring_rate = moved / (time.perf_counter() - start)
            start, moved = time.perf_counter(), 0
            while time.perf_counter() < start + seconds:
                await link.send([data.data])
                moved += size
            await link.send([b""])
            await link.receive()
            return ring_rate, moved / (time.perf_counter() - start)


def _memcpy_rate(size: int, seconds: float) -> float:
    source = np.random.default_rng(1).integers(0, 255, size, dtype=np.uint8)
    target = bytearray(size)
    view = memoryview(target)
    view[:] = source.data
    start, moved = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        view[:] = source.data
        moved += size
    return moved / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.5)
    options = parser.parse_args()
    size = options.mib << 20
    memcpy = _memcpy_rate(size, options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        reader = multiprocessing.get_context("spawn").Process(target=_reader_process, args=(folder, size))
        reader.start()
        ring, link = trio.run(_write, folder, size, options.seconds)
        reader.join(5)
        reader.kill()
    for name, rate in (("memcpy", memcpy), ("ring", ring), ("link", link)):
        sys.stdout.write(f"{options.mib:4d} MiB  {name:6s} {rate / 1e9:6.2f} GB/s  {rate / memcpy:5.0%} of memcpy\n")


if __name__ == "__main__":
    main()
