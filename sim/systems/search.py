"""Which static plan serves a history well enough: the search that static systems make before they serve.

Owns the fluid replay of a history (one queue of work, served at a plan's capacity) by which plans are compared, and their order,
fewest devices first. It must never see the future.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..cluster.system import Arrived
from .fleet import replicas_for
from .model_shapes import ModelShapes
from .situation import Situation

IN_TIME = 0.99
"""Share of the history's requests that a plan must serve within `WAIT_S`."""
WAIT_S = 2.0
PROVISIONS = (1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
"""Capacities that are tried, over the history's mean load."""


def cheapest_plan(situation: Situation, model: int) -> tuple[int, int]:
    """(stages, replicas) of the plan with the fewest devices that serves the history in time; of equals the shallowest.

    The plan that serves the largest share in time where none serves enough.
    """
    shapes = ModelShapes(situation.facts[model])
    best, best_share = (shapes.depths[0], 1), -1.0
    for stages, replicas in _plans(situation, shapes, model):
        share = served_in_time(situation, model, replicas * shapes.facts.capacity(stages))
        if share >= IN_TIME:
            return stages, replicas
        if share > best_share:
            best, best_share = (stages, replicas), share
    return best


def served_in_time(situation: Situation, model: int, capacity: float) -> float:
    """Share of the history's requests that find at most `WAIT_S` of work before them."""
    load = situation.history[model]
    return float((waits(load, situation.work(load, model), capacity) <= WAIT_S).mean()) if len(load.at_s) else 1.0


def waits(load: Arrived, work: np.ndarray, capacity: float) -> np.ndarray:
    """[n] seconds of work before each request, one queue served at ``capacity``: Lindley's recursion in closed form."""
    seconds = work / capacity
    before = np.concatenate([[0.0], np.cumsum(seconds)[:-1]])
    slack = before - load.at_s
    return slack - np.minimum.accumulate(slack)


def _plans(situation: Situation, shapes: ModelShapes, model: int) -> Iterator[tuple[int, int]]:
    """Every plan that the map has room for, fewest devices first."""
    work = situation.mean_work(model)
    plans = {
        (depth, replicas)
        for depth in shapes.depths
        for provision in PROVISIONS
        if (replicas := replicas_for(shapes, depth, provision * work))
        <= shapes.replicas_with_room(situation.cluster, depth)
    }
    yield from sorted(plans, key=lambda plan: (plan[0] * plan[1], plan[0]))
