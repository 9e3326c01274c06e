"""What the signals make of events: right numbers, bounded memory, and sentences about what cannot be."""

from itertools import pairwise

import numpy as np
import pytest
from arrival_trains import bursty, poisson
from flexpipe.policies.control.signals import Signals, SignalSettings
from flexpipe.policies.control.steady_clock import SteadyClock
from hypothesis import given, settings
from hypothesis import strategies as st

UNSAMPLED = SignalSettings(gap_s_max=1e9)


def observed(times, duration_s, tokens=100, signal_settings=UNSAMPLED):
    signals = Signals(signal_settings)
    signals.sample(0, 0, 0, 0)
    for at_s in times:
        signals.arrived(at_s, tokens)
    return signals.observe(duration_s)


def curve(observation):
    return {point.tau_s: point.idc for point in observation.dispersion}


def test_poisson_arrivals_have_a_dispersion_of_one_at_every_scale():
    found = curve(observed(poisson(20, 3600, seed=1), 3600))
    assert set(found) == set(UNSAMPLED.taus_s)
    assert all(idc == pytest.approx(1, abs=0.35) for tau_s, idc in found.items() if tau_s <= 60)


def test_even_arrivals_have_no_dispersion():
    found = observed(np.arange(0.5, 3600), 3600)
    assert max(curve(found).values()) < 0.01
    assert found.cv == pytest.approx(0)


def test_arrivals_like_the_code_trace_of_azure_show_its_curve():
    curves = [curve(observed(bursty(3436, seed), 3437)) for seed in range(8)]
    means = {tau_s: np.mean([found[tau_s] for found in curves]) for tau_s in (1, 10, 60, 300)}
    assert means == {
        1: pytest.approx(13, rel=0.35),
        10: pytest.approx(72, rel=0.35),
        60: pytest.approx(164, rel=0.35),
        300: pytest.approx(138, rel=0.35),
    }


def test_one_variation_over_a_short_window_hides_what_the_curve_shows():
    found = observed(bursty(3436, seed=3), 3437)
    assert found.idc_at(1) < found.idc_at(10) < found.idc_at(60)


def test_the_dispersion_of_equal_requests_is_the_same_in_work_and_in_counts():
    for point in observed(bursty(3436, seed=4), 3437, tokens=700).dispersion:
        assert point.idw == pytest.approx(point.idc)


def test_scales_that_the_history_cannot_tell_of_are_left_out():
    assert max(curve(observed(poisson(5, 120, seed=1), 120))) == 20  # five windows of it
    assert curve(observed(poisson(0.1, 120, seed=1), 120)) == {}  # too few arrivals


def test_rate_work_and_slope_are_those_of_the_load():
    signals = Signals(UNSAMPLED)
    signals.sample(0, 0, 0, 0)
    for second in range(60):
        for number in range(second):
            signals.arrived(second + number / 60, 50)
    found = signals.observe(60)
    assert found.rate_per_s == pytest.approx(np.mean(range(50, 60)))
    assert found.tokens_per_s == pytest.approx(50 * found.rate_per_s)
    assert found.slope_tokens_per_s2 == pytest.approx(50)
    assert found.tokens_per_request == 50


def test_noise_is_no_trend():
    slopes = [observed(poisson(20, 60, seed), 60).slope_tokens_per_s2 for seed in range(40)]
    assert sum(slope != 0 for slope in slopes) <= 5


def test_the_envelope_is_the_worst_of_each_length():
    found = observed([10.1, 10.2, 10.3, 15.5, 100.5], 200, tokens=10)
    tokens = {point.window_s: point.tokens for point in found.envelope}
    assert (tokens[1], tokens[6], tokens[10], tokens[120]) == (30, 40, 40, 50)


@given(times=st.lists(st.floats(0, 300), max_size=60), tokens=st.floats(0, 1e4))
@settings(max_examples=50, deadline=None)
def test_an_envelope_never_falls_and_never_exceeds_all_that_came(times, tokens):
    found = [point.tokens for point in observed(sorted(times), 400, tokens).envelope]
    assert all(before <= after + 1e-6 for before, after in pairwise(found))
    assert max(found) <= tokens * len(times) + 1e-6


def test_what_is_sampled_and_what_ends_is_told():
    signals = Signals()
    signals.sample(1, 7, 3, 0.4)
    for seconds in (2.0, 4.0):
        signals.finished(1.5, seconds)
        signals.started_up(1.6, 5 * seconds)
    found = signals.observe(2)
    assert (found.queue, found.running, found.kv_used_share) == (7, 3, 0.4)
    assert (found.service_s, found.service_cv2) == (3, pytest.approx(1 / 9))
    assert (found.startup_s, found.startup_least_s) == (15, 10)


def test_memory_does_not_grow_with_events():
    def size(signals):
        kept = (signals._counts, signals._work, signals._gaps, signals._service, signals._startups, signals._faults)
        return sum(map(len, kept))

    signals = Signals(SignalSettings(history_s=60, gaps=32))
    grown = []
    for number in range(3000):
        signals.arrived(number / 20, 1)
        signals.finished(number / 20, 1 + number % 7)
        signals.started_up(number / 20, 1)
        signals.arrived(float("nan"), 1)
        signals.arrived(number / 20, -float(number) - 1)
        if number in (1500, 2999):
            grown.append(size(signals))
    assert grown[1] == grown[0]
    assert len(signals.observe(150).faults) <= 8


def test_an_hour_of_silence_that_was_looked_at_is_silence_and_a_burst_after_it_is_one():
    signals = Signals()
    for number in range(100):
        signals.arrived(number / 10, 100)
    for second in range(10, 3700):
        signals.sample(second, 0, 0, 0)
    quiet = signals.observe(3700)
    assert (quiet.rate_per_s, quiet.arrivals, quiet.idle) == (0, 0, True)
    for number in range(400):
        signals.arrived(3700 + number / 100, 100)
    found = signals.observe(3705)
    assert (found.rate_per_s, found.faults) == (40, ())


def test_a_clock_that_jumps_is_named_and_changes_nothing():
    for jump_s in (-5000.0, 90_000.0):
        signals = Signals()
        for second in range(30):
            signals.arrived(second + 0.5, 10)
            signals.sample(second + 1, 0, 1, 0)
        before = signals.observe(30)
        signals.sample(30 + jump_s, 0, 1, 0)
        after = signals.observe(30 + jump_s)
        assert (after.at_s, after.rate_per_s, after.arrivals) == (before.at_s, before.rate_per_s, before.arrivals)
        assert [("back" if jump_s < 0 else "forward") in fault for fault in after.faults] == [True]
        assert signals.observe(31 + jump_s).faults == ()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_what_is_no_number_is_named_and_left_out(wrong):
    signals = Signals()
    signals.arrived(1, 100)
    signals.sample(1, 4, 2, 0.5)
    signals.arrived(1.1, wrong)
    signals.finished(1.2, wrong)
    signals.started_up(1.3, wrong)
    signals.sample(1.4, 1, 1, wrong)
    found = signals.observe(2.5)
    assert (found.arrivals, found.queue, found.service_s, found.startup_s) == (1, 4, None, None)
    assert len(found.faults) == 4


def test_an_event_without_a_time_counts_for_nothing():
    signals = Signals()
    signals.arrived(float("nan"), 5)
    assert signals.observe(float("nan")).arrivals == 0
    assert signals.observe(float("inf")).flaw() is None


times = st.floats() | st.floats(0, 100)


@given(events=st.lists(st.tuples(times, times, st.integers(0, 3)), max_size=40))
@settings(max_examples=200, deadline=None)
def test_no_event_whatever_makes_an_observation_unusable(events):
    signals = Signals(SignalSettings(history_s=50, envelope_s=20, windows_min=1, arrivals_min=2))
    last_s = -float("inf")
    for at_s, value, kind in events:
        if kind == 0:
            signals.arrived(at_s, value)
        elif kind == 1:
            signals.finished(at_s, value)
        elif kind == 2:
            signals.started_up(at_s, value)
        else:
            signals.sample(at_s, value, 1, value)
        found = signals.observe(at_s)
        assert found.at_s >= last_s or found.at_s == 0
        last_s = found.at_s or last_s


@given(events=st.lists(st.floats(), max_size=50))
def test_steady_time_never_goes_back_nor_leaps(events):
    clock = SteadyClock(late_s_max=2, gap_s_max=30)
    read = [at_s for at_s, _ in map(clock.read, events) if at_s is not None]
    assert all(0 <= after - before <= 30.001 for before, after in pairwise(read))
