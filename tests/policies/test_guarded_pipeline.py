"""The certificate's guard in the loop: a fluid pipeline with the real controller, under a square wave."""

from dataclasses import replace

import pytest
from flexpipe.policies.certificate.serving_certificate import controller_guard
from flexpipe.policies.certificate.serving_facts import RouterFacts
from flexpipe.policies.control.decision import Limits
from flexpipe.policies.control.granularity_fluid import FluidPolicy
from fluid_pipeline import run, square_wave

HASTY = Limits(gain_min=0, confirm_grow_s=0, confirm_shrink_s=0, dwell_s_min=0, changes_per_hour_max=10**6, drain_s=5)
"""Wants backlogs gone faster than the fluid pipeline's shapes start, and has nothing else that slows it down."""
GUARD = controller_guard(RouterFacts())


@pytest.mark.parametrize("period_s", [20, 160])
def test_a_controller_that_drains_too_fast_thrashes_without_the_guard_and_not_with_it(period_s):
    free = run(square_wave(period_s, 1, 9), 800, FluidPolicy(), HASTY)
    guarded = run(square_wave(period_s, 1, 9), 800, FluidPolicy(), HASTY, guard=GUARD)
    assert len(free.changes) > 15
    assert len(guarded.changes) <= 2
    said = next(decision.sentence for decision in guarded.decisions if decision.reason == "guard")
    assert "drain" in said
    assert "s or more" in said


@pytest.mark.parametrize("period_s", [20, 160, 320])
def test_a_controller_within_its_limits_is_not_held_up_by_the_guard(period_s):
    free = run(square_wave(period_s, 1, 9), 800, FluidPolicy(), Limits())
    guarded = run(square_wave(period_s, 1, 9), 800, FluidPolicy(), Limits(), guard=GUARD)
    assert guarded.changes == free.changes


def test_a_guard_that_knows_of_old_reports_lets_nobody_replicate():
    """One pipeline cannot herd; several under least-work routing on old reports would."""
    guard = controller_guard(RouterFacts(report_age_s=2.0))
    found = run(square_wave(160, 1, 9), 800, FluidPolicy(), replace(HASTY, drain_s=60), guard=guard)
    assert found.changes
    assert all(shape.replicas == 1 for _, shape in found.changes)
