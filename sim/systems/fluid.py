"""FlexPipe with its own policy, `fluid`: depth and replicas together, live changes, the product's placement.

Weights and limits are a fleet's, where the daemon's defaults are for a node of a few devices. The weights follow from what is
measured: waiting as long as the deadline of the first token costs one, and so do all devices that the history's mean load
needs.
Replicas that come or go move no running pipeline: they need no least gain, grow after two beats and shrink after 20 s; changes of
depth need the usual gain. Spread (`policies.control.occupancy`, 0 to 3) and confirmation (10 and 20 s) were calibrated on Gamma
loads of CV 1.5, 3 and 6, 20 requests/s for 45 minutes, seed 101: none is evaluated. Of those tried, these have the most goodput per
GPU with 98 % in time on each load. They were first calibrated on ten minutes, where the empty beginning counts too much, and
anew when the quick table, and then an hour of evaluated loads, had shown that: seed 0 of CV 1, 4 and 8 is no clean test. Other
worths (0.5, 2) made under 1 % of difference.
Replicas that go hand their requests over at once (the daemon's ``retire_s_max`` of 0): KV is computed anew, which costs less than
a half-empty pipeline for a minute.
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

FLEET_WORTH = 1.0
"""Token times that the devices for the mean load are worth: by goodput per GPU held, as much as a deadline that is missed."""
FLEET_LIMITS = Limits(
    gain_replicas_min=0.0,
    confirm_grow_s=2.0,
    confirm_shrink_s=20.0,
    dwell_s_min=2.0,
    changes_per_hour_max=240,
)


def settings_of(situation: Situation, model: int) -> ControlSettings:
    """How the controller of that model decides."""
    shapes = ModelShapes(situation.facts[model])
    work = FIRST_HEADROOM * situation.mean_work(model)
    fleet = min(depth * replicas_for(shapes, depth, work) for depth in shapes.depths)
    weights = FluidWeights(wait_s=situation.deadlines[model].ttft_s, per_device=FLEET_WORTH / fleet)
    return ControlSettings(FluidPolicy(weights), FLEET_LIMITS, guard=usual_guard(), drain=False)


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
