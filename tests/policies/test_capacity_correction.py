"""How far a modelled capacity is off, learnt from what was served."""

import math

import pytest
from flexpipe.policies.control.capacity_correction import FACTOR_MAX, FACTOR_MIN, CapacityCorrection


def test_it_comes_to_what_was_served():
    correction = CapacityCorrection()
    for _ in range(40):
        correction = correction.after(50.0, 100.0)
    assert correction.factor == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize(("served", "modelled"), [(0.0, 100.0), (100.0, 0.0), (math.nan, 100.0), (-1.0, 100.0)])
def test_what_says_nothing_changes_nothing(served, modelled):
    assert CapacityCorrection(0.7).after(served, modelled) == CapacityCorrection(0.7)


def test_it_stays_in_bounds():
    high = low = CapacityCorrection()
    for _ in range(200):
        high, low = high.after(1e12, 1.0), low.after(1.0, 1e12)
    assert high.factor == pytest.approx(FACTOR_MAX)
    assert low.factor == pytest.approx(FACTOR_MIN)
