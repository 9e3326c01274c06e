"""FlexPipe with its own policy, `fluid`: depth and replicas together, live changes, the product's placement.

The policy's weight of a device is set by the fleet: all devices that the history's mean load needs cost as much as one token
time. The default of a single node (a quarter each) would make a cluster's devices outweigh everything else. Limits and guard
are the daemon's. Simplified as `controlled` says. The ablations are this system with one thing taken away.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from ...policies.decision import Limits
from ...policies.granularity_fluid import FluidPolicy, FluidWeights
from .controlled import FIRST_HEADROOM, Controlled, ControlSettings, usual_guard
from .fleet import replicas_for
from .model_shapes import ModelShapes
from .placing import first_fit
from .situation import Situation


def settings_of(situation: Situation, model: int) -> ControlSettings:
    """How the controller of that model decides."""
    shapes = ModelShapes(situation.facts[model])
    work = FIRST_HEADROOM * situation.mean_work(model)
    fleet = min(depth * replicas_for(shapes, depth, work) for depth in shapes.depths)
    return ControlSettings(FluidPolicy(FluidWeights(per_device=1.0 / fleet)), guard=usual_guard())


def fluid(situation: Situation) -> Controlled:
    """The system."""
    return Controlled("FlexPipe (fluid)", situation, lambda model: settings_of(situation, model))


def without_fragments(situation: Situation) -> Controlled:
    """The same with stages on the first devices with room, as the static systems place."""
    return Controlled(
        "fluid, first-fit placing", situation, lambda model: replace(settings_of(situation, model), placer=first_fit)
    )


def stop_and_copy(situation: Situation) -> Controlled:
    """The same with changes of depth that stand still while KV is copied."""
    return Controlled(
        "fluid, stop and copy", situation, lambda model: replace(settings_of(situation, model), how="stop-and-copy")
    )


def uncontrolled(situation: Situation) -> Controlled:
    """The same with no hysteresis, no budget and no certificate: every advice of the policy is followed at once."""
    limits = Limits(
        gain_min=0.0,
        confirm_grow_s=0.0,
        confirm_shrink_s=0.0,
        dwell_s_min=0.0,
        changes_per_hour_max=1 << 30,
        overshoot_max=inf,
    )
    return Controlled(
        "fluid, no hysteresis",
        situation,
        lambda model: replace(settings_of(situation, model), limits=limits, guard=None),
    )
