"""An oracle that knows all that will come: how far foresight alone could lead.

It tries a family of plans on the very load of the run, in the very simulator, and takes the one with the most goodput per GPU.
A plan says how many replicas serve when: the work of the future, each request's spread over its life, times some headroom, the
most within a window around each moment; starts are asked for ahead by what a start takes. Windows without end are static
plans. Simplified, and so a lower bound of what foresight can do, not an upper one of all systems: the family is small, depth is
fixed at the least with room, and start-ups scatter in ways that the trial does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from ..cluster.system import Action, Arrived, Dispatch, View
from .fleet import Fleet, Warmth
from .model_shapes import ModelShapes
from .placing import planned
from .replicas_only import fixed_depth
from .search import tried
from .situation import Situation

BIN_S = 5.0
HEADROOMS = (0.95, 1.05, 1.15, 1.3)
WINDOWS_S = (60.0, 300.0, inf)
Plan = NDArray[np.int64]
"""[bins] replicas wanted."""


class Oracle:
    """``plans`` [models], for replicas of ``depths`` [models] stages."""

    name = "oracle"
    tick_s = BIN_S
    dispatch: Dispatch = "least-work"

    def __init__(self, plans: Sequence[Plan], depths: Sequence[int]) -> None:
        self._plans = tuple(plans)
        self._depths = tuple(depths)
        self._warm = [Warmth() for _ in plans]

    def begin(self, view: View) -> Sequence[Action]:
        """What the first moments need."""
        return self.tick(view)

    def tick(self, view: View) -> Sequence[Action]:
        """What the plan says."""
        return [action for model in range(len(self._plans)) for action in self._to(view, model)]

    def _to(self, view: View, model: int) -> list[Action]:
        self._warm[model].see(model, view)
        fleet = Fleet(view, model, planned, self._warm[model])
        plan, have = self._plans[model], len(fleet.replicas)
        wanted = int(plan[min(int(view.now_s / BIN_S), len(plan) - 1)])
        if wanted > have:
            return fleet.starts(self._depths[model], wanted - have)
        return fleet.stops(have - wanted)


def oracle(situation: Situation) -> Oracle:
    """The system."""
    models = range(len(situation.models))
    depths = [fixed_depth(situation, model) for model in models]
    return Oracle([_best(situation.alone(model), depths[model]) for model in models], depths)


def _best(situation: Situation, depth: int) -> Plan:
    """The plan of the family with the most goodput per GPU on the future."""
    load = situation.future[0]
    plans = {plan.tobytes(): plan for plan in _family(situation, depth)}
    return max(plans.values(), key=lambda plan: tried(situation, Oracle([plan], [depth]), load).goodput_per_gpu_s)


def _family(situation: Situation, depth: int) -> list[Plan]:
    shapes = ModelShapes(situation.facts[0], (depth,))
    load = situation.future[0]
    life_s = (situation.mean_outputs(0) or 1.0) * shapes.facts.step_s(depth)
    rate = under_way(load, situation.work(load, 0), life_s)
    ahead = ceil(shapes.facts.startup_s(depth) / BIN_S) + 1
    most = max(1, shapes.replicas_with_room(situation.cluster, depth))
    found = []
    for headroom, window_s in product(HEADROOMS, WINDOWS_S):
        wanted = np.clip(np.ceil(headroom * rate / shapes.facts.capacity(depth)), 1, most).astype(np.int64)
        around = len(wanted) if window_s == inf else round(window_s / BIN_S)
        found.append(most_within(wanted, around, max(ahead, around)))
    mean = situation.work(load, 0).sum() / max(float(load.at_s[-1]), BIN_S)
    flat = {int(np.clip(ceil(headroom * mean / shapes.facts.capacity(depth)), 1, most)) for headroom in HEADROOMS}
    return [*found, *(np.array([replicas]) for replicas in flat)]


def under_way(load: Arrived, work: NDArray[np.float64], life_s: float) -> NDArray[np.float64]:
    """[bins] work per second that is under way in each bin, each request's spread evenly over ``life_s`` from its arrival."""
    bins = int(load.at_s[-1] / BIN_S) + 1 if len(load.at_s) else 1
    arrived = np.bincount((load.at_s / BIN_S).astype(np.int64), weights=work, minlength=bins)
    spread = max(1, round(life_s / BIN_S))
    sums = np.concatenate([np.zeros(spread), np.cumsum(arrived)])
    rate: NDArray[np.float64] = (sums[spread:] - sums[:-spread]) / (spread * BIN_S)
    return rate


def most_within(wanted: Plan, before: int, after: int) -> Plan:
    """[bins] the most of ``wanted`` from ``before`` bins before each to ``after`` bins after it."""
    if before >= len(wanted):
        return np.full(1, wanted.max())
    padded = np.concatenate([np.full(before, wanted[0]), wanted, np.full(after, wanted[-1])])
    most: Plan = np.lib.stride_tricks.sliding_window_view(padded, before + after + 1).max(axis=1)
    return most
