"""How many requests will be there when new capacity serves, what room shapes have, and what controller and policy make of it."""

from dataclasses import replace
from math import exp, sqrt

import pytest
from flexpipe.policies.control.controller import decide, settled
from flexpipe.policies.control.decision import ControllerMemory, Limits
from flexpipe.policies.control.granularity import Score, Shape
from flexpipe.policies.control.granularity_fluid import FluidPolicy, FluidWeights
from flexpipe.policies.control.observation import Dispersion, Observation
from flexpipe.policies.control.occupancy import SPREAD, asked_by_occupancy, expected_requests, room_for
from hypothesis import given
from hypothesis import strategies as st

SEEN = Observation(
    100.0,
    observed_s=100,
    arrivals=1000,
    rate_per_s=10,
    tokens_per_s=1000,
    tokens_per_request=100,
    rows=640,
    service_s=40.0,
)
FLEET = Limits(gain_replicas_min=0.0, confirm_grow_s=2, confirm_shrink_s=10, dwell_s_min=0, observed_s_min=0)


def shape(replicas, stages=4, capacity=250.0, kv=10_000, **more):
    return Shape(stages, replicas, 0.1, capacity * replicas, kv_tokens=kv * replicas, **more)


def test_from_rest_requests_come_as_a_queue_with_a_server_for_everyone_fills():
    seen = replace(SEEN, dispersion=(Dispersion(5.0, 4.0, 4.0, 20),))
    left = exp(-5 / 40)
    spread = SPREAD * sqrt(4.0 * 400 * (1 - left**2) / 2)
    assert expected_requests(seen, shape(4), 5.0) == pytest.approx(400 * (1 - left) + spread)


def test_a_number_that_falls_is_not_run_ahead_of():
    seen = replace(SEEN, running=600, rate_per_s=0.0, arrivals=0)
    assert expected_requests(seen, shape(4), 5.0) == 600


def test_the_calm_before_a_burst_does_not_hide_how_much_may_come():
    silent = replace(SEEN, rate_per_s=0.0)
    assert expected_requests(silent, shape(4), 5.0) > expected_requests(replace(silent, arrivals=0), shape(4), 5.0)


def test_without_the_rows_nothing_is_told():
    assert expected_requests(replace(SEEN, rows=0), shape(4), 5.0) is None
    assert asked_by_occupancy(replace(SEEN, rows=0), shape(4), 5.0) is None


def test_room_is_rows_or_kv_if_that_is_less():
    present = shape(4)
    assert room_for(SEEN, present, shape(8)) == 1280
    full = replace(SEEN, running=200, kv_used_share=0.5)  # 100 KV tokens each, of 40,000
    assert room_for(full, present, present) == 400
    assert room_for(full, present, shape(2)) == 200


def test_a_deep_shape_is_not_believed_to_hold_more_than_it_serves():
    full = replace(SEEN, running=200, kv_used_share=0.5)
    deep = shape(2, stages=8, capacity=450.0, kv=40_000)
    assert room_for(full, shape(4), deep) == pytest.approx(400 * 0.9)


def test_the_load_asks_for_as_much_as_it_will_fill():
    full = replace(SEEN, running=400, kv_used_share=1.0, rate_per_s=10.0, arrivals=0)
    assert asked_by_occupancy(full, shape(4), 0.0) == pytest.approx(1000.0)


def test_the_policy_takes_the_fewest_replicas_that_let_all_in_within_the_deadline():
    full = replace(SEEN, running=400, queue=90, kv_used_share=1.0, arrivals=0, rate_per_s=0.0)
    policy = FluidPolicy(FluidWeights(wait_s=10.0, per_device=1 / 16))
    candidates = [shape(n, startup_s=4.0) for n in (3, 4, 5, 6)]
    scores = policy.scores(full, shape(4), candidates, forecast=True)
    assert min(scores, key=lambda score: score.cost).shape.replicas == 5


class _Advice:
    """Wants so many replicas."""

    name = "advice"

    def __init__(self):
        self.replicas = 8

    def scores(self, observation, present, candidates, *, forecast):
        return tuple(Score(each, 1 + abs(each.replicas - self.replicas)) for each in candidates)


def test_a_fleet_shrinks_to_the_most_that_was_advised_while_it_was_confirmed():
    policy, memory, present = _Advice(), ControllerMemory(), shape(8)
    quiet = replace(SEEN, running=10, rate_per_s=0.0, arrivals=0)
    for at_s, advised in enumerate([3, 3, 3, 5, 3, 3, 2, 2, 2, 2, 2, 2]):
        policy.replicas = advised
        seen = replace(quiet, at_s=float(at_s))
        memory, decision = decide(memory, seen, present, [shape(n) for n in range(1, 9)], policy, FLEET)
        if decision.action == "change":
            present, memory = decision.wanted, settled(memory, float(at_s), succeeded=True)
            break
    assert (at_s, present.replicas) == (10, 5)


def test_a_change_of_depth_needs_the_usual_gain_where_one_of_replicas_needs_none():
    limits = replace(FLEET, gain_min=0.5, confirm_shrink_s=0)

    class Slightly:
        name = "slightly"

        def scores(self, observation, present, candidates, *, forecast):
            costs = {(4, 8): 1.0, (8, 4): 0.8, (4, 7): 0.9}
            return tuple(Score(each, costs[each.stages, each.replicas]) for each in candidates)

    quiet = replace(SEEN, running=10, rate_per_s=0.0, arrivals=0)
    _, decision = decide(
        ControllerMemory(), quiet, shape(8), [shape(4, stages=8, capacity=500), shape(7)], Slightly(), limits
    )
    assert (decision.action, decision.wanted.stages, decision.wanted.replicas) == ("change", 4, 7)


@given(
    st.integers(0, 2000),
    st.integers(0, 2000),
    st.floats(0, 100),
    st.floats(0.1, 100),
    st.floats(0, 60),
    st.floats(0, 60),
)
def test_a_longer_horizon_never_expects_fewer(queue, running, rate, life_s, near_s, more_s):
    seen = replace(SEEN, queue=queue, running=running, rate_per_s=rate, service_s=life_s)
    here, there = expected_requests(seen, shape(4), near_s), expected_requests(seen, shape(4), near_s + more_s)
    assert there >= here * (1 - 1e-9)
