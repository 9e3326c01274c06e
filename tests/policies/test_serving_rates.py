"""The rates behind the serving certificate, against the fluid model that they are of."""

import math

import numpy as np
import pytest
from flexpipe.policies.certificate.contraction import log_norm, shift_seminorm
from flexpipe.policies.certificate.serving_rates import (
    balance_rate,
    ball_radius_s,
    drain_s_min,
    greatest_weight,
    least_weight,
    pause_growth,
    phase_margin_deg,
    sharpness_max_per_s,
)
from hypothesis import given, settings
from hypothesis import strategies as st

seeds = st.integers(0, 2**32 - 1)
replicas = st.integers(2, 9)


def shares_of(random, count):
    """Shares of capacity, from equal to very unequal."""
    return random.dirichlet(np.full(count, 10 ** random.uniform(-0.5, 2)))


def routed(shares, sharpness, delays):
    """Soft-min: p_i proportional to pi_i e^(-beta x_i)."""
    weights = shares * np.exp(-sharpness * (delays - delays.min()))
    return weights / weights.sum()


def delays_within(random, count, spread):
    """Delays that reach across the whole spread, in any pattern."""
    return (
        spread
        * np.concatenate([[0, 1], random.choice([0, 1, random.uniform()], size=count - 2)])[random.permutation(count)]
    )


def contraction(shares, sharpness, delays):
    """The rate in sqrt(sum pi x^2) at some delays, of load 1: -mu of -beta diag(1/pi)(diag p - p p^T), the shift taken out."""
    p = routed(shares, sharpness, delays)
    root = np.sqrt(shares)
    basis = np.linalg.svd(root[np.newaxis])[2][1:]
    symmetric = sharpness * (np.diag(p) - np.outer(p, p)) / np.outer(root, root)
    return np.linalg.eigvalsh(basis @ symmetric @ basis.T)


# --- claim A: balance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spread", "bound", "sampled"),
    [
        (0, 0.750, 0.750),
        (0.5, 0.601, 0.638),
        (1, 0.478, 0.548),
        (2, 0.300, 0.383),
        (4, 0.114, 0.194),
        (8, 0.016, 0.034),
    ],
)
def test_the_table_of_soft_min_routing(spread, bound, sampled):
    """n = 8, beta = .5, lambda = 12, overloaded, in the plain projection seminorm: the bound, and that random queues come near.

    ``sampled`` is the worst of queues drawn in a milder way, once.
    """
    found = balance_rate(12 / 8, 1 / 8, 0.5, spread)
    assert found == pytest.approx(bound, abs=5e-4)
    random, seminorm = np.random.default_rng(0), shift_seminorm([1.0] * 8)
    worst = math.inf
    for _ in range(2000):
        queues = np.concatenate([[0, spread], random.uniform(0, spread, 6)])
        p = routed(np.full(8, 1 / 8), 0.5, queues)
        worst = min(worst, -float(seminorm.log_norm(-12 * 0.5 * (np.diag(p) - np.outer(p, p)))))
    assert found - 1e-12 <= worst <= 1.01 * sampled


@settings(max_examples=200, deadline=None)
@given(seeds, replicas, st.floats(0.01, 5), st.floats(0.01, 4))
def test_soft_min_routing_contracts_at_the_rate_at_least_whatever_the_speeds(seed, count, sharpness, spread):
    random = np.random.default_rng(seed)
    shares = shares_of(random, count)
    rates = contraction(shares, sharpness, delays_within(random, count, spread))
    bound = balance_rate(1.0, float(shares.min()), sharpness, spread)
    assert rates[0] >= bound * (1 - 1e-9) - 1e-12


@given(seeds, replicas, st.floats(0.01, 5), st.floats(0.01, 4))
def test_weights_stay_between_the_least_and_the_greatest(seed, count, sharpness, spread):
    random = np.random.default_rng(seed)
    shares = shares_of(random, count)
    weights = routed(shares, sharpness, delays_within(random, count, spread)) / shares
    least = float(shares.min())
    assert weights.min() >= least_weight(least, sharpness, spread) * (1 - 1e-9)
    assert weights.max() <= greatest_weight(least, sharpness, spread) * (1 + 1e-9)


@given(seeds, replicas, st.floats(0.05, 3), st.floats(0.1, 20))
def test_least_work_routing_evens_out_at_the_rate_at_least(seed, count, load, spread):
    """The variance's derivative, all arrivals going to the shortest queue and every replica being busy."""
    random = np.random.default_rng(seed)
    shares = shares_of(random, count)
    delays = delays_within(random, count, spread)
    mean = shares @ delays
    variance = shares @ (delays - mean) ** 2
    derivative = np.full(count, -1.0)
    shortest = int(delays.argmin())
    derivative[shortest] += load / shares[shortest]
    change = 2 * shares @ ((delays - mean) * derivative)
    if variance > 1e-12:
        assert -change / (2 * variance) >= balance_rate(load, float(shares.min()), math.inf, spread) * (1 - 1e-9)


@given(seeds, replicas, st.floats(0.1, 20))
def test_the_ball_lies_within_the_spread_that_it_is_made_for(seed, count, spread):
    random = np.random.default_rng(seed)
    shares = shares_of(random, count)
    delays = random.normal(size=count)
    delays -= shares @ delays
    delays *= ball_radius_s(float(shares.min()), spread) / math.sqrt(shares @ delays**2)
    assert np.ptp(delays) <= spread * (1 + 1e-9)


def test_a_burst_for_everyone_alike_costs_no_balance():
    """Claim E's kernel: more work, shared out as at balance, moves no delay away from the others."""
    shares = np.array([0.5, 0.3, 0.2])
    burst = 7.0 * routed(shares, 2.0, np.zeros(3)) / shares
    assert np.ptp(burst) == pytest.approx(0)


def test_misjudged_speeds_within_the_budget_never_push_queues_out_of_the_region():
    shares, sharpness, spread, load = np.full(4, 0.25), 0.5, 2.0, 0.9
    rate = balance_rate(load, 0.25, sharpness, spread)
    radius = ball_radius_s(0.25, spread)
    delays, worst = 50 + np.zeros(4), 0.0
    wrong = np.array([1.0, 1.0, -1.0, -1.0]) * rate * radius  # of norm c r: the whole budget, always the same way
    for _ in range(20_000):
        p = routed(shares, sharpness, delays)
        delays += 0.01 * (load * p / shares - 1 + wrong)
        worst = max(worst, float(np.ptp(delays)))
    assert 0.2 * spread < worst <= spread


# --- claim B: drain ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("startup", "lag", "margin"), [(5, 2, 47), (20, 5, 47), (2, 10, 54), (10, 0.1, 46)])
def test_phase_margins_at_the_least_drain_time(startup, lag, margin):
    assert phase_margin_deg(drain_s_min(startup, lag), startup, lag) == pytest.approx(margin, abs=1)


@given(st.floats(0, 300), st.floats(0, 300))
def test_the_drain_rule_always_leaves_45_degrees(startup, lag):
    if startup + lag > 1e-3:
        assert phase_margin_deg(drain_s_min(startup, lag), startup, lag) >= 45


@given(st.floats(0.1, 100), st.floats(0, 50), st.floats(0, 50))
def test_the_phase_margin_is_the_loops_at_gain_one(drain, startup, lag):
    def gain(w):
        return abs(1 / (1j * w * drain * (1 + 1j * w * lag)))

    low, high = 1e-9, 1e4
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gain(middle) > 1 else (low, middle)
    phase = 90 + math.degrees(math.atan(low * lag) + low * startup)
    assert phase_margin_deg(drain, startup, lag) == pytest.approx(180 - phase, abs=1e-3)


@pytest.mark.parametrize(("factor", "settles"), [(1.3, True), (0.5, False)])
def test_a_backlog_that_is_chased_too_fast_swings_ever_wider(factor, settles):
    """Q' = load - C, C follows Q / T late by 20 s and slow by 5 s: simulated, capacity unbounded either way."""
    startup, lag, step = 20.0, 5.0, 0.02
    drain = factor * (startup + lag)
    late = int(startup / step)
    backlog, capacity, asked = 1.0, 0.0, [0.0] * late
    peaks = [0.0, 0.0]
    steps = int(1200 / step)
    for number in range(steps):
        asked.append(backlog / drain)
        capacity += step * (asked[number] - capacity) / lag
        backlog -= step * capacity
        half = 0 if number < steps // 2 else 1
        peaks[half] = max(peaks[half], abs(backlog))
    assert (peaks[1] < 0.01 * peaks[0]) == settles
    assert (peaks[1] > 2 * peaks[0]) != settles


# --- claim C: stale reports -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of_limit", "least", "most"), [(0.9, 0, 1e-6), (1.1, 0.3, 1.5), (2.0, 2, 8)])
def test_a_router_too_sharp_for_its_reports_herds(of_limit, least, most):
    """n = 8, reports once a second, 60 of them: the spread dies out below 2 n / (lambda Delta) and lasts above."""
    count, arriving, age = 8, 12.0, 1.0
    load = arriving / count
    sharpness = of_limit * sharpness_max_per_s(load, age)
    assert sharpness == pytest.approx(of_limit * 2 * count / (arriving * age))
    shares = np.full(count, 1 / count)
    delays = 100 + 0.01 * np.random.default_rng(1).normal(size=count)
    for _ in range(60):
        delays = delays + age * (load * routed(shares, sharpness, delays) / shares - 1)
    assert least <= np.ptp(delays) <= most


@given(seeds, st.integers(2, 12))
def test_a_routers_sensitivity_is_at_most_a_half(seed, count):
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(count, 10 ** random.uniform(-2, 1)))
    largest = float(log_norm(np.diag(p) - np.outer(p, p)))
    assert largest <= min(0.5, float(p.max())) + 1e-12


@settings(max_examples=100, deadline=None)
@given(seeds, replicas, st.floats(0.05, 3), st.floats(0.1, 2), st.floats(0.05, 2))
def test_below_the_regions_limit_no_report_is_overshot(seed, count, load, spread, age):
    """|1 - Delta load lambda| < 1 for every mode, anywhere in the region."""
    random = np.random.default_rng(seed)
    shares = shares_of(random, count)
    least, sharpness = float(shares.min()), random.uniform(0.01, 3)
    limit = sharpness_max_per_s(load, age, greatest_weight(least, sharpness, spread))
    if sharpness < limit:
        modes = contraction(shares, sharpness, delays_within(random, count, spread))
        assert np.all(np.abs(1 - age * load * modes) < 1)


def test_a_router_that_counts_itself_may_be_as_sharp_as_it_likes():
    assert sharpness_max_per_s(0.9, 0.0) == math.inf


# --- claim D: changes -------------------------------------------------------------------------------------------------


@given(seeds, replicas, st.floats(0, 3), st.floats(0.1, 20))
def test_replicas_that_stand_still_one_by_one_never_grow_imbalance_beyond_the_factor(seed, count, pause, spread):
    random = np.random.default_rng(seed)
    shares = shares_of(random, count)
    delays = random.normal(size=count)
    delays -= shares @ delays
    radius = ball_radius_s(float(shares.min()), spread)
    delays *= radius / math.sqrt(shares @ delays**2)
    for done in range(count + 1):
        after = delays + pause * (np.arange(count) < done)
        after -= shares @ after
        assert math.sqrt(shares @ after**2) <= radius * pause_growth(float(shares.min()), pause, spread) * (1 + 1e-9)
