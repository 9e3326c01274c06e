"""How long a solve takes: cold, and after one event, from a hundred devices to a hundred thousand; and how much memory.

Wall times include whatever else the machine does; CPU times do not. Compiling is timed apart, in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..policies.cluster.cluster_map import ClusterMap
from ..policies.placement.solver import PlacementSolver, place
from ..policies.placement.values import NoPlacement, Placement, PlacementRequest
from .placement_cases import MODELS, request_for
from .placement_maps import tiled

Report = Callable[[str], None]
SIZES = (100, 316, 1000, 3162, 10_000, 31_623, 100_000)
STAGES = (4, 8, 16)
FIRST_SOLVE = (
    "import time; began = time.perf_counter()\n"
    "from flexpipe.bench.placement_cases import small_case\n"
    "from flexpipe.policies.placement.solver import place\n"
    "imported = time.perf_counter(); place(*small_case(1)); print(imported - began, time.perf_counter() - imported)\n"
)


def first_solve_s() -> dict[str, float]:
    """Seconds that a process's first solve takes with nothing compiled yet, and with all compiled by another process."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        took = []
        for _ in range(2):
            child = subprocess.run(  # noqa: S603 - our own interpreter and text
                [sys.executable, "-c", FIRST_SOLVE], env=environment, capture_output=True, text=True, check=True
            )
            took.append(float(child.stdout.split()[1]))
    return {"compiling": took[0], "cached": took[1]}


def times(maps: Mapping[str, ClusterMap], rounds: int, report: Report) -> list[dict[str, Any]]:
    """Milliseconds by map and size: each request solved cold in each round, and after events that each touch one device."""
    return [
        _times(name, tiled(cluster, devices, seed=devices), rounds, report)
        for name, cluster in maps.items()
        for devices in SIZES
    ]


def _times(name: str, cluster: ClusterMap, rounds: int, report: Report) -> dict[str, Any]:
    requests = [request_for(model, stages) for model in MODELS for stages in STAGES]
    place(cluster, requests[0])
    cold_wall, cold_cpu, none = [], [], 0
    for number in range(rounds):
        report(f"times: {name}, {cluster.devices} devices, round {number + 1} of {rounds}")
        for request in requests:
            wall, cpu = time.perf_counter(), time.process_time()
            plan = place(cluster, request)
            cold_cpu.append(time.process_time() - cpu)
            cold_wall.append(time.perf_counter() - wall)
            none += isinstance(plan, NoPlacement)
    anywhere, in_plan = _events(cluster.copy(), requests, rounds)
    return {
        "map": name,
        "devices": cluster.devices,
        "cold_ms": _figures(cold_wall),
        "cold_cpu_ms": _figures(cold_cpu),
        "event_anywhere_ms": _figures(anywhere),
        "event_in_plan_ms": _figures(in_plan),
        "no_plan": none // rounds,
        "memory_mib": _memory_mib(cluster, requests[-1]),
    }


def _events(cluster: ClusterMap, requests: Sequence[PlacementRequest], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds after a random device's memory changed, and after a device of the plan filled up, in turn."""
    chance = np.random.default_rng(cluster.devices)
    anywhere: list[float] = []
    in_plan: list[float] = []
    for request in requests:
        solver = PlacementSolver(cluster, request)
        plan = solver.solve()
        for number in range(2 * rounds):
            if not isinstance(plan, Placement):
                break
            row = int(chance.integers(cluster.devices)) if number % 2 else int(chance.choice(plan.devices))
            was = int(cluster.free_bytes[row])
            cluster.update(row, free_bytes=int(cluster.total_bytes[row] * chance.random()) if number % 2 else 0)
            wall = time.perf_counter()
            solver.solve()
            (anywhere if number % 2 else in_plan).append(time.perf_counter() - wall)
            cluster.update(row, free_bytes=was)
            plan = solver.solve()
    return anywhere, in_plan


def _memory_mib(cluster: ClusterMap, request: PlacementRequest) -> dict[str, float]:
    """The map's arrays, and the most that a solver and its solve take beside them."""
    arrays = [value for name in cluster.__slots__ if isinstance(value := getattr(cluster, name), np.ndarray)]
    tracemalloc.start()
    try:
        solver = PlacementSolver(cluster, request)
        solver.solve()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {"map": sum(each.nbytes for each in arrays) / 2**20, "solver": kept / 2**20, "solver_peak": peak / 2**20}


def _figures(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {"count": 0}
    return {
        "count": len(seconds),
        **{
            name: round(float(np.percentile(seconds, share)) * 1e3, 3)
            for name, share in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
        },
    }
