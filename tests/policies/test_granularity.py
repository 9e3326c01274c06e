"""The two policies: the paper's equations by hand, and what the fluid one must rank before what."""

from dataclasses import replace
from math import exp, isfinite, sqrt

import pytest
from flexpipe.policies.control.demand import asked_tokens_per_s, demand
from flexpipe.policies.control.granularity import Shape
from flexpipe.policies.control.granularity_fluid import FluidPolicy
from flexpipe.policies.control.granularity_paper import PaperPolicy, PaperSettings
from flexpipe.policies.control.observation import Dispersion, EnvelopePoint, Observation
from hypothesis import given
from hypothesis import strategies as st

ONE = Shape(1, 1, tpot_s=0.02, capacity_tokens_per_s=1000, kv_tokens=1000)
CALM = Observation(100, observed_s=100, arrivals=200, rate_per_s=2, tokens_per_s=400, tokens_per_request=200)


def envelope(rate, burst_tokens, windows=(1, 5, 10, 30, 60, 300)):
    """A steady rate with a burst on top that comes at once."""
    return tuple(EnvelopePoint(window_s, rate * window_s + burst_tokens) for window_s in windows)


def terms(score):
    return dict(score.terms)


def scores(policy, observation, *shapes, present=ONE, forecast=True):
    return policy.scores(observation, present, shapes, forecast=forecast)


def best(policy, observation, *shapes, present=ONE):
    return min(scores(policy, observation, *shapes, present=present), key=lambda score: score.cost).shape


# The paper


def test_equation_4_is_as_written():
    two = Shape(2, 1, tpot_s=0.025, capacity_tokens_per_s=1800)
    settings = PaperSettings(throughput_weight=0.3, sensitivity=2, stages_at_cv1=2)
    _, found = scores(PaperPolicy(settings), replace(CALM, cv=1.5), ONE, two)
    assert terms(found)["eq4"] == pytest.approx((0.3 * 1 + 0.7 * 0.02 / 0.025) * exp(-abs(1.5 - 1) / 2))
    assert found.cost == pytest.approx(1 / terms(found)["eq4"])


def test_the_best_depth_of_the_paper_grows_with_the_root_of_the_variation():
    """Its figures: 16 stages are best at a CV of 4, hence 8 times the root."""
    depths = [Shape(stages, 1, tpot_s=0.02, capacity_tokens_per_s=1000) for stages in range(1, 33)]
    for cv in (1, 4, 9):
        found = best(PaperPolicy(), replace(CALM, cv=cv, tokens_per_s=10), *depths, present=depths[0])
        assert found.stages == 8 * sqrt(cv)


def test_without_enough_arrivals_the_variation_counts_for_nothing():
    assert terms(scores(PaperPolicy(), CALM, ONE)[0])["cv_nearness"] == 1


@pytest.mark.parametrize(("load", "instances"), [(0, 1), (999, 1), (1000, 1), (2500, 2), (4000, 4)])
def test_equation_5_rounds_down_but_never_to_nothing(load, instances):
    (found,) = scores(PaperPolicy(), replace(CALM, tokens_per_s=load), ONE)
    assert terms(found)["instances"] == instances


def test_a_rising_load_is_looked_ahead_at_unless_that_is_switched_off():
    rising = replace(CALM, tokens_per_s=1500, slope_tokens_per_s2=50)
    ahead, today = (scores(PaperPolicy(), rising, ONE, forecast=forecast)[0] for forecast in (True, False))
    assert (terms(ahead)["instances"], terms(today)["instances"]) == (3, 1)


def test_equation_11_adds_nothing_at_rest_and_more_the_longer_the_queue_and_the_burstier_the_load():
    def added(queue, cv):
        # So much time that Eq. 12 holds with any addition.
        settings = PaperSettings(deadline_s=1e9)
        return terms(scores(PaperPolicy(settings), replace(CALM, queue=queue, cv=cv), ONE)[0])["added"]

    assert added(0, 8) == 0
    assert added(64, 4) == 3  # floor(4 / (1 + 9 exp(-4)))
    assert [added(queue, 4) for queue in (8, 32, 64, 640)] == [1, 1, 3, 3]
    assert [added(64, cv) for cv in (0.5, 2, 8)] == [1, 1, 3]


def test_equation_12_adds_until_the_queue_is_done_in_time_or_nothing_is_left_to_add():
    settings = PaperSettings(deadline_s=10, beta=1e9)
    two = Shape(1, 2, tpot_s=0.02, capacity_tokens_per_s=2000, startup_s=4)
    for queue, added in ((0, 0), (30, 1), (60, 2), (10_000, 4)):
        _, found = scores(PaperPolicy(settings), replace(CALM, queue=queue), ONE, two)
        assert terms(found)["added"] == added  # 6 s times 1000 tokens/s each, 200 tokens a request


def test_a_start_up_longer_than_the_deadline_adds_all_there_is():
    late = Shape(1, 2, tpot_s=0.02, capacity_tokens_per_s=2000, startup_s=40)
    _, found = scores(PaperPolicy(), replace(CALM, queue=1), ONE, late)
    assert terms(found)["added"] == PaperSettings().added_max


# Ours


def test_a_calm_load_keeps_the_cheapest_shape_and_a_heavy_one_does_not():
    two = Shape(1, 2, tpot_s=0.02, capacity_tokens_per_s=2000, startup_s=5)
    assert best(FluidPolicy(), CALM, ONE, two) == ONE
    heavy = replace(CALM, tokens_per_s=1500, envelope=envelope(1500, 0))
    assert best(FluidPolicy(), heavy, ONE, two) == two


def test_the_wait_is_the_worst_backlog_over_the_capacity():
    """The load runs at 2000 from 0 on; 1000 are served until the start-up at 10 s, 4000 after it: 10,000 wait at 10 s."""
    four = Shape(1, 4, tpot_s=0.02, capacity_tokens_per_s=4000, startup_s=10)
    load = replace(CALM, tokens_per_s=2000, envelope=envelope(2000, 0, windows=(1, 20, 60)))
    here, found = scores(FluidPolicy(), load, ONE, four)
    assert terms(found)["wait_s"] == pytest.approx(10_000 / 4000)
    assert terms(here)["wait_s"] == pytest.approx(60_000 / 1000)


def test_of_equal_capacities_bursts_prefer_the_depth_that_starts_sooner_and_calm_the_one_with_fewer_hops():
    deep = Shape(4, 1, tpot_s=0.023, capacity_tokens_per_s=4000, startup_s=3)
    wide = Shape(1, 4, tpot_s=0.02, capacity_tokens_per_s=4000, startup_s=25)
    burst = replace(CALM, tokens_per_s=2500, envelope=envelope(2500, 10_000))
    assert best(FluidPolicy(), burst, ONE, deep, wide) == deep
    assert best(FluidPolicy(), CALM, deep, wide, present=deep) == wide


def test_made_equally_fast_to_start_depth_wins_nothing():
    """The ablation: what depth gains under bursts is start-up, not granularity."""
    deep = Shape(4, 1, tpot_s=0.023, capacity_tokens_per_s=4000, startup_s=25)
    wide = Shape(1, 4, tpot_s=0.02, capacity_tokens_per_s=4000, startup_s=25)
    burst = replace(CALM, tokens_per_s=2500, envelope=envelope(2500, 10_000))
    assert best(FluidPolicy(), burst, ONE, deep, wide) == wide


def test_scarce_large_fragments_prefer_small_stages():
    deep = Shape(4, 1, tpot_s=0.021, capacity_tokens_per_s=4000, startup_s=5)
    wide = Shape(1, 4, tpot_s=0.02, capacity_tokens_per_s=4000, startup_s=5, fragmentation_share=0.2)
    assert best(FluidPolicy(), CALM, deep, wide) == deep


def test_too_little_kv_room_is_too_little_capacity():
    """8 requests hold half of 1000 tokens for 2 s: 1000 tokens let 16 in at once, 8 a second, 1600 tokens/s."""
    seen = replace(CALM, running=8, kv_used_share=0.5, service_s=2)
    roomy = Shape(1, 2, tpot_s=0.02, capacity_tokens_per_s=9000, kv_tokens=2000)
    tight = Shape(1, 2, tpot_s=0.02, capacity_tokens_per_s=9000, kv_tokens=1000)
    found = [terms(score)["capacity_tokens_per_s"] for score in scores(FluidPolicy(), seen, roomy, tight)]
    assert found == [pytest.approx(3200), pytest.approx(1600)]


def test_no_start_up_is_believed_that_is_shorter_than_any_observed():
    hopeful = Shape(2, 1, tpot_s=0.02, capacity_tokens_per_s=2000, startup_s=0.1)
    here, found = scores(FluidPolicy(), replace(CALM, startup_least_s=7), ONE, hopeful)
    assert (terms(here)["startup_s"], terms(found)["startup_s"]) == (0, 7)


def test_a_forecast_raises_the_demand_of_a_rising_load_to_twice_its_rate_and_no_further():
    rising = replace(CALM, slope_tokens_per_s2=40, envelope=envelope(100, 0))
    assert demand(rising, forecast=True).within(5) == pytest.approx(400 * 5 + 40 * 5**2 / 2)
    assert demand(rising, forecast=False).within(5) == pytest.approx(400 * 5)
    assert demand(rising, forecast=True).within(300) < 300 * 800
    falling = replace(rising, slope_tokens_per_s2=-40)
    assert demand(falling, forecast=True).within(30) == demand(falling, forecast=False).within(30)


def test_the_load_asks_for_its_rate_and_a_drained_backlog_or_the_worst_it_ever_did():
    waiting = replace(CALM, queue=30)
    assert asked_tokens_per_s(waiting, 60, forecast=True) == pytest.approx(400 + 6000 / 60)
    worse = replace(waiting, envelope=envelope(400, 60_000))
    assert asked_tokens_per_s(worse, 60, forecast=True) == pytest.approx(400 + 60_000 / 60)


# Both

positive = st.floats(1e-9, 1e15)
anything = st.floats(0, 1e15)
shapes = st.builds(
    Shape,
    stages=st.integers(1, 64),
    replicas=st.integers(1, 16),
    tpot_s=positive,
    capacity_tokens_per_s=positive,
    startup_s=anything,
    switch_s=anything,
    fragmentation_share=st.floats(-1, 1),
    kv_tokens=st.integers(0, 10**9),
)
observations = st.builds(
    Observation,
    at_s=anything,
    observed_s=anything,
    rate_per_s=anything,
    tokens_per_s=anything,
    slope_tokens_per_s2=st.floats(-1e15, 1e15),
    tokens_per_request=st.floats(0, 1e9),
    cv=st.none() | anything,
    dispersion=st.just(()) | st.builds(lambda idc: (Dispersion(10, idc, idc, 5),), anything),
    envelope=st.just(()) | st.builds(envelope, st.floats(0, 1e9), st.floats(0, 1e9)),
    queue=st.integers(0, 10**9),
    running=st.integers(0, 10**9),
    kv_used_share=st.floats(0, 1),
    service_s=st.none() | st.floats(0, 1e9),
    startup_least_s=st.none() | st.floats(0, 1e9),
)


@pytest.mark.parametrize("policy", [PaperPolicy(), FluidPolicy()], ids=["paper", "fluid"])
@given(observation=observations, present=shapes, candidates=st.lists(shapes, max_size=6), forecast=st.booleans())
def test_whatever_the_load_each_candidate_has_one_finite_positive_cost_and_always_the_same(
    policy, observation, present, candidates, forecast
):
    found = policy.scores(observation, present, candidates, forecast=forecast)
    assert [score.shape for score in found] == candidates
    assert all(score.cost > 0 and isfinite(score.cost) and isfinite(score.switch_cost) for score in found)
    assert all(isfinite(value) for score in found for _, value in score.terms)
    assert found == policy.scores(observation, present, candidates, forecast=forecast)


@given(observation=observations, present=shapes, shape=shapes, more=st.floats(1, 100))
def test_more_capacity_never_means_more_waiting(observation, present, shape, more):
    bigger = replace(shape, capacity_tokens_per_s=min(shape.capacity_tokens_per_s * more, 1e15))
    waits = [terms(scores(FluidPolicy(), observation, one, present=present)[0])["wait_s"] for one in (shape, bigger)]
    assert waits[1] <= waits[0] * (1 + 1e-9)
