"""The parts of the cluster simulator by themselves: tables, links, books, draws and metrics."""

import numpy as np
import pytest
from cluster_cases import GIB, Fixed, cut, devices, toy
from flexpipe.policies.kv_room import NoRoomError
from flexpipe.sim.arrival_trace import ArrivalTrace, bundled
from flexpipe.sim.cluster.engine_profiles import PAPER_DEPTHS, PAPER_STAGE_S, bert_21b, llama_2_7b, opt_66b, whisper_9b
from flexpipe.sim.cluster.holdings import Holdings
from flexpipe.sim.cluster.incidents import PAPER_UTILISATION, cotenant_slowdowns
from flexpipe.sim.cluster.loading import Flow, LoadNetwork
from flexpipe.sim.cluster.metrics import Deadlines, metrics
from flexpipe.sim.cluster.pipeline_times import kv_room, pipeline_times
from flexpipe.sim.cluster.run_record import RunRecord
from flexpipe.sim.cluster.simulator import simulate
from flexpipe.sim.cluster.startup import GENTD26_COLD, GENTD26_WARM, OPENB_ALLOCATION_S, HostMemory
from flexpipe.sim.cluster.state import DONE, REFUSED, REQUEST
from flexpipe.sim.cluster.system import Outcome, Reshape, StageAt, Start
from flexpipe.sim.cluster.workload import Workload, WorkloadError, gamma_workload, merged, of_trace

LENGTHS = ArrivalTrace(np.arange(3.0), np.array([10, 20, 30]), np.array([1, 2, 3]))


def test_the_step_times_of_opt_66b_are_those_of_the_papers_table():
    times = opt_66b().times
    found = [times.step_s(32, 32 * 4096, depth) / depth for depth in PAPER_DEPTHS]
    assert found == pytest.approx(PAPER_STAGE_S)


def test_a_prompts_time_is_no_straight_line():
    sizes = np.array([1.0, 32, 128, 256, 512, 1024, 2048, 4096, 8192])
    times = np.array([opt_66b().times.step_s(size) for size in sizes])
    line = np.polyval(np.polyfit(sizes, times, 1), sizes)
    assert np.abs(line / times - 1).max() > 0.2
    assert (np.diff(times) > 0).all()


@pytest.mark.parametrize("model", [opt_66b(), llama_2_7b(), bert_21b(), whisper_9b()], ids=lambda model: model.name)
def test_a_models_layers_have_all_its_bytes(model):
    atoms = model.atoms()
    assert len(atoms) == model.layers
    assert sum(atom.weight_bytes for atom in atoms) == pytest.approx(model.weight_bytes, rel=1e-6)
    assert sum(atom.compute_ns for atom in atoms) == pytest.approx(model.times.step_s(32, 32 * 1024) * 1e9, rel=1e-6)
    assert model.stage_bytes(0, 5) + model.stage_bytes(5, model.layers) == pytest.approx(model.weight_bytes, rel=1e-9)


def test_a_pipeline_sums_its_stages_and_waits_for_the_slowest():
    cluster = devices(4)
    cluster.update(1, slowdown=0.5)
    times = pipeline_times(cluster, toy(), (StageAt(0, 0, 2), StageAt(1, 2, 8)))
    assert (times.speed_sum, times.speed_worst) == pytest.approx((0.25 + 0.75 * 1.5, 0.75 * 1.5))
    assert times.hop_s == pytest.approx(9e-6)


def test_kv_room_is_what_the_tightest_stage_has_left():
    model, cluster = toy(gib=8), devices(2, gib=6)
    assert kv_room(cluster, model, cut([0, 1])) == 2 * GIB // (1 << 15)
    with pytest.raises(NoRoomError, match="MiB are missing"):
        kv_room(cluster, model, cut([0]))
    # Beside a stage that stays only the growth of its pages counts.
    cluster.update(0, free_bytes=GIB)
    cluster.update(1, free_bytes=GIB)
    assert kv_room(cluster, model, cut([0, 1]), cut([0, 1]), 1600) == 1600 + GIB // (1 << 15) // 16 * 16


def test_flows_share_a_link_equally_and_the_rest_goes_faster_when_one_ends():
    network = LoadNetwork(lambda link: {"a": 10e6, "b": 1e9}[link])
    network.begin(0.0, 1, [Flow(10e6, ("a",))])
    network.begin(0.0, 2, [Flow(20e6, ("a", "b"))])
    network.begin(0.0, 3, [Flow(1e6, ("b",), rate_max=1e5)])
    assert network.next_end_s() == pytest.approx(2.0)
    assert network.ended(2.0) == [1]
    assert network.next_end_s() == pytest.approx(3.0)
    assert network.ended(3.0) == [2]
    network.cancel(3.0, 3)
    assert network.next_end_s() == np.inf


def test_a_group_without_bytes_ends_at_once():
    network = LoadNetwork(lambda _link: 1.0)
    network.begin(5.0, 7, [])
    assert network.next_end_s() == 5.0
    assert network.ended(5.0) == [7]


def test_holdings_count_devices_and_bytes_and_say_what_lacks():
    books = Holdings(devices(4, gib=10))
    books.take(1.0, 7, {0: 6 * GIB, 1: GIB})
    books.reserve(2.0, (1, 2))
    assert books.held == {0, 1, 2}
    assert "lacks 1024.0 MiB" in books.lacking({0: 5 * GIB})
    assert books.lacking({0: 4 * GIB}) == ""
    books.tenants(0, free_bytes=2 * GIB, slowdown=0.3)
    assert books.cluster.free_bytes[0] == 0
    books.lose(3)
    assert "is gone" in books.lacking({3: 1})
    books.keep_only(4.0, 7, {})
    books.release(5.0, (1, 2))
    assert books.held_gpu_s(10.0) == 1 * 2 + 2 * 3 + 1 * 2
    assert books.over_bytes_max <= 0
    assert books.cluster.free_bytes[0] == 6 * GIB


def test_host_memory_forgets_what_was_longest_unused():
    memory, model = HostMemory(3 * GIB), toy(gib=8)
    memory.keep(0, 0, model, 0, 3)
    memory.keep(0, 0, model, 0, 1)
    memory.keep(0, 0, model, 5, 6)
    assert [layer for layer in range(8) if memory.has(0, 0, layer)] == [0, 2, 5]
    assert memory.holder(0, 5, other_than=1) == 0
    memory.forget(0)
    assert memory.holder(0, 5, other_than=1) is None


def test_draws_have_the_quantiles_that_were_published():
    chance = np.random.default_rng(0)
    for table in (GENTD26_WARM, GENTD26_COLD, OPENB_ALLOCATION_S):
        drawn = [table.draw(chance) for _ in range(20_000)]
        for level, value in list(zip(table.levels, table.values, strict=True))[1:-1]:
            near = np.interp([level - 0.01, level + 0.01], table.levels, table.values)
            assert near[0] <= np.quantile(drawn, level) <= near[1], (level, value)
    assert np.mean([PAPER_UTILISATION.draw(chance) for _ in range(20_000)]) == pytest.approx(0.19, abs=0.01)


def test_cotenants_slow_devices_by_what_they_compute():
    slowed = cotenant_slowdowns(devices(4000), seed=1)
    assert float(slowed.slowdown.mean()) == pytest.approx(1.16 * 0.19, rel=0.08)
    assert float((slowed.slowdown == 0).mean()) == pytest.approx(np.exp(-1.16), abs=0.03)


@pytest.mark.parametrize("cv", [1.0, 2.0, 4.0])
def test_gamma_arrivals_have_their_rate_and_variation(cv):
    workload = gamma_workload(LENGTHS, 50.0, cv, 4000.0, seed=3)
    gaps = np.diff(workload.arrival_s)
    assert 1 / gaps.mean() == pytest.approx(50.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)
    assert set(zip(workload.input_tokens.tolist(), workload.output_tokens.tolist(), strict=True)) == {
        (10, 1),
        (20, 2),
        (30, 3),
    }


def test_workloads_merge_in_order_and_refuse_what_nobody_sends():
    both = merged([of_trace(LENGTHS), of_trace(LENGTHS, model=1)])
    assert both.model.tolist() == [0, 1] * 3
    assert both.at_most(8).input_tokens.tolist() == [7, 7, 6, 6, 5, 5]
    with pytest.raises(WorkloadError, match="arrive at or after time 0"):
        Workload(np.array([1.0, 0.5]), np.ones(2, int), np.ones(2, int), np.zeros(2, int))
    with pytest.raises(WorkloadError, match="at least one token"):
        Workload(np.zeros(1), np.zeros(1, int), np.ones(1, int), np.zeros(1, int))
    with pytest.raises(WorkloadError, match="numbers above 0"):
        gamma_workload(LENGTHS, 0.0, 1.0, 1.0, 0)


def record_of(rows, timeline=((0.0, 0), (0.0, 4)), outcomes=()):
    requests = np.zeros(len(rows), REQUEST)
    requests["output"], requests["phase"] = 11, DONE
    for number, (arrival, first, end) in enumerate(rows):
        requests["arrival_s"][number], requests["first_s"][number], requests["end_s"][number] = arrival, first, end
    return RunRecord("s", requests, ("m",), 8, 10.0, 12.0, timeline, outcomes, 0, 0, 0.0, 0.0, -1)


def test_metrics_by_hand():
    record = record_of([(0, 1, 2), (1, 3, 4), (2, 2.5, 9.5), (9, 9.5, 10.5)], ((0.0, 0), (0.0, 4), (5.0, 2), (11.0, 9)))
    record.requests["phase"][3] = REFUSED
    found = metrics(record, [Deadlines(ttft_s=1.0, tpot_s=0.5)])
    assert (found.requests, found.done, found.attainment) == (4, 3, 0.25)
    assert found.goodput_per_gpu_s == pytest.approx(1 / (4 * 5 + 2 * 5))
    assert (found.ttft_p50_s, found.ttft_p99_s) == (1.0, np.inf)
    assert (found.held_peak, found.held_mean, found.always_on_share) == (4, 3.0, 0.5)


def test_a_stall_lasts_from_one_and_a_half_baselines_to_below_one_and_a_fifth():
    # Ends at 1, 2, ...; response times 1, so the baseline is 1: a stall from the 5th, over at the 8th.
    took = [1.0, 1.0, 1.0, 1.4, 1.6, 1.3, 1.25, 1.1, 1.0, 1.0]
    record = record_of([(end - time, end - time + 0.1, end) for end, time in enumerate(took, start=2)])
    found = metrics(record, [Deadlines(1.0, 1.0)])
    assert (found.stalls, found.stall_recovery_s, found.stalled_share) == (1, 3.0, 0.3)


def test_starts_and_reshapes_are_counted_where_they_took_time():
    start, reshape = Start(0, cut([0])), Reshape(0, cut([1]))
    outcomes = (
        Outcome("serving", 0.0, 0, start),
        Outcome("serving", 5.0, 1, start, took_s=4.0, waited_s=1.0),
        Outcome("serving", 6.0, 0, reshape, took_s=2.0),
        Outcome("refused", 7.0, 0, reshape, sentence="no"),
    )
    found = metrics(record_of([(0, 1, 2)], outcomes=outcomes), [Deadlines(1.0, 1.0)])
    assert (found.startup_p50_s, found.allocation_p50_s, found.reshape_p50_s) == (4.0, 1.0, 2.0)
    assert (found.refused_actions, found.switches_per_min) == (1, 6.0)


@pytest.mark.parametrize(
    ("trace", "stages", "error_max"),
    [("azure_llm_2023_conv", 2, 0.1), ("azure_llm_2023_conv", 8, 0.1), ("azure_llm_2023_code", 8, 0.2)],
)
def test_what_a_pipeline_is_said_to_serve_is_about_what_it_serves(trace, stages, error_max):
    model, cluster, room = opt_66b(), devices(stages, gib=4000), 30_000 * stages
    placed = cut(range(stages), model.layers)
    workload = gamma_workload(bundled(trace), 100.0, 1.0, 60.0, seed=1).at_most(2048)
    sizes = float(workload.input_tokens.mean()), float(workload.output_tokens.mean())
    said = pipeline_times(cluster, model, placed).requests_per_s(model, *sizes, room)
    record = simulate(Fixed([placed], kv_tokens=room), workload, [model], cluster, settle_s_max=1e6)
    ends = np.sort(record.requests["end_s"])
    busy = ends[len(ends) // 10 : len(ends) * 7 // 10]
    assert said == pytest.approx((len(busy) - 1) / (busy[-1] - busy[0]), rel=error_max)
