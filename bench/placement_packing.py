"""How much of a fragmented cluster can be used: the same models asked for one after the other of each contender.

Every request is a service of its own, so devices may be shared by stages of several; models come in a seeded order until as much
memory was asked for as the map had free. What a contender cannot place, it skips.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..policies.cluster.cluster_map import ClusterMap
from ..policies.cluster.fragmentation import StageMix, fragmentation
from ..policies.placement.baselines import BASELINES
from ..policies.placement.pricing import verify
from ..policies.placement.solver import PlacementSolver
from ..policies.placement.values import WHOLE_PPM, ObjectiveWeights, PlacedReplica, Placement
from .placement_cases import MODELS, request_for

Report = Callable[[str], None]
STAGES_MAX = 8
SEED = 4
PACKING_WEIGHTS = ObjectiveWeights(fragmentation=5000)
"""Of the contender that is told to keep fragments small."""


@dataclass(slots=True)
class _Tally:
    replicas: int = 0
    stages: int = 0
    asked_bytes: int = 0
    placed_bytes: int = 0
    tpot_ns: int = 0
    seconds: float = 0.0


def packing(maps: Mapping[str, ClusterMap], report: Report) -> list[dict[str, Any]]:
    """For each map and contender: replicas and stages placed, memory placed and stranded, a token's time, time per request."""
    rows = []
    for name, cluster in maps.items():
        for contender in ("flexpipe", "flexpipe, packing", *BASELINES):
            report(f"packing: {name}, {contender}")
            rows.append({"map": name, "contender": contender, **_packed(cluster.copy(), contender)})
    return rows


def stage_sizes() -> tuple[int, ...]:
    """Bytes of an even stage of each model: what the fragments of a map are measured against."""
    requests = [request_for(model, STAGES_MAX) for model in MODELS]
    return tuple(
        sum(request.memory_bytes(atom) for atom in request.atoms) // stages + request.workspace_bytes
        for request in requests
        for stages in (4, STAGES_MAX)
    )


def _packed(cluster: ClusterMap, contender: str) -> dict[str, Any]:
    free_before = int(cluster.free_bytes.sum())
    place_one = _contender(cluster, contender)
    tally = _Tally()
    for number in _arrivals(free_before):
        began = time.perf_counter()
        replica = place_one(number)
        tally.seconds += time.perf_counter() - began
        tally.asked_bytes += _bytes(number)
        if replica is not None:
            verify(cluster, _REQUESTS[number], [replica])
            _take(cluster, replica)
            tally.replicas += 1
            tally.stages += len(replica.stages)
            tally.placed_bytes += _bytes(number)
            tally.tpot_ns += replica.terms.tpot_ns
    asked = sum(1 for _ in _arrivals(free_before))
    return {
        "asked": asked,
        "replicas": tally.replicas,
        "stages": tally.stages,
        "placed_share": tally.placed_bytes / tally.asked_bytes,
        "free_share": int(cluster.free_bytes.sum()) / free_before,
        "stranded_share": fragmentation(cluster, StageMix.of_sizes(stage_sizes())) / free_before,
        "tpot_ms_mean": tally.tpot_ns / max(tally.replicas, 1) / 1e6,
        "request_ms_mean": tally.seconds / asked * 1e3,
    }


def _arrivals(free_bytes: int) -> Iterator[int]:
    """Numbers of models, seeded, until as many bytes were asked for."""
    chance, asked = np.random.default_rng(SEED), 0
    while asked < free_bytes:
        number = int(chance.integers(len(MODELS)))
        asked += _bytes(number)
        yield number


def _contender(cluster: ClusterMap, name: str) -> Callable[[int], PlacedReplica | None]:
    if name in BASELINES:
        chance, baseline = np.random.default_rng(SEED), BASELINES[name]
        return lambda number: baseline(cluster, _REQUESTS[number], chance)
    weights = PACKING_WEIGHTS if name.endswith("packing") else ObjectiveWeights()
    solvers = [PlacementSolver(cluster, replace(request, weights=weights)) for request in _REQUESTS]

    def solve(number: int) -> PlacedReplica | None:
        plan = solvers[number].solve()
        return plan.replicas[0] if isinstance(plan, Placement) else None

    return solve


def _bytes(number: int) -> int:
    request = _REQUESTS[number]
    return sum(request.memory_bytes(atom) for atom in request.atoms)


def _take(cluster: ClusterMap, replica: PlacedReplica) -> None:
    for stage in replica.stages:
        cluster.update(stage.device, free_bytes=int(cluster.free_bytes[stage.device]) - stage.cost.memory_bytes)


_MIX = tuple((size, WHOLE_PPM // len(stage_sizes())) for size in stage_sizes())
_REQUESTS = tuple(replace(request_for(model, STAGES_MAX), fragment_mix=_MIX) for model in MODELS)
