"""A load that switches to and fro at the period that hurts most: the controller keeps its budget, without its limits it thrashes.

A fluid pipeline with real signals, policies and controller (`tests/support/fluid_pipeline.py`). Swept from 20 to 640 s, 20 s is
worst for a controller without limits, and 240 s for one with them: there each half of the wave outlasts both confirmations and
the envelope's memory by just enough.
"""

from dataclasses import replace

import pytest
from arrival_trains import bursty
from flexpipe.policies.control.decision import Limits, Refusal
from flexpipe.policies.control.granularity_fluid import FluidPolicy
from flexpipe.policies.control.granularity_paper import PaperPolicy
from fluid_pipeline import run, square_wave

LIMITS = Limits()
NO_LIMITS = Limits(gain_min=0, confirm_grow_s=0, confirm_shrink_s=0, dwell_s_min=0, changes_per_hour_max=10**6)


@pytest.mark.parametrize("policy", [FluidPolicy(), PaperPolicy()], ids=["fluid", "paper"])
@pytest.mark.parametrize("period_s", [20, 80, 240, 480])
def test_a_square_wave_makes_no_more_changes_than_the_budget(policy, period_s):
    found = run(square_wave(period_s, 1, 9), 2400, policy, LIMITS)
    assert 1 <= found.most_changes_within(3600) <= LIMITS.changes_per_hour_max


def test_at_the_worst_period_it_is_the_budget_that_binds():
    found = run(square_wave(240, 1, 9), 3600, FluidPolicy(), LIMITS)
    unbudgeted = run(square_wave(240, 1, 9), 3600, FluidPolicy(), replace(LIMITS, changes_per_hour_max=10**6))
    assert len(found.changes) <= LIMITS.changes_per_hour_max < len(unbudgeted.changes)
    assert "budget-kept-to-grow" in {decision.reason for decision in found.decisions}


def test_without_its_limits_the_controller_thrashes():
    found = run(square_wave(20, 1, 9), 1200, FluidPolicy(), NO_LIMITS)
    assert len(found.changes) > 5 * LIMITS.changes_per_hour_max


def test_a_guard_that_refuses_everything_leaves_the_pipeline_as_it_is():
    found = run(square_wave(240, 1, 9), 400, FluidPolicy(), LIMITS, guard=lambda inputs: Refusal("all", "never"))
    assert found.changes == []
    assert "guard" in {decision.reason for decision in found.decisions}


def test_a_steady_load_ends_in_one_shape():
    found = run(lambda at_s: 6.5, 1200, FluidPolicy(), LIMITS)
    assert 1 <= len(found.changes) <= 2
    assert found.changes[-1][0] < 300


def test_a_pipeline_grows_for_a_burst_after_an_hour_of_silence_and_shrinks_after_it():
    found = run(lambda at_s: 9.0 if 3700 <= at_s < 3760 else 0.0, 4200, FluidPolicy(), LIMITS)
    (grown_s, grown), (shrunk_s, shrunk) = found.changes
    assert 3700 < grown_s < 3720
    assert shrunk_s > 3760
    assert shrunk.devices < grown.devices


def test_bursts_like_azures_code_trace_keep_the_budget():
    counts = [0] * 3600
    for at_s in bursty(3600, seed=1):
        if at_s < len(counts):
            counts[int(at_s)] += 1
    found = run(lambda at_s: counts[at_s], 3600, FluidPolicy(), LIMITS)
    assert 1 <= len(found.changes) <= LIMITS.changes_per_hour_max


def test_clocks_that_jump_every_minute_cause_no_change_that_the_load_does_not():
    def jumping(at_s):
        return at_s + 10_000 * ((int(at_s) // 60) % 2)

    found = run(lambda at_s: 0.5, 1200, FluidPolicy(), LIMITS, clock=jumping)
    assert found.changes == []


def test_changes_that_all_fail_are_few():
    found = run(square_wave(240, 1, 9), 2400, FluidPolicy(), LIMITS, fails=True)
    assert 2 <= len(found.changes) <= 8
