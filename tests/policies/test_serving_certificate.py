"""The serving certificate: each condition's margin turns where its rule says, and the guard refuses what must be refused."""

import dataclasses
import math

import pytest
from flexpipe.policies.certificate.serving_certificate import CertificateError, certify, controller_guard, wanted_facts
from flexpipe.policies.certificate.serving_facts import ControllerFacts, RouterFacts
from flexpipe.policies.control.decision import GuardInputs
from flexpipe.policies.control.granularity import Shape
from flexpipe.policies.control.observation import Observation
from hypothesis import given
from hypothesis import strategies as st

SHARP = RouterFacts(sharpness_per_s=0.5, report_age_s=0.1, spread_s=2.0)
FACTS = ControllerFacts(
    (1000.0, 1000.0), 1400.0, drain_s=60, startup_s=10, lag_s=10, dwell_s=60, growth=1.5, router=SHARP
)


def condition(facts, name):
    (found,) = (each for each in certify(facts).conditions if each.name == name)
    return found


def with_router(**changes):
    return dataclasses.replace(FACTS, router=dataclasses.replace(SHARP, **changes))


def inputs(
    *,
    replicas=2,
    capacity=2000.0,
    tokens_per_s=1400.0,
    drain_s=60.0,
    startup_s=10.0,
    lag_s=2.0,
    dwell_s=None,
    switch_s=0.2,
):
    wanted = Shape(2, replicas, tpot_s=0.02, capacity_tokens_per_s=capacity, startup_s=startup_s, switch_s=switch_s)
    return GuardInputs(
        observation=Observation(at_s=100.0, tokens_per_s=tokens_per_s),
        present=Shape(1, 1, tpot_s=0.02, capacity_tokens_per_s=1000.0),
        wanted=wanted,
        drain_s=drain_s,
        startup_s=startup_s,
        lag_s=lag_s,
        dwell_s=dwell_s,
    )


# --- the certificate --------------------------------------------------------------------------------------------------


def test_a_sound_configuration_holds_with_every_margin():
    certificate = certify(FACTS)
    assert certificate.holds
    assert [each.name for each in certificate.conditions] == [
        "drain",
        "reports",
        "reports-in-region",
        "balance",
        "region",
        "dwell",
        "tracking",
    ]
    assert certificate.refusal() is None
    assert 0 < certificate.net_rate_per_s < certificate.rate_per_s
    assert certificate.phase_margin_deg > 45


@given(st.floats(0.1, 100), st.floats(0, 40), st.floats(0, 40))
def test_the_drain_rule_is_1_3_times_what_comes_late(drain_s, startup_s, lag_s):
    facts = dataclasses.replace(FACTS, drain_s=drain_s, startup_s=startup_s, lag_s=lag_s)
    assert condition(facts, "drain").holds == (drain_s >= 1.3 * (startup_s + lag_s))


@given(st.floats(0.01, 50), st.floats(0.001, 5), st.floats(1, 5000), st.integers(2, 9))
def test_the_staleness_rule_is_2_n_over_lambda_delta(sharpness, age, arriving, count):
    """In seconds of one replica's work: beta < 2 n C / (lambda Delta), n C being all capacity."""
    router = dataclasses.replace(SHARP, sharpness_per_s=sharpness, report_age_s=age)
    facts = dataclasses.replace(FACTS, capacities=(500.0,) * count, arriving=arriving, router=router)
    limit = 2 * count * 500 / (arriving * age)
    if abs(sharpness / limit - 1) > 1e-9:
        assert condition(facts, "reports").holds == (sharpness < limit)


def test_away_from_balance_the_staleness_rule_is_stricter():
    facts = with_router(sharpness_per_s=1.5, report_age_s=1.5)
    near, region = condition(facts, "reports"), condition(facts, "reports-in-region")
    assert near.holds
    assert not region.holds
    assert certify(facts).refusal() is None
    assert not certify(facts).holds


def test_least_work_routing_on_old_reports_is_refused_and_on_its_own_count_never():
    assert condition(with_router(sharpness_per_s=math.inf, report_age_s=0.0), "reports").holds
    refusal = certify(with_router(sharpness_per_s=math.inf, report_age_s=0.01)).refusal()
    assert refusal is not None
    assert refusal.condition == "reports"
    assert "least-work" in refusal.sentence


def test_service_that_slows_down_faster_than_routing_evens_out_breaks_the_balance():
    rate = certify(FACTS).rate_per_s
    assert condition(with_router(service_fall_per_s=0.9 * rate), "balance").holds
    broken = certify(with_router(service_fall_per_s=1.1 * rate))
    assert not broken.holds
    assert broken.rate_per_s < 0
    refusal = broken.refusal()
    assert refusal is not None
    assert refusal.condition == "dwell"  # no imbalance dies out, however long the shape is kept


def test_misjudged_speeds_are_held_up_to_the_pull_at_the_regions_edge():
    pull = condition(FACTS, "region").value
    assert condition(with_router(speed_error=0.99 * pull), "region").holds
    assert not condition(with_router(speed_error=1.01 * pull), "region").holds


@pytest.mark.parametrize(("factor", "holds"), [(0.99, False), (1.01, True)])
def test_the_dwell_rule_is_ln_kappa_over_c(factor, holds):
    least = math.log(FACTS.growth) / certify(FACTS).rate_per_s
    facts = dataclasses.replace(FACTS, dwell_s=factor * least)
    assert condition(facts, "dwell").holds == holds
    assert (certify(facts).net_rate_per_s > 0) == holds


def test_drifting_speeds_are_followed_by_soft_min_and_without_promise_by_least_work():
    assert condition(with_router(speed_drift_per_s=0.001), "tracking").holds
    assert not condition(with_router(speed_drift_per_s=10.0), "tracking").holds
    assert not condition(
        with_router(sharpness_per_s=math.inf, report_age_s=0.0, speed_drift_per_s=0.001), "tracking"
    ).holds


@pytest.mark.parametrize("change", [{"capacities": (2000.0,)}, {"arriving": 0.0}])
def test_without_anything_to_balance_only_the_drain_rule_is_asked(change):
    certificate = certify(dataclasses.replace(FACTS, **change))
    assert [each.name for each in certificate.conditions] == ["drain"]
    assert certificate.rate_per_s == math.inf


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"capacities": ()}, "capacities"),
        ({"capacities": (1.0, 0.0)}, "capacities"),
        ({"capacities": (1.0, math.nan)}, "capacities"),
        ({"arriving": -1.0}, "arriving"),
        ({"arriving": math.nan}, "arriving"),
        ({"drain_s": 0.0}, "drain_s"),
        ({"startup_s": math.inf}, "startup_s"),
        ({"lag_s": -0.1}, "lag_s"),
        ({"dwell_s": math.nan}, "dwell_s"),
        ({"growth": 0.5}, "growth"),
        ({"router": RouterFacts(sharpness_per_s=0)}, "sharpness_per_s"),
        ({"router": RouterFacts(spread_s=math.nan)}, "spread_s"),
        ({"router": RouterFacts(speed_error=-1)}, "speed_error"),
    ],
)
def test_what_is_no_configuration_is_refused_by_name(change, named):
    with pytest.raises(CertificateError, match=named):
        certify(dataclasses.replace(FACTS, **change))


# --- the guard --------------------------------------------------------------------------------------------------------


def test_the_guard_lets_a_sound_change_pass():
    assert controller_guard(RouterFacts())(inputs()) is None
    assert controller_guard(RouterFacts())(inputs(dwell_s=120.0)) is None


@pytest.mark.parametrize(
    ("asked", "router", "refused"),
    [
        (inputs(drain_s=15.0, startup_s=10.0, lag_s=2.0), RouterFacts(), "drain"),
        (inputs(), RouterFacts(sharpness_per_s=math.inf, report_age_s=1.0), "reports"),
        (inputs(), RouterFacts(sharpness_per_s=4.0, report_age_s=1.0), "reports"),
        (inputs(dwell_s=0.1), RouterFacts(), "dwell"),
        (inputs(dwell_s=0.0), RouterFacts(), "dwell"),
    ],
)
def test_the_guard_refuses_what_the_certificate_forbids(asked, router, refused):
    refusal = controller_guard(router)(asked)
    assert refusal is not None
    assert refusal.condition == refused


def test_the_first_change_has_nothing_to_dwell_on():
    assert controller_guard(RouterFacts())(inputs(dwell_s=None, switch_s=30.0)) is None


def test_a_change_without_a_pause_needs_no_dwell():
    assert controller_guard(RouterFacts())(inputs(dwell_s=0.0, switch_s=0.0)) is None


def test_a_silent_pipeline_may_shrink():
    assert controller_guard(RouterFacts())(inputs(tokens_per_s=0.0, dwell_s=1.0)) is None


def test_no_guard_is_made_of_a_router_that_is_none():
    with pytest.raises(CertificateError, match="spread_s"):
        controller_guard(RouterFacts(spread_s=0.0))


def test_numbers_at_the_edge_of_what_floats_hold_are_refused_and_not_raised():
    for asked in (
        inputs(capacity=math.inf),
        inputs(capacity=1.7e308, replicas=2),
        inputs(drain_s=5e-324),
        inputs(switch_s=1e308),
    ):
        refusal = controller_guard(RouterFacts(spread_s=1e-3))(asked)
        assert refusal is None or refusal.condition in {"facts", "drain", "dwell"}


def test_facts_of_a_wanted_shape_are_equal_replicas_under_the_seen_load():
    facts = wanted_facts(inputs(replicas=4, capacity=2000.0), RouterFacts())
    assert facts.capacities == (500.0,) * 4
    assert facts.load == pytest.approx(0.7)
    assert facts.dwell_s == math.inf


numbers = st.one_of(st.floats(), st.sampled_from([0.0, -1.0, math.nan, math.inf, 1e308, 5e-324]))


@given(st.integers(-1, 4), numbers, numbers, numbers, numbers, numbers, st.none() | numbers, numbers)
def test_the_guard_never_raises_whatever_it_is_told(replicas, capacity, tokens, drain, startup, lag, dwell, switch):
    asked = inputs(
        replicas=replicas,
        capacity=capacity,
        tokens_per_s=tokens,
        drain_s=drain,
        startup_s=startup,
        lag_s=lag,
        dwell_s=dwell,
        switch_s=switch,
    )
    for router in (RouterFacts(), SHARP):
        refusal = controller_guard(router)(asked)
        assert refusal is None or refusal.sentence
