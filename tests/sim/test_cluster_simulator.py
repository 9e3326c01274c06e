"""Whole runs of the cluster simulator: what becomes of actions, incidents and requests."""

import math
from dataclasses import replace

import numpy as np
import pytest
from cluster_cases import GIB, Fixed, cut, devices, poisson, toy
from flexpipe.policies.dispatch import ReplicaLoad, preference
from flexpipe.sim.cluster.incidents import Lost, TenantsChange, node_failures, stragglers, tenant_churn
from flexpipe.sim.cluster.simulator import simulate
from flexpipe.sim.cluster.startup import StartupModel, always
from flexpipe.sim.cluster.system import Hold, Release, Reshape, StageAt, Start, Stop
from flexpipe.sim.cluster.workload import Workload, WorkloadError
from hypothesis import given, settings
from hypothesis import strategies as st

SURE = StartupModel(
    process_s=always(0.5), peers=False, warm=always(1.0), cold=always(1.0), stream_bytes_per_s=GIB, cut_s=0.01
)
STEADY = poisson(2.0, 120, outputs=200, prompts=100)


def run(system, workload=STEADY, model=None, cluster=None, **more):
    record = simulate(system, workload, [model or toy()], cluster or devices(8), startup=SURE, **more)
    assert record.flaw() == ""
    return record


def told(record, kind):
    return [outcome for outcome in record.outcomes if outcome.kind == kind and outcome.at_s > 0]


def at(tick, *actions):
    return {tick: lambda _view: list(actions)}


def test_a_start_takes_allocation_process_and_its_largest_load():
    # 8 GiB over two stages of different nodes, from storage at 1 GiB/s each.
    system = Fixed([cut([0])], tick_s=1.0, script=at(1, Start(0, cut([2, 4]))))
    (started,) = told(run(system), "serving")
    assert started.took_s == pytest.approx(0.5 + 4.0)
    allocated = replace(SURE, allocation=always(7.0))
    again = Fixed([cut([0])], tick_s=1.0, script=at(1, Hold((2,)), Start(0, cut([2, 4]))))
    record = simulate(again, STEADY, [toy()], devices(8), startup=allocated)
    assert (told(record, "serving")[0].took_s, told(record, "serving")[0].waited_s) == pytest.approx((11.5, 7.0))


def test_devices_that_are_held_wait_for_no_allocation_and_count():
    allocated = StartupModel(allocation=always(7.0))
    script = {
        1: lambda _view: [Hold((2, 4))],
        2: lambda _view: [Start(0, cut([2, 4]))],
        40: lambda _view: [Release((2, 4))],
    }
    record = simulate(Fixed([cut([0])], tick_s=1.0, script=script), STEADY, [toy()], devices(8), startup=allocated)
    assert told(record, "serving")[0].waited_s == 0.0
    assert record.timeline[:3] == ((0.0, 0), (0.0, 1), (1.0, 3))


def test_a_node_that_had_the_weights_loads_them_from_its_own_memory():
    script = {1: lambda _view: [Stop(0)], 2: lambda _view: [Start(0, cut([1]))]}
    (started,) = told(run(Fixed([cut([0])], tick_s=1.0, script=script)), "serving")
    assert started.took_s == pytest.approx(0.5 + 8 * GIB / 10e9)


def test_two_loads_share_the_link_of_their_node():
    both = Fixed([cut([0])], tick_s=1.0, script=at(1, Start(0, cut([2])), Start(0, cut([3]))))
    rate = GIB / 2  # a node's link, slower than one stream from storage
    startup = replace(SURE, process_s=always(0.0), stream_bytes_per_s=math.inf)
    record = simulate(both, STEADY, [toy()], devices(8, rate=rate), startup=startup)
    assert [outcome.took_s for outcome in told(record, "serving")] == pytest.approx([32.0, 32.0])


def test_what_does_not_fit_is_refused_with_the_reason():
    script = {
        1: lambda _view: [Start(0, cut([0]))],
        2: lambda _view: [Start(0, cut([1])), Start(0, (StageAt(2, 0, 4),)), Start(0, cut([3, 3]))],
        3: lambda view: [Start(0, cut([4]), seen=view.cluster.seen([4])), Reshape(9, cut([5]))],
    }
    record = run(Fixed([cut([0])], tick_s=1.0, script=script), cluster=devices(8, gib=6), model=toy(gib=5))
    words = [outcome.sentence for outcome in told(record, "refused")]
    assert "another stage of this model" in words[0]
    assert [word for word in words if "hold the model's layers" in word]
    assert [word for word in words if "named twice" in word]
    assert [word for word in words if "replica 9 does not serve" in word]
    small = run(
        Fixed([cut([0, 1])], tick_s=1.0, script=at(1, Start(0, cut([2])))), cluster=devices(8, gib=6), model=toy(gib=7)
    )
    assert "MiB are missing" in told(small, "refused")[0].sentence


def test_a_plan_made_from_old_facts_is_refused():
    plans = []
    script = {
        1: lambda view: plans.append(Start(0, cut([2]), seen=view.cluster.seen([2]))) or [],
        5: lambda _view: plans,
    }
    incidents = [TenantsChange(3.0, 2, free_bytes=70 * GIB)]
    record = run(Fixed([cut([0])], tick_s=1.0, script=script), incidents=incidents)
    assert "has changed since" in told(record, "refused")[0].sentence


@pytest.mark.parametrize("how", ["live", "stop-and-copy", "restart"])
def test_a_reshape_loses_no_request_and_no_token(how):
    script = {
        10: lambda _view: [Reshape(0, cut([0, 2, 4, 6]), how, 100_000)],
        40: lambda _view: [Reshape(0, cut([6, 7]), how, 100_000)],
    }
    record = run(Fixed([cut([0, 1])], tick_s=1.0, kv_tokens=100_000, script=script))
    assert record.counts()["done"] == len(STEADY)
    assert [outcome.kind for outcome in record.outcomes] == ["serving"] * 3
    assert (record.requests["preempted"] > 0).any() == (how == "restart")


def longest_gap(how):
    """How much longer than usual a request took over which the cut fell."""
    workload = Workload(np.array([0.0]), np.array([30_000]), np.array([3000]), np.array([0]))
    script = at(5, Reshape(0, cut([2, 3]), how))
    times = []
    for what in (script, {}):
        system = Fixed([cut([0, 1])], tick_s=1.0, kv_tokens=100_000, script=what)
        record = simulate(system, workload, [toy()], devices(8), startup=replace(SURE, copy_slowdown=0.0))
        times.append(float(record.requests["end_s"][0]))
    return times[0] - times[1]


def test_a_live_cut_stands_still_for_a_moment_a_restart_for_its_whole_load():
    live, copied, restarted = (longest_gap(how) for how in ("live", "stop-and-copy", "restart"))
    assert live == pytest.approx(0.015, rel=1e-3)  # half a cycle of 10 ms, and the cut's 10 ms
    assert live < copied < restarted
    assert restarted > 4.5


def test_a_replica_that_drains_ends_its_requests_and_frees_its_devices():
    script = at(10, Stop(1))
    record = run(Fixed([cut([0]), cut([1])], tick_s=1.0, script=script))
    (ended,) = told(record, "ended")
    assert 0 < ended.took_s < 5
    assert (record.requests["preempted"] == 0).all()
    assert record.timeline[-1][1] == 1


def test_requests_of_a_lost_node_go_on_elsewhere_after_it_was_noticed():
    incidents = [Lost(20.0, (0, 1), 50.0, (0,))]
    system = Fixed([cut([0]), cut([2])], tick_s=1.0, script=at(45, Start(0, cut([4]))))
    record = run(system, incidents=incidents)
    assert record.counts()["done"] == len(STEADY)
    (failed,) = told(record, "failed")
    assert (failed.at_s, failed.sentence) == (22.0, "device g0 is gone")
    caught = record.requests[(record.requests["preempted"] > 0)]
    assert len(caught) > 0
    assert (caught["end_s"] > 22.0).all()


def test_devices_that_are_gone_take_nothing_until_they_are_back():
    incidents = [Lost(5.0, (2, 3), 30.0)]
    script = {10: lambda _view: [Start(0, cut([2]))], 31: lambda _view: [Start(0, cut([2]))]}
    record = run(Fixed([cut([0])], tick_s=1.0, script=script), incidents=incidents)
    assert [outcome.kind for outcome in record.outcomes[1:]] == ["refused", "serving"]


def test_a_straggler_slows_one_request_by_its_stage_and_a_full_pipeline_altogether():
    lone = Workload(np.zeros(1), np.array([100]), np.array([200]), np.zeros(1, int))
    straggler = [TenantsChange(0.0, 1, slowdown=1.0)]
    took = []
    for workload in (lone, STEADY):
        for incidents in ([], straggler):
            requests = run(Fixed([cut([0, 1])]), workload, incidents=incidents).requests
            took.append(np.median(requests["end_s"] - requests["first_s"]))
    assert took[1] / took[0] == pytest.approx(1.5, rel=1e-3)  # one of two equal stages takes twice as long
    assert took[3] / took[2] == pytest.approx(2.0, rel=0.02)  # both steps wait for it


def test_two_models_on_a_device_slow_each_other_while_both_compute():
    models = [toy(gib=4), toy(gib=4)]

    class Shared(Fixed):
        def begin(self, view):
            super().begin(view)
            return [Start(0, cut([0]), 10_000), Start(1, cut([0]), 10_000)]

    half = poisson(2.0, 120, outputs=200, prompts=100)
    workload = Workload(half.arrival_s, half.input_tokens, half.output_tokens, np.arange(120) % 2)
    record = simulate(Shared([], tick_s=1.0), workload, models, devices(1), startup=SURE)
    assert record.flaw() == ""
    tpot = (record.requests["end_s"] - record.requests["first_s"]) / 199
    assert 0.012 < np.median(tpot) < 0.0201


def test_kv_room_preempts_the_youngest_and_everything_ends_all_the_same():
    workload = poisson(5.0, 100, outputs=600, prompts=50)
    record = run(Fixed([cut([0])], kv_tokens=4000), workload)
    assert record.counts()["done"] == 100
    assert record.requests["preempted"].sum() > 10


def test_what_can_never_fit_fails_alone_and_full_queues_refuse():
    sizes = np.array([100, 9000, 100])
    workload = Workload(np.array([0.0, 0.1, 0.2]), sizes, np.array([10, 10, 5000]), np.zeros(3, int))
    record = run(Fixed([cut([0])], kv_tokens=4000), workload)
    assert record.counts() == {"done": 1, "failed": 2, "refused": 0, "waiting": 0, "absent": 0, "running": 0}
    crowd = Workload(np.zeros(50), np.full(50, 10), np.full(50, 10), np.zeros(50, int))
    assert run(Fixed([cut([0])]), crowd, toy(running_max=4, queue_max=6)).counts()["refused"] == 50 - 4 - 6


def test_without_a_replica_requests_wait_for_the_first_that_serves():
    system = Fixed([], tick_s=1.0, script=at(3, Start(0, cut([0]))))
    record = run(system)
    assert record.counts()["done"] == len(STEADY)
    assert system.views[3].unplaced[0] > 0
    assert record.requests["first_s"].min() > 3.0 + 8.0


@given(st.integers(0, 10_000), st.sampled_from(["least-work", "shortest-queue", "central"]))
@settings(max_examples=60, deadline=None)
def test_whatever_a_system_does_every_request_has_one_fate_and_no_device_holds_too_much(seed, dispatch):
    chance = np.random.default_rng(seed)
    cluster, model = devices(10, gib=10), toy(gib=6, step_s=0.02)

    class Wild(Fixed):
        def tick(self, view):
            actions = []
            for _ in range(chance.integers(0, 3)):
                rows = chance.permutation(10)[: chance.integers(1, 5)].tolist()
                kv = None if chance.random() < 0.3 else int(chance.integers(0, 20_000))
                number = int(chance.integers(0, 12))
                how = str(chance.choice(["live", "stop-and-copy", "restart"]))
                actions.append(
                    [
                        Start(0, cut(rows), kv),
                        Stop(number, bool(chance.random() < 0.7)),
                        Reshape(number, cut(rows), how, kv),
                    ][int(chance.integers(0, 3))]
                )
            return actions

    workload = poisson(4.0, 200, lambda g, n: g.integers(1, 400, n), lambda g, n: g.integers(1, 1500, n), seed)
    incidents = [
        *node_failures(cluster, 60.0, 10.0, 60.0, seed),
        *stragglers(cluster, 60.0, 5.0, 1.0, 60.0, seed),
        *tenant_churn(cluster, 60.0, 60.0, seed),
    ]
    system = Wild([cut([0, 1]), cut([2, 3, 4])], dispatch, tick_s=1.0)
    record = simulate(system, workload, [model], cluster, incidents=incidents, seed=seed, settle_s_max=200.0)
    assert record.flaw() == ""
    counts = record.counts()
    assert sum(counts.values()) == 200
    assert counts["running"] + counts["waiting"] == 0 or record.ended_s >= record.load_s + 200.0
    assert counts["absent"] == 0


def test_one_seed_is_one_history():
    def history(seed):
        system = Fixed([cut([0])], tick_s=1.0, script=at(1, Start(0, cut([2, 4])), Start(0, cut([3, 5]))))
        record = simulate(system, STEADY, [toy()], devices(8), seed=seed)
        return record.requests.tobytes(), record.outcomes

    assert history(1) == history(1)
    assert history(1)[1] != history(2)[1]


def test_the_router_is_the_products():
    """Where each request goes is what `policies.dispatch` says of the replicas as they were."""
    chance = np.random.default_rng(5)
    sizes = chance.integers(1, 2000, 300)
    workload = Workload(np.cumsum(chance.exponential(0.01, 300)), sizes, np.full(300, 5), np.zeros(300, int))
    slow = toy(step_s=1e6)  # nothing moves while they arrive: work is what was sent
    record = simulate(Fixed([cut([n]) for n in range(7)]), workload, [slow], devices(7), settle_s_max=1.0)
    work = [0] * 7
    for request, size in enumerate(sizes.tolist()):
        chosen = preference(ReplicaLoad(n, True, work[n]) for n in range(7))[0]
        assert record.requests["replica"][request] == chosen
        work[chosen] += size


def test_a_request_for_a_model_that_is_not_there_is_no_workload():
    with pytest.raises(WorkloadError, match="model 1 of 1"):
        simulate(
            Fixed([cut([0])]),
            Workload(np.zeros(1), np.ones(1, int), np.ones(1, int), np.ones(1, int)),
            [toy()],
            devices(1),
        )


def test_a_day_without_a_tick_costs_no_time():
    workload = Workload(np.array([0.0, 86_400.0]), np.array([5, 5]), np.array([5, 5]), np.zeros(2, int))
    assert run(Fixed([cut([0])]), workload).events < 20
    assert math.isfinite(run(Fixed([cut([0])]), workload).ended_s)
