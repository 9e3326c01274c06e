"""What this machine allows, probed beside the measurement it is to judge: memory reads and fp32 matrix products.

A shared machine drifts by up to two within an hour, so a share of the limit is worth something only if the limit was
taken in the same minute.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..runtime.costing.costs import DeviceRates, StepLoad, Work, atom_work
from ..runtime.costing.device_rates import shortest_s
from ..runtime.kernels.linear import pack_linear
from ..runtime.program import Program

READ_FLOATS = 32 << 20
"""128 MiB: four times the last-level cache of the machine that the peers were measured on."""

GEMM_SIZE = 1024
PROBE_S = 0.3
"""Seconds given to each probe; its best round counts."""


def probe(threads: int) -> DeviceRates:
    """The best of a few seconds: bytes/s of a sum over memory, FLOP/s of a square product by torch or by our kernel."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        memory = torch.ones(READ_FLOATS)
        read_s = shortest_s(memory.sum, PROBE_S)
        left, right = torch.randn(GEMM_SIZE, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
        packed, out = pack_linear(right), torch.empty(GEMM_SIZE, GEMM_SIZE)
        gemm_s = min(
            shortest_s(lambda: left @ right, PROBE_S),
            shortest_s(lambda: packed(left, out), PROBE_S),
        )
    finally:
        torch.set_num_threads(before)
    return DeviceRates(operations_per_s=2 * GEMM_SIZE**3 / gemm_s, bytes_per_s=memory.nbytes / read_s)


def best_rates(rates: Iterable[DeviceRates]) -> DeviceRates:
    """The fastest of several probes: the machine can do this much when it is left alone."""
    known = list(rates)
    return DeviceRates(max(each.operations_per_s for each in known), max(each.bytes_per_s for each in known))


def least_seconds(program: Program, load: StepLoad, rates: DeviceRates) -> float:
    """The roofline of one step: all arithmetic at the matrix product's rate, or one read of weights and KV pages."""
    work = sum((atom_work(program, atom, load) for atom in program.atoms), Work())
    return max(work.operations / rates.operations_per_s, (work.weight_traffic + work.kv_traffic) / rates.bytes_per_s)
