"""An oracle that knows all that will come: how far foresight alone could lead.

It tries many plans on the very load of the run, in the very simulator, and takes the one with the most goodput per GPU:

- every static depth for several times the load's own mean work, so that it is about as good as the best static system there;
- plans of replicas over time at the depth that has the most work per device: the requests that will be in the system, each for
  as long as it takes in a full replica, over what a replica holds, times some headroom; the most from now until a start would
  serve, and kept for a while after. Replicas that go hand their requests over at once, as ours do;
- ours, with its forecast of one start-up instead of the future.

Simplified, and so no bound in the mathematical sense: what a plan between these would reach it does not know, changes of depth
within a run are not among them, and start-ups scatter in ways that the trial does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil

import numpy as np
from numpy.typing import NDArray

from ..cluster.system import Action, Arrived, Dispatch, System, View
from .concurrency import requests_at_once
from .fleet import Fleet, Warmth, replicas_for
from .fluid import fluid
from .model_shapes import ModelShapes
from .placing import planned
from .search import tried
from .situation import Maker, Situation
from .static import Static

BIN_S = 2.5
HEADROOMS = (0.9, 1.0, 1.1)
KEPT_S = (10.0, 40.0)
"""For how long a replica is kept that will not be needed for the time being."""
PROVISIONS = (1.0, 1.05, 1.1, 1.2, 1.5)
"""Of static plans, over the future's mean work."""
DEPTHS_TRIED = 2
"""Static plans are tried at so many depths, those with the most work per device."""
Plan = NDArray[np.int64]
"""[bins] replicas wanted."""


class Planned:
    """``plans`` [models], for replicas of ``depths`` [models] stages; a plan's last bin goes on for ever."""

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
        return fleet.stops(have - wanted, drain=False)


def oracle(situation: Situation) -> System:
    """The system. With several models each gets the best of the plans over time that it would get alone."""
    models = range(len(situation.models))
    if len(models) == 1:
        return max(_all(situation), key=lambda make: _goodput(situation, make(situation)))(situation)
    found = [max(_over_time(situation.alone(m)), key=lambda plan: _of_plan(situation.alone(m), plan)) for m in models]
    return Planned([plan for _, plan in found], [depth for depth, _ in found])


def _goodput(situation: Situation, system: System) -> float:
    return tried(situation, system, situation.future[0]).goodput_per_gpu_s


def _of_plan(situation: Situation, plan: tuple[int, Plan]) -> float:
    return _goodput(situation, Planned([plan[1]], [plan[0]]))


def _all(situation: Situation) -> list[Maker]:
    makers: list[Maker] = [fluid]
    makers += [lambda _, plan=plan: Static("oracle", [plan]) for plan in _static(situation)]  # type: ignore[misc]
    makers += [lambda _, p=plan, d=depth: Planned([p], [d]) for depth, plan in _over_time(situation)]  # type: ignore[misc]
    return makers


def _by_worth(situation: Situation) -> list[int]:
    """Depths with room for one replica, the one with the most work per device first."""
    shapes = ModelShapes(situation.facts[0])
    roomy = [depth for depth in shapes.depths if shapes.replicas_with_room(situation.cluster, depth)]
    return sorted(roomy or shapes.depths, key=lambda depth: -shapes.facts.capacity(depth) / depth)


def _static(situation: Situation) -> list[tuple[int, int]]:
    load = situation.future[0]
    mean = float(situation.work(load, 0).sum()) / max(float(load.at_s[-1]), BIN_S)
    shapes = ModelShapes(situation.facts[0])
    depths = _by_worth(situation)[:DEPTHS_TRIED]
    return sorted({(d, replicas_for(shapes, d, provision * mean)) for d in depths for provision in PROVISIONS})


def _over_time(situation: Situation) -> list[tuple[int, Plan]]:
    depth = _by_worth(situation)[0]
    shapes = ModelShapes(situation.facts[0], (depth,))
    most = max(1, shapes.replicas_with_room(situation.cluster, depth))
    holds = requests_at_once(situation, 0, depth)
    load = situation.future[0]
    lives_s = situation.work(load, 0) * holds / shapes.facts.capacity(depth)
    needed = in_system(load, lives_s) / holds
    ahead = ceil(shapes.facts.startup_s(depth) / BIN_S) + 1
    found = {}
    for headroom, kept_s, after in product(HEADROOMS, KEPT_S, (0, ahead)):
        wanted = np.clip(np.ceil(headroom * needed), 1, most).astype(np.int64)
        plan = most_within(wanted, round(kept_s / BIN_S), after)
        found[plan.tobytes()] = plan
    return [(depth, plan) for plan in found.values()]


def in_system(load: Arrived, lives_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """[bins] requests that are there in the middle of each bin until the last arrival, if each stays for its life."""
    bins = int(load.at_s[-1] / BIN_S) + 1 if len(load.at_s) else 1
    moments = (np.arange(bins) + 0.5) * BIN_S
    ends = np.sort(load.at_s + lives_s)
    came, gone = np.searchsorted(load.at_s, moments), np.searchsorted(ends, moments)
    return np.asarray(came - gone, np.float64)


def most_within(wanted: Plan, before: int, after: int) -> Plan:
    """[bins] the most of ``wanted`` from ``before`` bins before each to ``after`` bins after it."""
    if before >= len(wanted):
        return np.full(1, wanted.max())
    padded = np.concatenate([np.full(before, wanted[0]), wanted, np.full(after, wanted[-1])])
    most: Plan = np.lib.stride_tricks.sliding_window_view(padded, before + after + 1).max(axis=1)
    return most
