"""Trials: a system tried on a load in the simulator before it serves, by those who plan by simulation.

Owns how a trial is judged, and the search for the static plan with the fewest devices. Whether a load is the past or the future is
the caller's to know.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from ..cluster.metrics import metrics
from ..cluster.simulator import simulate
from ..cluster.system import Arrived, System
from ..cluster.workload import Workload
from .fleet import replicas_for
from .model_shapes import ModelShapes
from .placing import Placer
from .situation import Situation
from .static import Static

ENOUGH = 0.99
"""Share of requests that a plan must serve within their deadlines."""
TRIED_S = 600.0
"""How much of the history a plan is tried on."""
HEADROOM_MAX = 12.0
"""Plans for more than so many times the mean load are not looked at."""


@dataclass(frozen=True, slots=True)
class Tried:
    """How a trial went."""

    attainment: float
    goodput_per_gpu_s: float


def tried(situation: Situation, system: System, load: Arrived) -> Tried:
    """``system`` on ``load`` of the only model of ``situation``."""
    workload = Workload(load.at_s, load.input_tokens, load.output_tokens, np.zeros(len(load.at_s), np.int64))
    record = simulate(system, workload, situation.models, situation.cluster, startup=situation.startup)
    found = metrics(record, situation.deadlines)
    goodput = found.goodput_per_gpu_s
    return Tried(found.attainment, goodput if np.isfinite(goodput) else 0.0)


def cheapest_plan(situation: Situation, model: int, placer: Placer) -> tuple[int, int]:
    """(stages, replicas) of the plan with the fewest devices that serves enough of the history in time; of equals the shallowest.

    Where none does, the one that serves the most. More replicas of one depth never serve less: the least is found by bisection.
    """
    alone = situation.alone(model)
    shapes = ModelShapes(alone.facts[0])
    load = _first(alone.history[0])
    found: list[tuple[bool, float, int, int]] = []
    for depth in shapes.depths:
        most = min(
            shapes.replicas_with_room(alone.cluster, depth),
            replicas_for(shapes, depth, HEADROOM_MAX * alone.mean_work(0)),
        )
        if most < 1:
            continue

        def share(replicas: int, depth: int = depth) -> float:
            return tried(alone, Static("trial", [(depth, replicas)], placer), load).attainment

        replicas = 1 + bisect_left(range(1, most), True, key=lambda count: share(count) >= ENOUGH)
        attained = share(replicas)
        found.append((attained < ENOUGH, depth * replicas if attained >= ENOUGH else -attained, depth, replicas))
    if not found:
        return shapes.depths[0] if shapes.depths else 1, 1
    _, _, depth, replicas = min(found)
    return depth, replicas


def _first(load: Arrived) -> Arrived:
    """The beginning of a load, or all of it where it is a trace's own."""
    held = load.at_s <= load.at_s[0] + TRIED_S if len(load.at_s) else np.zeros(0, bool)
    return Arrived(load.at_s[held], load.input_tokens[held], load.output_tokens[held])
