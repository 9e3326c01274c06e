"""Round trips of a link between two processes, beside ZeroMQ without us in the same run.

``python -m flexpipe.bench.link [--rounds N] [--pin]`` prints p50 and p99 in microseconds, per scheme and size, for blocking pyzmq
(the floor of the library) and for our `Link`. ``--pin`` gives each process a core of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio
import zmq

from ..transport.zmq_link import ZmqTransport

WARM_UP_ROUNDS = 300


def _pin(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


async def _echo_link(address: str) -> None:
    async with ZmqTransport.open() as transport:
        link = await transport.bind(address, name="echo")
        while (parts := await link.receive())[0]:
            await link.send(parts)


async def _time_link(address: str, size: int, rounds: int) -> list[float]:
    body = os.urandom(size)
    times = []
    async with ZmqTransport.open() as transport:
        link = await transport.connect(address, name="timed")
        for _ in range(rounds + WARM_UP_ROUNDS):
            start = time.perf_counter()
            await link.send([body])
            await link.receive()
            times.append(time.perf_counter() - start)
        await link.send([b""])
    return times[WARM_UP_ROUNDS:]


def _echo_raw(address: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.bind(address)
        while True:
            parts = raw.recv_multipart(copy=False)
            if not len(parts[1]):
                return
            raw.send_multipart(parts)


def _time_raw(address: str, size: int, rounds: int) -> list[float]:
    body = os.urandom(size)
    times = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.connect(address)
        for _ in range(rounds + WARM_UP_ROUNDS):
            start = time.perf_counter()
            raw.send_multipart([b"0123456789abcdef", body])
            raw.recv_multipart(copy=False)
            times.append(time.perf_counter() - start)
        raw.send_multipart([b"", b""])
    return times[WARM_UP_ROUNDS:]


def _serve(kind: str, address: str, core: int | None) -> None:
    _pin(core)
    if kind == "link":
        trio.run(_echo_link, address)
    else:
        _echo_raw(address)


def _measure(kind: str, address: str, size: int, rounds: int, cores: tuple[int | None, int | None]) -> list[float]:
    _pin(cores[0])
    peer = multiprocessing.get_context("spawn").Process(target=_serve, args=(kind, address, cores[1]))
    peer.start()
    try:
        timed: Callable[[], list[float]] = (
            (lambda: trio.run(_time_link, address, size, rounds))
            if kind == "link"
            else (lambda: _time_raw(address, size, rounds))
        )
        return sorted(timed())
    finally:
        peer.join(5)
        peer.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--pin", action="store_true")
    options = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    cores = (available[0], available[-1]) if options.pin else (None, None)
    with tempfile.TemporaryDirectory() as folder:
        for scheme in ("ipc", "tcp"):
            for size in (64, 8192):
                for kind in ("raw", "link"):
                    address = (
                        f"ipc://{Path(folder)}/{kind}{size}" if scheme == "ipc" else f"tcp://127.0.0.1:{_free_port()}"
                    )
                    times = _measure(kind, address, size, options.rounds, cores)
                    p50, p99 = (times[int(len(times) * share)] * 1e6 for share in (0.5, 0.99))
                    sys.stdout.write(f"{scheme} {size:5d} B  {kind:4s}  p50 {p50:6.0f} us  p99 {p99:6.0f} us\n")


if __name__ == "__main__":
    main()
