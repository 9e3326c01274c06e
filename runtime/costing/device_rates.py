"""What a device can do at best: stated limits for well-known ones, a short probe for this machine's CPU.

Owns those numbers and where they come from. Used for estimates only, where nothing was measured (see `runtime.costing.profile`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..cache_folder import cache_folder
from .costs import DeviceRates

PROBE_S = 0.4
"""Seconds given to each of the two probes."""

STATED_RATES: dict[str, DeviceRates] = {
    "a100": DeviceRates(312e12, 2.0e12, 50e-6),
    "h100": DeviceRates(989e12, 3.35e12, 50e-6),
    "h200": DeviceRates(989e12, 4.8e12, 50e-6),
    "l4": DeviceRates(121e12, 0.3e12, 50e-6),
}
"""Vendors' data sheets: dense bf16 tensor-core FLOP/s and memory bytes/s (80 GB SXM parts). The launch cost is assumed."""

_GEMM = 1024
_READ_ELEMENTS = 16 << 20


def cpu_rates(threads: int) -> DeviceRates:
    """This machine's CPU in fp32 with ``threads`` threads: probed once, then read from the cache."""
    rates = cached_cpu_rates(threads)
    if rates is None:
        rates = probe_cpu(threads)
        _cpu_file(threads).write_bytes(msgspec.json.encode(rates))
    return rates


def cached_cpu_rates(threads: int) -> DeviceRates | None:
    """What an earlier `cpu_rates` found, without torch; None where there was none."""
    try:
        return msgspec.json.decode(_cpu_file(threads).read_bytes(), type=DeviceRates)
    except (OSError, msgspec.MsgspecError):
        return None


def _cpu_file(threads: int) -> Path:
    return cache_folder("devices") / f"cpu-{os.cpu_count()}-{threads}.json"


def probe_cpu(threads: int) -> DeviceRates:
    """Time a matrix product and a read of memory larger than the caches; takes about a second and imports torch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        square = torch.rand(_GEMM, _GEMM)
        memory = torch.rand(_READ_ELEMENTS)
        product_s = shortest_s(lambda: torch.mm(square, square))
        read_s = shortest_s(memory.sum)
    finally:
        torch.set_num_threads(before)
    return DeviceRates(2 * _GEMM**3 / product_s, memory.nbytes / read_s)


def shortest_s(work: Callable[[], object], budget_s: float = PROBE_S) -> float:
    """The shortest of the runs that fit into ``budget_s`` after one to warm up: the one least disturbed by others."""
    work()
    best, end = float("inf"), time.perf_counter() + budget_s
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":  # for light processes: python -m flexpipe.runtime.costing.device_rates THREADS
    cpu_rates(int(sys.argv[1]))
