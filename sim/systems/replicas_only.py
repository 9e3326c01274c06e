"""Replicas only: FlexPipe's own policy and controller, with the depth fixed at the least that the map has room for.

What is left of a difference between this and `fluid` is what changing the depth is worth. Simplified as `controlled` says.
"""

from __future__ import annotations

from dataclasses import replace

from .controlled import FIRST_HEADROOM, Controlled, ControlSettings
from .fleet import replicas_for
from .fluid import settings_of
from .model_shapes import ModelShapes
from .situation import Situation


def fixed_depth(situation: Situation, model: int) -> int:
    """The least depth at which the map has room for the history's mean load with some to spare; else the deepest."""
    shapes = ModelShapes(situation.facts[model])
    work = FIRST_HEADROOM * situation.mean_work(model)
    roomy = (
        depth
        for depth in shapes.depths
        if shapes.replicas_with_room(situation.cluster, depth) >= replicas_for(shapes, depth, work)
    )
    return next(roomy, shapes.depths[-1])


def fixed_settings(situation: Situation, model: int) -> ControlSettings:
    """Ours, at that depth."""
    return replace(settings_of(situation, model), depths=(fixed_depth(situation, model),))


def replicas_only(situation: Situation) -> Controlled:
    """The system."""
    return Controlled("replicas only", situation, lambda model: fixed_settings(situation, model))
