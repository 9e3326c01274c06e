"""An oracle that knows all that will come, and starts and stops replicas ahead of it: how far foresight alone could lead.

Its plan is made once: the work of the future, each request's spread over its life, and the replicas that serve it. They begin to
start as long before they are needed as a start takes, and go when nothing that comes within as long needs them. Simplified, and
so no proved bound: capacity is the cost model's, depth is fixed at the least with room, the future is looked at in bins of
`BIN_S`, and requests are work and not single requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..cluster.system import Action, Arrived, Dispatch, View
from .fleet import Fleet, Warmth
from .model_shapes import ModelShapes
from .placing import planned
from .replicas_only import fixed_depth
from .situation import Situation

BIN_S = 5.0
HEADROOM = 1.1
"""Capacity planned over what the cost model says is needed."""


class Oracle:
    """See the module."""

    name = "oracle"
    tick_s = BIN_S
    dispatch: Dispatch = "least-work"

    def __init__(self, situation: Situation) -> None:
        models = range(len(situation.models))
        self._depths = [fixed_depth(situation, model) for model in models]
        self._shapes = [ModelShapes(situation.facts[model], (self._depths[model],)) for model in models]
        self._plans = [self._plan(situation, model) for model in models]
        self._warm = [Warmth() for _ in models]

    def begin(self, view: View) -> Sequence[Action]:
        """What the first moments need."""
        return [action for model in range(len(self._plans)) for action in self._to(view, model)]

    def tick(self, view: View) -> Sequence[Action]:
        """What the moment after a start-up needs."""
        return [action for model in range(len(self._plans)) for action in self._to(view, model)]

    def _to(self, view: View, model: int) -> list[Action]:
        fleet = Fleet(view, model, planned, self._warm[model])
        self._warm[model].see(model, view)
        plan, have = self._plans[model], len(fleet.replicas)
        wanted = int(plan[min(int(view.now_s / BIN_S), len(plan) - 1)])
        if wanted > have:
            return fleet.starts(self._depths[model], wanted - have)
        return fleet.stops(have - wanted)

    def _plan(self, situation: Situation, model: int) -> NDArray[np.int64]:
        """[bins] replicas wanted in each, start-ups seen ahead of."""
        load = situation.future[model]
        capacity = self._shapes[model].facts.capacity(self._depths[model]) / HEADROOM
        life_s = (situation.mean_outputs(model) or 1.0) * self._shapes[model].facts.step_s(self._depths[model])
        needed = needed_rate(load, situation.work(load, model), life_s)
        ahead = int(np.ceil(self._shapes[model].facts.startup_s(self._depths[model]) / BIN_S)) + 1
        replicas = np.maximum(1, np.ceil(needed / capacity)).astype(np.int64)
        padded = np.concatenate([replicas, np.full(ahead, replicas[-1])])
        windows = np.lib.stride_tricks.sliding_window_view(padded, ahead + 1)
        most: NDArray[np.int64] = windows.max(axis=1)
        return most


def needed_rate(load: Arrived, work: NDArray[np.float64], life_s: float) -> NDArray[np.float64]:
    """[bins] work per second that is under way in each bin, each request's spread evenly over ``life_s`` from its arrival."""
    bins = int(load.at_s[-1] / BIN_S) + 1 if len(load.at_s) else 1
    arrived = np.bincount((load.at_s / BIN_S).astype(np.int64), weights=work, minlength=bins)
    spread = max(1, round(life_s / BIN_S))
    sums = np.concatenate([np.zeros(spread), np.cumsum(arrived)])
    rate: NDArray[np.float64] = (sums[spread:] - sums[:-spread]) / (spread * BIN_S)
    return rate
