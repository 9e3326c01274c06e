"""Autoscaling by requests in flight, as serverless platforms do it: the base of the serverless systems compared with.

Owns the rule: desired replicas = requests in the system / (target share of a replica's room), up at once, down only after the
load has asked for fewer for `keep_alive_s` (Knative's and Kubernetes' shape). One depth. It must never know how weights come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from ..cluster.served_model import PLANNED_ROWS
from ..cluster.system import Action, Dispatch, View
from .controlled import FIRST_HEADROOM
from .fleet import Fleet, Warmth, replicas_for
from .model_shapes import ModelShapes
from .placing import Placer, first_fit
from .replicas_only import fixed_depth
from .situation import Situation


@dataclass(frozen=True, slots=True)
class Scaling:
    """``target`` is the share of what a replica can run at once to use it at, ``keep_alive_s`` how long one too many stays.

    ``drain``: a replica that goes ends its requests first; else they go on elsewhere, their KV computed anew.
    """

    target: float
    keep_alive_s: float
    drain: bool
    tick_s: float = 2.0


def requests_at_once(situation: Situation, model: int, depth: int) -> float:
    """How many requests like the history's a replica runs at once: full steps, or what its KV room holds, if that is less."""
    history, facts = situation.history[model], situation.facts[model]
    context = float(history.input_tokens.mean() + history.output_tokens.mean() / 2)
    return max(1.0, min(PLANNED_ROWS * depth, facts.depths[depth].kv_tokens / context))


class Autoscaled:
    """A `System` that scales each model's replicas so."""

    dispatch: Dispatch = "least-work"

    def __init__(self, name: str, situation: Situation, scaling: Scaling, placer: Placer = first_fit) -> None:
        self._name = name
        self._scaling = scaling
        self._placer = placer
        models = range(len(situation.models))
        self._depths = [fixed_depth(situation, model) for model in models]
        self._first = [self._replicas_at_first(situation, model) for model in models]
        self._at_once = [requests_at_once(situation, model, self._depths[model]) for model in models]
        self._warm = [Warmth() for _ in models]
        self._enough_since_s: list[float | None] = [None for _ in models]

    @property
    def name(self) -> str:
        """See `System.name`."""
        return self._name

    @property
    def tick_s(self) -> float:
        """See `System.tick_s`."""
        return self._scaling.tick_s

    def begin(self, view: View) -> Sequence[Action]:
        """Replicas for the history's mean load with some to spare."""
        return [
            action
            for model, count in enumerate(self._first)
            for action in self._fleet(view, model).starts(self._depths[model], count)
        ]

    def tick(self, view: View) -> Sequence[Action]:
        """Scale each model."""
        return [action for model in range(len(self._depths)) for action in self._scale(view, model)]

    def _scale(self, view: View, model: int) -> list[Action]:
        fleet = self._fleet(view, model)
        self._warm[model].see(model, view)
        wanted, have = self._desired(fleet), len(fleet.replicas)
        if wanted >= have:
            self._enough_since_s[model] = None
            return fleet.starts(self._depths[model], wanted - have)
        since_s = self._enough_since_s[model]
        if since_s is None:
            self._enough_since_s[model] = view.now_s
        elif view.now_s - since_s >= self._scaling.keep_alive_s:
            self._enough_since_s[model] = None
            return fleet.stops(have - wanted, drain=self._scaling.drain)
        return []

    def _desired(self, fleet: Fleet) -> int:
        requests = fleet.view.unplaced[fleet.model] + sum(
            replica.waiting + replica.running for replica in fleet.view.of(fleet.model)
        )
        return max(1, ceil(requests / (self._scaling.target * self._at_once[fleet.model])))

    def _replicas_at_first(self, situation: Situation, model: int) -> int:
        shapes = ModelShapes(situation.facts[model], (self._depths[model],))
        return replicas_for(shapes, self._depths[model], FIRST_HEADROOM * situation.mean_work(model))

    def _fleet(self, view: View, model: int) -> Fleet:
        return Fleet(view, model, self._placer, self._warm[model])
