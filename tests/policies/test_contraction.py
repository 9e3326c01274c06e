"""Semi-contraction: seminorms and rates against their definitions, and bounds against systems whose motion is known."""

import math

import numpy as np
import pytest
from flexpipe.policies.certificate.contraction import (
    InvariantBall,
    NoContractionError,
    blockwise_rate,
    distance_bound,
    dwell_s_min,
    log_norm,
    shift_seminorm,
    spectral_norm,
    switch_growth,
    switched_rate,
    tracking_bound,
)
from hypothesis import given
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)


def draw(seed):
    return np.random.default_rng(seed)


@given(seeds)
def test_the_log_norm_is_the_slope_of_the_norm_near_the_identity(seed):
    matrix = draw(seed).normal(size=(4, 4))
    h = 1e-7
    slope = (spectral_norm(np.eye(4) + h * matrix) - 1) / h
    assert log_norm(matrix) == pytest.approx(slope, abs=1e-5)


def test_log_norms_of_a_stack_are_those_of_its_matrices():
    stack = draw(1).normal(size=(5, 2, 3, 3))
    assert log_norm(stack)[4, 1] == pytest.approx(float(log_norm(stack[4, 1])))


def test_the_shift_seminorm_is_the_distance_from_the_mean():
    seminorm = shift_seminorm([1.0] * 5)
    vector = draw(2).normal(size=5)
    assert seminorm.of(vector) == pytest.approx(float(np.linalg.norm(vector - vector.mean())))
    assert seminorm.of(vector + 7.0) == pytest.approx(seminorm.of(vector))


@given(seeds)
def test_with_weights_too_it_does_not_see_a_shift_and_its_inverse_is_one(seed):
    seminorm = shift_seminorm(draw(seed).uniform(0.2, 5, size=4))
    assert seminorm.of(np.ones(4)) == pytest.approx(0, abs=1e-9)
    assert seminorm.map @ seminorm.inverse == pytest.approx(np.eye(3), abs=1e-9)


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [1.0, math.nan], [1.0, -2.0]])
def test_weights_that_are_no_weights_are_refused(weights):
    with pytest.raises(ValueError, match="positive numbers"):
        shift_seminorm(weights)


@given(seeds)
def test_the_semi_log_norm_says_what_the_matrix_inequality_says(seed):
    """mu_R(A) <= -c exactly where P A + A^T P <= -2 c P, P = R^T R, for an A that maps the kernel into itself."""
    random = draw(seed)
    seminorm = shift_seminorm(random.uniform(0.5, 2, size=4))
    matrix = random.normal(size=(4, 4))
    matrix -= np.outer(matrix.sum(axis=1), np.ones(4)) / 4  # row sums zero: the shift is mapped to 0
    assert seminorm.kernel_defect(matrix) < 1e-12
    rate = -float(seminorm.log_norm(matrix))
    weight = seminorm.map.T @ seminorm.map
    inequality = weight @ matrix + matrix.T @ weight + 2 * rate * weight
    assert np.linalg.eigvalsh(inequality)[-1] == pytest.approx(0, abs=1e-9)


def test_a_matrix_that_turns_a_shift_into_a_difference_is_told():
    assert shift_seminorm([1.0, 1.0]).kernel_defect(np.diag([-1.0, -2.0])) > 0.1


@given(seeds)
def test_the_rate_of_blocks_holds_for_the_whole_in_the_weighted_norm(seed):
    random = draw(seed)
    whole = random.normal(size=(5, 5)) - 3 * np.eye(5)
    first, second = whole[:2, :2], whole[2:, 2:]
    gains = float(spectral_norm(whole[:2, 2:])), float(spectral_norm(whole[2:, :2]))
    found = blockwise_rate(-float(log_norm(first)), -float(log_norm(second)), *gains)
    scale = np.diag([1, 1, found.weight, found.weight, found.weight])
    assert float(log_norm(scale @ whole @ np.linalg.inv(scale))) <= -found.rate + 1e-9


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.floats(0, 50), st.floats(0, 50))
def test_blocks_contract_together_exactly_where_their_gain_is_small(first, second, a, b):
    if abs(first * second - a * b) > 1e-6:
        assert (blockwise_rate(first, second, a, b).rate > 0) == (first * second > a * b)


def test_a_ball_holds_where_its_pull_outweighs_the_residual():
    ball = InvariantBall(radius=0.2, rate=10, residual=1.5)
    assert ball.holds
    assert ball.disturbance_budget == pytest.approx(0.5)
    assert ball.equilibrium_distance == pytest.approx(0.15)


def test_a_ball_that_fails_proves_no_equilibrium():
    for ball in (InvariantBall(0.1, 10, 1.5), InvariantBall(1, -1, 0)):
        assert not ball.holds
        with pytest.raises(NoContractionError):
            _ = ball.equilibrium_distance


@given(st.floats(0.1, 30), st.floats(0, 5), st.floats(0, 5), st.floats(0, 10))
def test_the_distance_bound_is_reached_by_the_simplest_system(rate, start, disturbance, elapsed_s):
    reached = (start - disturbance / rate) * math.exp(-rate * elapsed_s) + disturbance / rate
    assert distance_bound(rate, start, disturbance, elapsed_s) == pytest.approx(reached)


def test_for_ever_after_only_the_disturbance_counts():
    assert distance_bound(4.0, 100.0, 2.0, math.inf) == 0.5


def test_the_tracking_bound_is_reached_by_the_simplest_system():
    """x' = -c (x - l p / c) with p = v t stays l v / c^2 behind."""
    rate, sensitivity, drift = 5.0, 3.0, 0.7
    behind = drift * sensitivity / rate / rate
    assert tracking_bound(rate, sensitivity, drift) == pytest.approx(behind)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_no_bound_in_time_comes_of_no_contraction(rate):
    for ask in (
        lambda: distance_bound(rate, 1, 1, 1),
        lambda: tracking_bound(rate, 1, 1),
        lambda: dwell_s_min(rate, 2),
    ):
        with pytest.raises(NoContractionError):
            ask()


@given(st.floats(0.01, 10), st.floats(1.001, 100))
def test_at_the_least_dwell_switches_undo_all_contraction(rate, growth):
    least = dwell_s_min(rate, growth)
    assert switched_rate(rate, growth, least) == pytest.approx(0, abs=1e-9)
    assert switched_rate(rate, growth, 2 * least) == pytest.approx(rate / 2)


def test_a_switch_that_does_not_grow_anything_needs_no_dwell():
    assert dwell_s_min(-3.0, 1.0) == 0


def test_a_replica_that_is_retired_in_equal_parts_leaves_no_more_imbalance():
    parts = np.concatenate([np.eye(3), np.full((3, 1), 1 / 3)], axis=1)
    assert switch_growth(parts) <= 1 + 1e-12


def test_a_replica_whose_queue_is_dumped_on_one_other_makes_imbalance_of_nothing():
    dumped = np.concatenate([np.eye(3), [[1.0], [0.0], [0.0]]], axis=1)
    assert switch_growth(dumped) == math.inf


def test_merging_into_one_leaves_nothing_to_balance():
    assert switch_growth(np.ones((1, 4))) == 0
