"""When the controller changes a pipeline's shape, when it does not, and that it always says why."""

from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest
from flexpipe.policies.control.controller import decide, settled
from flexpipe.policies.control.decision import ControllerMemory, Decision, Limits, Refusal
from flexpipe.policies.control.granularity import Score, Shape
from flexpipe.policies.control.granularity_fluid import FluidPolicy
from flexpipe.policies.control.granularity_paper import PaperPolicy
from flexpipe.policies.control.observation import EnvelopePoint, Observation
from hypothesis import given, settings
from hypothesis import strategies as st

NAN, INF = float("nan"), float("inf")
LIMITS = Limits(confirm_grow_s=5, confirm_shrink_s=20, dwell_s_min=30, changes_per_hour_max=3, observed_s_min=10)


def shape(replicas, stages=1, **more):
    return Shape(stages, replicas, tpot_s=0.02, capacity_tokens_per_s=1000 * stages * replicas, **more)


def loaded(at_s, tokens_per_s, **more):
    return Observation(
        at_s, observed_s=100, arrivals=99, rate_per_s=1, tokens_per_s=tokens_per_s, tokens_per_request=100, **more
    )


class Told:
    """A policy whose costs are told, by number of replicas; 1 where nothing is."""

    name = "told"

    def __init__(self, costs=None, switch_cost=0.0):
        self.costs, self.switch_cost = costs or {}, switch_cost

    def scores(self, observation, present, candidates, *, forecast):
        return tuple(Score(shape, self.costs.get(shape.replicas, 1.0), self.switch_cost) for shape in candidates)


class Controlled:
    """A pipeline under control: `at` is one decision; changes are done at once unless told otherwise."""

    def __init__(self, policy, limits=LIMITS, candidates=(shape(1), shape(2), shape(4)), present=None, guard=None):
        self.policy, self.limits, self.candidates, self.guard = policy, limits, candidates, guard
        self.present = present or candidates[0]
        self.memory = ControllerMemory()

    def at(self, at_s, tokens_per_s=3000.0, succeeds=True, **more):
        seen = loaded(at_s, tokens_per_s, **more)
        self.memory, decision = decide(
            self.memory, seen, self.present, self.candidates, self.policy, self.limits, self.guard
        )
        if decision.action == "change" and succeeds is not None:
            self.memory = settled(self.memory, at_s, succeeded=succeeds)
            self.present = decision.wanted if succeeds else self.present
        return decision

    def until(self, start_s, end_s, **more):
        return [self.at(at_s, **more) for at_s in range(start_s, end_s)]


def reasons(decisions):
    """Each reason once, in the order of its first appearance in a row."""
    return [
        d.reason
        for before, d in zip([None, *decisions], decisions, strict=False)
        if before is None or before.reason != d.reason
    ]


BETTER = Told({1: 1.0, 2: 0.5, 4: 0.9})


def test_growth_that_the_load_asks_for_is_confirmed_for_a_short_time():
    decisions = Controlled(BETTER).until(0, 6)
    assert reasons(decisions) == ["not-yet-confirmed", "worth-it"]
    assert (decisions[5].at_s, decisions[5].wanted) == (5, shape(2))


def test_anything_else_is_confirmed_for_a_long_time():
    decisions = Controlled(Told({1: 0.5}), present=shape(4)).until(0, 21, tokens_per_s=100)
    assert [d.at_s for d in decisions if d.action == "change"] == [20]


def test_one_moment_of_doubt_begins_the_confirmation_anew():
    controlled = Controlled(BETTER)
    controlled.until(0, 4)
    controlled.policy = Told()
    assert controlled.at(4).reason == "best-already"
    controlled.policy = BETTER
    decisions = controlled.until(5, 11)
    assert [d.at_s for d in decisions if d.action == "change"] == [10]


def test_a_small_gain_is_no_reason():
    decision = Controlled(Told({2: 0.9}), replace(LIMITS, gain_min=0.11)).at(0)
    assert (decision.reason, decision.wanted) == ("gain-too-small", shape(2))


def test_a_change_waits_until_staying_has_cost_as_much():
    controlled = Controlled(Told({2: 0.5}, switch_cost=6.0))
    decisions = controlled.until(0, 14)
    assert reasons(decisions) == ["not-yet-confirmed", "not-yet-paid", "worth-it", "best-already"]
    assert [d.at_s for d in decisions if d.action == "change"] == [12]  # 12 s at half a cost a second


def test_between_two_changes_the_pipeline_dwells():
    controlled = Controlled(BETTER)
    controlled.until(0, 6)
    controlled.policy = Told({2: 1.0, 4: 0.5})
    decisions = controlled.until(6, 40)
    assert reasons(decisions)[:3] == ["not-yet-confirmed", "dwelling", "worth-it"]
    assert [d.at_s for d in decisions if d.action == "change"] == [35]


def test_while_a_change_is_under_way_nothing_is_decided():
    controlled = Controlled(BETTER)
    changes = [d for d in (controlled.at(at_s, succeeds=None) for at_s in range(200)) if d.action == "change"]
    assert len(changes) == 1
    assert controlled.at(200).reason == "change-under-way"
    controlled.memory = settled(controlled.memory, 200, succeeded=True)
    assert controlled.at(201).reason == "not-yet-confirmed"


def test_changes_that_fail_are_tried_at_ever_longer_intervals():
    controlled = Controlled(BETTER, replace(LIMITS, changes_per_hour_max=99, dwell_s_min=1, failure_pause_s=20))
    tried = [d.at_s for d in controlled.until(0, 400, succeeds=False) if d.action == "change"]
    assert tried == [5, 25, 65, 145, 305]
    assert controlled.at(400, succeeds=False).reason == "pause-after-failure"


def test_no_more_changes_than_the_budget_are_begun_in_any_hour():
    controlled = Controlled(BETTER, replace(LIMITS, dwell_s_min=0))
    begun = []
    for at_s in range(8000):
        controlled.policy = Told(
            {controlled.present.replicas: 1.0, 1: 0.9, 2: 0.9, 4: 0.9}
            | {(2 if controlled.present.replicas == 1 else 1): 0.1}
        )
        if controlled.at(at_s, tokens_per_s=3000).action == "change":
            begun.append(at_s)
    assert max(sum(at_s <= other < at_s + 3600 for other in begun) for at_s in begun) == 3


def test_the_last_change_of_the_hour_is_kept_for_growing():
    controlled = Controlled(BETTER, replace(LIMITS, dwell_s_min=0, changes_per_hour_max=2))
    controlled.until(0, 6)
    assert controlled.present == shape(2)
    controlled.policy = Told({1: 0.1})
    assert controlled.until(6, 60, tokens_per_s=10)[-1].reason == "budget-kept-to-grow"
    controlled.policy = Told({4: 0.1})
    assert [d.action for d in controlled.until(60, 66)][-1] == "change"
    controlled.policy = Told({1: 0.1})
    assert controlled.until(66, 100, tokens_per_s=10)[-1].reason == "budget-spent"


def test_more_than_the_load_asks_for_is_not_had_for_more_devices():
    controlled = Controlled(Told({2: 0.9, 4: 0.1}))
    decision = controlled.at(0, tokens_per_s=1500)
    assert (decision.reason, decision.wanted) == ("gain-too-small", shape(2))
    refused = {score.shape.replicas: score.refused for score in decision.scores}
    assert "the load asks for 1500 tokens/s" in refused[4]
    assert refused[2] is None


def test_the_least_that_is_enough_may_be_had_however_large():
    controlled = Controlled(Told({4: 0.1}), candidates=(shape(1), shape(4)))
    assert controlled.until(0, 6, tokens_per_s=1100)[-1].wanted == shape(4)


def test_a_shape_with_as_many_devices_may_have_more_capacity_than_is_asked_for():
    merged = Shape(1, 4, tpot_s=0.02, capacity_tokens_per_s=9000)
    controlled = Controlled(Told({4: 0.1}), candidates=(shape(1, stages=4), merged))
    assert controlled.until(0, 21, tokens_per_s=10)[-1].wanted == merged


# The guard


def test_a_guard_may_refuse_and_the_next_best_is_asked_for():
    asked = []

    def guard(inputs):
        asked.append(inputs)
        return Refusal("drain-horizon", "too fast") if inputs.wanted.replicas == 2 else None

    decision = Controlled(Told({2: 0.3, 4: 0.5}), guard=guard).until(0, 6)[-1]
    assert (decision.action, decision.wanted) == ("change", shape(4))
    assert [(inputs.wanted.replicas, inputs.lag_s, inputs.drain_s) for inputs in asked] == [(2, 5, 60), (4, 5, 60)]
    assert {score.shape.replicas: score.refused for score in decision.scores}[2] == "the guard refuses it: too fast"


def test_where_the_guard_refuses_all_the_pipeline_stays_and_the_guard_is_named():
    controlled = Controlled(BETTER, guard=lambda inputs: Refusal("dwell", "too soon"))
    decisions = controlled.until(0, 30)
    assert reasons(decisions) == ["not-yet-confirmed", "guard"]
    assert "too soon" in decisions[-1].sentence


def test_a_guard_that_refuses_growth_lets_no_unconfirmed_reshaping_pass():
    candidates = (shape(1), shape(2), Shape(1, 4, tpot_s=0.01, capacity_tokens_per_s=500))
    controlled = Controlled(
        Told({2: 0.3, 4: 0.5}),
        candidates=candidates,
        guard=lambda inputs: Refusal("dwell", "too soon") if inputs.wanted.replicas == 2 else None,
    )
    assert controlled.until(0, 10)[-1].reason == "guard"


# What is wrong


def test_signals_that_are_no_numbers_decide_nothing():
    controlled = Controlled(BETTER)
    for name in ("at_s", "tokens_per_s", "queue", "slope_tokens_per_s2", "service_s"):
        seen = replace(loaded(0, 3000), **{name: NAN})
        _, decision = decide(controlled.memory, seen, shape(1), controlled.candidates, BETTER, LIMITS)
        assert (decision.reason, name in decision.sentence) == ("bad-signals", True)


def test_an_envelope_that_is_no_work_decides_nothing():
    assert Controlled(BETTER).at(0, envelope=(EnvelopePoint(1, NAN),)).reason == "bad-signals"


@pytest.mark.parametrize(
    "wrong",
    [
        {"tpot_s": NAN},
        {"tpot_s": 0},
        {"capacity_tokens_per_s": -1},
        {"startup_s": INF},
        {"moved_bytes": -5},
        {"kv_tokens": -1},
        {"fragmentation_share": NAN},
        {"stages": 0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_candidate_that_is_no_shape_is_out_by_name_and_the_others_stay(wrong):
    controlled = Controlled(Told({1: 1.0, 2: 0.1, 4: 0.5}), candidates=(shape(1), replace(shape(2), **wrong), shape(4)))
    decision = controlled.until(0, 6)[-1]
    assert (decision.action, decision.wanted) == ("change", shape(4))
    assert decision.scores[1].refused


def test_a_present_shape_that_is_none_is_named():
    assert Controlled(BETTER, present=replace(shape(1), tpot_s=NAN)).at(0).reason == "bad-present"


def test_a_clock_that_goes_back_takes_dwell_and_budget_with_it():
    controlled = Controlled(BETTER, replace(LIMITS, changes_per_hour_max=1))
    controlled.until(1000, 1006)
    controlled.policy = Told({4: 0.1})
    assert controlled.at(3).reason == "clock-went-back"
    decisions = controlled.until(4, 3500)
    assert [d for d in decisions if d.action == "change"] == []
    assert reasons(decisions) == ["not-yet-confirmed", "dwelling", "budget-spent"]


def test_a_clock_that_leaps_releases_neither_dwell_nor_budget_nor_confirmation():
    controlled = Controlled(BETTER)
    controlled.until(0, 3)
    assert controlled.at(50_000).reason == "not-observed"
    assert controlled.at(50_001).reason == "not-yet-confirmed"
    controlled.until(50_002, 50_007)
    assert controlled.present == shape(2)
    controlled.policy = Told({4: 0.1})
    controlled.at(90_000)
    assert controlled.until(90_001, 90_010)[-1].reason == "dwelling"


def test_too_little_history_is_named():
    assert Controlled(BETTER).at(0).reason == "not-yet-confirmed"
    assert Controlled(BETTER, replace(LIMITS, observed_s_min=101)).at(0).reason == "too-little-seen"


@pytest.mark.parametrize("policy", [FluidPolicy(), PaperPolicy()], ids=["fluid", "paper"])
def test_zero_traffic_is_no_error_and_ends_at_the_least_shape(policy):
    nothing = Observation(0, observed_s=100)
    memory, present, changes = ControllerMemory(), shape(4), 0
    for at_s in range(1000):
        memory, decision = decide(memory, replace(nothing, at_s=at_s), present, (shape(1), shape(4)), policy, LIMITS)
        if decision.action == "change":
            changes, present, memory = changes + 1, decision.wanted, settled(memory, at_s, succeeded=True)
    assert (present, changes) == (shape(1), 1)
    assert decision.reason == "best-already"


@pytest.mark.parametrize("policy", [FluidPolicy(), PaperPolicy()], ids=["fluid", "paper"])
def test_with_one_device_nothing_can_change_and_that_is_said(policy):
    decision = Controlled(policy, candidates=(shape(1),)).at(0)
    assert (decision.reason, decision.sentence) == ("no-candidate", "there is nothing else than 1 stage")


@pytest.mark.parametrize("policy", [FluidPolicy(), PaperPolicy()], ids=["fluid", "paper"])
def test_when_every_device_is_full_the_tightest_limit_is_told(policy):
    full = [Shape(stages, 2, refused="device cpu:1 lacks 300 MiB") for stages in (1, 2)]
    decision = Controlled(policy, candidates=(shape(1), *full)).until(0, 30)[-1]
    assert decision.reason == "no-candidate"
    assert decision.sentence == "none of 2 other shapes can be had; 2 replicas of 1 stage: device cpu:1 lacks 300 MiB"


def test_an_unknown_end_of_a_change_is_its_latest_known_time():
    memory = ControllerMemory(at_s=50, under_way=True)
    assert settled(memory, NAN, succeeded=True).settled_s == 50
    assert settled(memory, 10, succeeded=True).settled_s == 50


@pytest.mark.parametrize(
    "wrong", [{"dwell_s_min": NAN}, {"gain_min": 1.0}, {"changes_per_hour_max": -1}, {"drain_s": 0.0}]
)
def test_limits_that_limit_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


# Always

numbers = st.floats() | st.floats(0, 1e4)
wild_shapes = st.builds(
    Shape,
    stages=st.integers(-1, 8),
    replicas=st.integers(-1, 4),
    tpot_s=numbers,
    capacity_tokens_per_s=numbers,
    startup_s=numbers,
    switch_s=numbers,
    fragmentation_share=numbers,
    refused=st.none() | st.just("no room"),
)
wild_observations = st.builds(
    Observation,
    at_s=numbers | st.floats(0, 100),
    observed_s=numbers,
    rate_per_s=numbers,
    tokens_per_s=numbers,
    slope_tokens_per_s2=numbers,
    tokens_per_request=numbers,
    cv=st.none() | numbers,
    envelope=st.lists(st.builds(EnvelopePoint, st.floats(0.1, 100), numbers), max_size=3).map(tuple),
    queue=st.integers(-1, 100),
    running=st.integers(-1, 100),
    kv_used_share=numbers,
    service_s=st.none() | numbers,
    startup_least_s=st.none() | numbers,
)


@pytest.mark.parametrize("policy", [FluidPolicy(), PaperPolicy()], ids=["fluid", "paper"])
@given(
    observations=st.lists(wild_observations, max_size=8),
    present=wild_shapes,
    candidates=st.lists(wild_shapes, max_size=4),
)
@settings(deadline=None)
def test_whatever_comes_in_a_decision_with_a_reason_comes_out_that_a_log_can_carry(
    policy, observations, present, candidates
):
    memory = ControllerMemory()
    limits = Limits(gain_min=0, confirm_grow_s=0, confirm_shrink_s=0, dwell_s_min=0, observed_s_min=0)
    for seen in observations:
        before = memory
        memory, decision = decide(before, seen, present, candidates, policy, limits)
        assert (memory, decision) == decide(before, seen, present, candidates, policy, limits)
        assert decision.sentence
        assert (decision.action == "change") == (decision.reason == "worth-it")
        if decision.action == "change":
            assert decision.wanted in candidates
            assert not decision.wanted.same_as(present)
            assert memory.under_way
        assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision


@given(steps=st.lists(st.tuples(st.floats(0, 300), st.sampled_from([1, 2, 4]), st.booleans()), max_size=60))
@settings(deadline=None)
def test_however_the_best_shape_flickers_changes_keep_their_distance_and_their_budget(steps):
    controlled = Controlled(BETTER, replace(LIMITS, confirm_grow_s=0, confirm_shrink_s=0, gap_s_max=1e9))
    begun, now_s = [], 0.0
    for passed_s, favourite, succeeds in steps:
        now_s += passed_s
        controlled.policy = Told({favourite: 0.1})
        if controlled.at(now_s, succeeds=succeeds).action == "change":
            begun.append(now_s)
    assert all(after - before >= LIMITS.dwell_s_min - 1e-6 for before, after in pairwise(begun))
    assert all(sum(at_s <= other < at_s + 3600 for other in begun) <= LIMITS.changes_per_hour_max for at_s in begun)
