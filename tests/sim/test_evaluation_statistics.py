"""Means over seeds with their intervals, against values worked out by hand."""

import math

import pytest
from flexpipe.sim.evaluation.statistics import Interval, difference, interval, ratio


def test_the_interval_of_five_values_is_students():
    # mean 3, deviation sqrt(2.5), t(4) = 2.776
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.half == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5), rel=1e-9)
    assert found.count == 5


def test_one_value_has_no_interval_and_none_has_no_mean():
    alone = interval([7.0])
    assert (alone.mean, alone.low, alone.high) == (7.0, -math.inf, math.inf)
    assert not alone.excludes(1e9)
    assert interval([]) is None
    assert interval([1.0, math.inf]) is None
    assert interval([1.0, math.nan]) is None


def test_a_ratio_is_paired_so_what_a_seed_does_to_both_drops_out():
    theirs = [1.0, 10.0, 100.0]
    found = ratio([2 * value for value in theirs], theirs)
    assert found.mean == pytest.approx(2.0)
    assert found.low == pytest.approx(2.0)
    assert found.high == pytest.approx(2.0)
    assert found.excludes(1.0)


def test_a_ratio_to_nothing_is_none_and_pairs_must_match():
    assert ratio([1.0, 2.0], [0.0, 1.0]) is None
    assert ratio([1.0, math.inf], [1.0, 1.0]) is None
    with pytest.raises(ValueError, match="argument"):
        ratio([1.0], [1.0, 2.0])


def test_a_difference_is_paired_too():
    assert difference([3.0, 5.0, 7.0], [1.0, 3.0, 5.0]) == Interval(2.0, 2.0, 2.0, 3)
