"""Static pipelines: so many replicas of one depth from the first second to the last, placed as the product places.

The paper's static baseline, and with all depths and counts tried afterwards the strongest one there is: the best static depth,
chosen with hindsight per workload (`sim.evaluation.hindsight`). Simplified: nothing. A replica that is lost with its node is
started anew, as any supervisor would.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cluster.system import Action, Dispatch, View
from .fleet import Fleet, Warmth, replicas_for
from .model_shapes import ModelShapes
from .placing import Placer, planned
from .situation import Situation

SUPERVISED_S = 10.0
"""From one look at what was lost to the next."""


class Static:
    """``plans`` [models]: stages and replicas of each."""

    dispatch: Dispatch = "least-work"
    tick_s = SUPERVISED_S

    def __init__(self, name: str, plans: Sequence[tuple[int, int]], placer: Placer = planned) -> None:
        self._name = name
        self._plans = tuple(plans)
        self._placer = placer
        self._begun: list[int] = []

    @property
    def name(self) -> str:
        """See `System.name`."""
        return self._name

    def begin(self, view: View) -> Sequence[Action]:
        """All it will ever have, or as much of it as there is room for."""
        starts = [self._starts(view, model, count) for model, (_, count) in enumerate(self._plans)]
        self._begun = [len(each) for each in starts]
        return [action for each in starts for action in each]

    def tick(self, view: View) -> Sequence[Action]:
        """What was lost, again."""
        missing = [begun - len(view.of(model)) for model, begun in enumerate(self._begun)]
        return [
            action for model, count in enumerate(missing) if count > 0 for action in self._starts(view, model, count)
        ]

    def _starts(self, view: View, model: int, count: int) -> list[Action]:
        return Fleet(view, model, self._placer, Warmth()).starts(self._plans[model][0], count)


def static(situation: Situation, depth: int, provision: float) -> Static:
    """Replicas of ``depth`` stages (all layers apart at most) for ``provision`` times the mean load of the history."""
    plans = []
    for model, facts in enumerate(situation.facts):
        stages = min(depth, facts.model.layers)
        shapes = ModelShapes(facts, (stages,))
        plans.append((stages, replicas_for(shapes, stages, provision * situation.mean_work(model))))
    return Static(f"static {depth}", plans)
