"""A replica of the simulated cluster that takes more or fewer stages as it serves: where they go, and what is refused by name."""

import numpy as np
import pytest
from flexpipe.policies.cluster.cluster_map import cluster_map
from flexpipe.policies.cluster.device_facts import DeviceFacts
from flexpipe.sim.cluster.engine_profiles import opt_66b
from flexpipe.sim.cluster.simulator import simulate
from flexpipe.sim.cluster.system import Reshape, StageAt, Start
from flexpipe.sim.cluster.workload import Workload
from flexpipe.sim.systems.fleet import Fleet, Warmth
from flexpipe.sim.systems.nested_change import NoChangeError
from flexpipe.sim.systems.placing import planned

MODEL = opt_66b()
GIB = 1 << 30


def devices(count, gib=80):
    return cluster_map([DeviceFacts(f"gpu-{n}", f"node-{n // 2}", gib * GIB, gib * GIB) for n in range(count)])


class Changing:
    """Four stages on the first four devices with ``kv_tokens`` of room, then ``stages`` of them at the first tick."""

    name = "changing"
    dispatch = "least-work"
    tick_s = 5.0

    def __init__(self, stages, kv_tokens=None, at_first=4):
        self.stages, self.kv_tokens, self.at_first = stages, kv_tokens, at_first
        self.asked, self.sentence, self.outcomes, self.last = [], "", [], None

    def begin(self, view):
        per = MODEL.layers // self.at_first
        return [Start(0, tuple(StageAt(n, n * per, (n + 1) * per) for n in range(self.at_first)), self.kv_tokens)]

    def tick(self, view):
        self.outcomes += [each for each in view.outcomes if isinstance(each.action, Reshape)]
        self.last = view.replicas
        if self.asked or self.sentence:
            return []
        try:
            self.asked = Fleet(view, 0, planned, Warmth()).reshapes(self.stages)
        except NoChangeError as error:
            self.sentence = str(error)
        return self.asked


def served(system, cluster):
    """Some requests that live through the change."""
    count = 20
    load = Workload(np.linspace(0, 60, count), np.full(count, 500), np.full(count, 200), np.zeros(count, np.int64))
    record = simulate(system, load, (MODEL,), cluster)
    assert record.flaw() == ""
    assert record.counts()["done"] == count
    return record


def test_a_live_split_succeeds_on_full_devices_and_keeps_half_of_each_stage_where_it_is():
    system = Changing(8)
    served(system, devices(10))
    (outcome,) = system.outcomes
    assert outcome.kind == "serving"
    stages = system.last[0].stages
    assert [(stage.first, stage.end) for stage in stages] == [(8 * n, 8 * n + 8) for n in range(8)]
    kept = [stage for stage in stages if stage.device < 4]
    assert sorted(stage.device for stage in kept) == [0, 1, 2, 3]
    assert all(16 * stage.device <= stage.first and stage.end <= 16 * (stage.device + 1) for stage in kept)


def test_a_split_keeps_the_kv_room_that_there_was():
    system = Changing(8)
    served(system, devices(10))
    (action,) = system.asked
    assert action.kv_tokens == system.last[0].kv_tokens
    assert 80_000 < action.kv_tokens < 90_000


def test_a_live_merge_succeeds_where_old_and_new_fit_beside_each_other():
    system = Changing(4, kv_tokens=30_000, at_first=8)
    served(system, devices(8))
    (outcome,) = system.outcomes
    assert outcome.kind == "serving"
    assert len({stage.device for stage in system.last[0].stages}) == 4


def test_a_merge_on_devices_filled_with_kv_is_refused_by_name():
    system = Changing(4, at_first=8)
    served(system, devices(8))
    assert system.asked == []
    assert "KV" in system.sentence or "GiB" in system.sentence or "MiB" in system.sentence


def test_without_free_devices_a_split_is_refused_by_name():
    system = Changing(8)
    served(system, devices(4))
    assert "8 stages" in system.sentence


def test_other_replicas_devices_are_not_taken():
    class Two(Changing):
        def begin(self, view):
            rows = [tuple(StageAt(4 * at + n, n * 16, n * 16 + 16) for n in range(4)) for at in range(2)]
            return [Start(0, stages) for stages in rows]

    system = Two(8)
    served(system, devices(16))
    taken = [stage.device for replica in system.last for stage in replica.stages]
    assert len(taken) == len(set(taken)) == 16
    assert [each.kind for each in system.outcomes] == ["serving", "serving"]


@pytest.mark.parametrize("stages", [8, 16])
def test_coarse_boundaries_are_fine_ones(stages):
    system = Changing(stages)
    served(system, devices(stages))
    (action,) = system.asked
    assert {16, 32, 48} <= {stage.first for stage in action.stages}
