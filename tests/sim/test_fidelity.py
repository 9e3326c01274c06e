"""The chain between the two simulators: the real actors on a virtual clock, and the macro core, on the same trace and changes."""

import msgspec
import pytest
from flexpipe.sim.arrival_trace import bundled
from flexpipe.sim.evaluation.fidelity import (
    NOT_MEASURED,
    P50_ERROR_MAX,
    P99_ERROR_MAX,
    TIMES,
    CaseFidelity,
    Fidelity,
    FidelityError,
    MeasureFidelity,
    beside_headlines,
    checked_in,
    read_fidelity,
    sentence,
)
from flexpipe.sim.fidelity.calibration import Calibration, CalibrationError, read_calibration
from flexpipe.sim.fidelity.case import Case, evenly, synthetic_trace
from flexpipe.sim.fidelity.cluster_run import run_in_cluster
from flexpipe.sim.fidelity.comparison import LOADS, Extent, cases_of, compared
from flexpipe.sim.fidelity.world_run import run_in_world

TOKENS = (1, 2, 4, 8, 16, 64, 128, 256, 512)
CPU = Calibration(
    model="a small model on two cores",
    tokens=TOKENS,
    seconds=(
        (0.026, 0.026, 0.026, 0.034, 0.058, 0.150, 0.290, 0.590, 1.260),
        (0.055, 0.055, 0.055, 0.075, 0.095, 0.190, 0.340, 0.700, 1.500),
    ),
    context_s=3.6e-6,
    square_s=3e-7,
    hop_s=0.001,
    shares={1: (1.0,), 2: (0.52, 0.48), 3: (0.36, 0.34, 0.30)},
    change_s={"1>2": 0.6, "2>3": 0.4, "3>1": 0.9, "2>1": 0.8, "1>3": 0.7, "3>2": 0.5},
    change_slowdown=0.2,
    cut_s=0.02,
    cut_blocks=12.0,
    step_tokens_max=512,
    requests_max=16,
    context_tokens=2048,
    kv_tokens=16384,
    steps_max=2,
)
"""Of the size of what was measured of SmolLM2 on two cores."""
CASES = {(case.load, case.policy): case for case in cases_of(CPU, seed=1, extent=Extent(seconds=40.0))}


@pytest.mark.parametrize("load", ["underloaded", "overloaded"])
def test_one_stage_is_the_same_in_both_simulators(load):
    found = compared(CASES[load, "1 stage"], CPU, seed=0)
    between = [each.between for each in found.measures]
    assert between == pytest.approx([0.0] * len(between), abs=0.01)


@pytest.mark.parametrize(
    ("case", "p50_max", "p99_max"),
    [
        (("underloaded", "2 stages"), 0.08, P99_ERROR_MAX),
        (("overloaded", "2 stages"), P50_ERROR_MAX, P99_ERROR_MAX),
        (("overloaded", "refactored"), 0.07, P99_ERROR_MAX),
    ],
)
def test_stages_under_way_together_and_live_changes_are_within_the_bars(case, p50_max, p99_max):
    found = compared(CASES[case], CPU, seed=0)
    for percent, most in ((50, p50_max), (99, p99_max)):
        between = {name: found.measure(f"{name}_p{percent}_s").between for name in TIMES}
        assert between == pytest.approx(dict.fromkeys(TIMES, 0.0), abs=most)
    assert found.measure("tokens_per_s").between == pytest.approx(0.0, abs=0.03)


def test_three_loads_make_more_than_twenty_live_changes():
    assert sum(len(case.changes) for case in CASES.values()) >= 20
    assert {case.load for case in CASES.values()} == set(LOADS)


def test_every_change_is_made_in_both_simulators():
    case = Case("", "", synthetic_trace(1, 2.0, 20.0), 1, evenly((2, 3, 1), 20.0))
    assert [change.stages for change in run_in_world(case, CPU).changes] == [2, 3, 1]
    assert [change.stages for change in run_in_cluster(case, CPU).changes] == [2, 3, 1]


def test_the_same_seed_gives_the_same_world():
    case = Case("", "", synthetic_trace(2, 3.0, 10.0), 2)
    assert run_in_world(case, CPU, seed=5).measures() == run_in_world(case, CPU, seed=5).measures()


def test_a_trace_of_ones_own_is_played_at_each_load_within_the_context():
    trace = bundled("azure_llm_2023_code").between(0.0, 600.0)
    played = {case.load: case.trace for case in cases_of(CPU, 1, Extent(seconds=30.0), trace)}
    assert all((each.input_tokens + each.output_tokens <= CPU.context_tokens).all() for each in played.values())
    assert all(each.arrival_s.max() <= 30.0 for each in played.values())
    assert len(played["underloaded"]) < len(played["overloaded"])


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "calibration.json"
    file.write_bytes(msgspec.json.encode(CPU))
    assert read_calibration(file) == CPU
    file.write_text("{}")
    with pytest.raises(CalibrationError, match="cannot be read as a calibration"):
        read_calibration(file)


def case_of(policy, real, world, cluster):
    figures = (MeasureFidelity(f"{name}_p{percent}_s", world, cluster, real) for name in TIMES for percent in (50, 99))
    return CaseFidelity("loaded", policy, 100, 3, tuple(figures))


def fidelity_of(*cases):
    return Fidelity("2026-01-02", "flexpipe evaluate fidelity", "a model", 2, 1, 600.0, cases)


def test_the_sentence_beside_a_headline_has_errors_orders_and_changes():
    found = fidelity_of(case_of("1 stage", 1.0, 1.01, 1.04), case_of("2 stages", 2.0, 1.9, 2.2))
    assert found.errors("cluster", 50) == pytest.approx([0.04] * 3 + [0.1] * 3)
    assert found.orders("cluster") == (1, 1)
    assert "6 live changes" in sentence(found)
    assert "p50 off by 7% in the median and by 10% at most" in sentence(found)
    assert "right in 1 of 1 pairs" in sentence(found)


def test_an_order_that_simulators_turn_around_is_told_and_small_differences_have_none():
    assert fidelity_of(case_of("a", 1.0, 1.0, 2.0), case_of("b", 1.2, 1.2, 1.5)).orders("cluster") == (0, 1)
    assert fidelity_of(case_of("a", 1.0, 1.0, 2.0), case_of("b", 1.04, 1.2, 1.5)).orders("cluster") == (0, 0)


def test_a_report_without_a_measurement_says_so():
    found = fidelity_of(case_of("1 stage", 1.0, 1.01, 1.04))
    assert beside_headlines(found) == sentence(found)
    assert beside_headlines().startswith(NOT_MEASURED)
    assert (checked_in() is None) == (beside_headlines() == NOT_MEASURED)


def test_a_file_that_tells_no_fidelity_is_refused(tmp_path):
    file = tmp_path / "fidelity.json"
    file.write_bytes(msgspec.json.encode(fidelity_of(case_of("1 stage", 1.0, 1.01, 1.04))))
    assert read_fidelity(file).model == "a model"
    with pytest.raises(FidelityError, match="cannot be read"):
        read_fidelity(tmp_path / "none.json")
