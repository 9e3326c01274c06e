"""How far plans are from the best: from the exact optimum on small instances, from proved floors on larger ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..policies.cluster.cluster_map import ClusterMap
from ..policies.placement.pricing import verify
from ..policies.placement.solver import place
from ..policies.placement.values import NoPlacement, Placement, PlacementRequest
from .placement_cases import MODELS, request_for, small_case
from .placement_exact import SECONDS_MAX, solve_exactly
from .placement_maps import tiled

Report = Callable[[str], None]
ZERO_GAP = 1e-9
FLOOR_DEVICES = (32, 100, 1000, 10_000)


def against_exact(instances: int, report: Report) -> dict[str, Any]:
    """Gaps to HiGHS over the first ``instances`` cases: all that it closed within its time, whatever ours says."""
    gaps: dict[int, list[float]] = {1: [], 2: []}
    ours_ms, exact_s = [], []
    count = {"closed": 0, "infeasible": 0, "missed": 0, "false_plans": 0, "proved": 0, "unclosed": 0}
    for seed in range(instances):
        if seed % 20 == 0:
            report(f"exact optimum: instance {seed} of {instances}")
        cluster, request = small_case(seed)
        began = time.perf_counter()
        plan = place(cluster, request)
        ours_ms.append((time.perf_counter() - began) * 1e3)
        verdict = solve_exactly(cluster, request)
        exact_s.append(verdict.seconds)
        if not verdict.closed:
            count["unclosed"] += 1
            continue
        count["closed"] += 1
        if not verdict.replicas or isinstance(plan, NoPlacement):
            count["infeasible"] += not verdict.replicas
            count["missed"] += bool(verdict.replicas)
            count["false_plans"] += isinstance(plan, Placement)
            continue
        verify(cluster, request, plan.replicas)
        count["proved"] += plan.proved
        optimum = sum(replica.terms.cost(request.weights) for replica in verdict.replicas)
        gaps[request.replicas].append(plan.cost / optimum - 1)
    together = [*gaps[1], *gaps[2]]
    return {
        "instances": instances,
        "highs_s_max": SECONDS_MAX,
        **count,
        "gap": _spread(together),
        "gap_one_replica": _spread(gaps[1]),
        "gap_two_replicas": _spread(gaps[2]),
        "at_optimum_share": float(np.mean(np.abs(together) <= ZERO_GAP)),
        "ours_ms": _spread(ours_ms),
        "highs_s": _spread(exact_s),
    }


def against_floors(maps: Mapping[str, ClusterMap], report: Report) -> list[dict[str, Any]]:
    """Gaps to the floors that solve comes with, by map and size; the floors are low, so these are upper bounds of gaps."""
    rows = []
    for name, cluster in maps.items():
        for devices in FLOOR_DEVICES:
            report(f"floors: {name}, {devices} devices")
            gaps, none = _floor_gaps(
                tiled(cluster, devices, seed=devices),
                [request_for(model, stages) for model in MODELS for stages in (4, 8)],
            )
            rows.append({"map": name, "devices": devices, "no_plan": none, "gap": _spread(gaps) if gaps else None})
    return rows


def _floor_gaps(cluster: ClusterMap, requests: Sequence[PlacementRequest]) -> tuple[list[float], int]:
    plans = [place(cluster, request) for request in requests]
    found = [plan for plan in plans if isinstance(plan, Placement)]
    return [plan.cost / plan.bound - 1 for plan in found if plan.bound > 0], len(plans) - len(found)


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"count": 0}
    return {
        "count": len(values),
        "p50": float(np.median(values)),
        "p90": float(np.quantile(values, 0.9)),
        "max": float(np.max(values)),
    }
