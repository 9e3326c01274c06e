"""Devices of a cluster: which are offered in which order, what is known of them, threads, and plans while nodes come and go."""

import pytest
from flexpipe.actors.cluster.node_messages import NodeDevice, NodeFacts
from flexpipe.actors.refactor import RefactorRefusedError, RefactorRequest
from flexpipe.actors.route import Route, StagePlacement
from flexpipe.device_supply import ClusterDevices
from flexpipe.policies.types import AtomCost
from flexpipe.refactor_planning import RefactorPlanner

ATOMS = tuple(
    AtomCost(f"layers.{atom // 2}.{'mlp' if atom % 2 else 'attention'}", 1_000_000, 100, 4, 8, (atom // 2,))
    for atom in range(12)
)


def facts(name, devices=2, cores=4, threads=0, memory=0):
    named = tuple(NodeDevice(f"cpu:{number}", memory) for number in range(devices))
    return NodeFacts(name, "10.0.0.1", 7710, 7719, cores, threads, 1 << 30, named)


class Cluster:
    """Nodes that come and go, and a planner of what they have."""

    def __init__(self, *nodes, **options):
        self.nodes = {name: facts(name, **options) for name in nodes}
        self.devices = ClusterDevices(lambda: self.nodes)
        self.planner = RefactorPlanner(ATOMS, self.devices)

    def serving(self, **wish):
        return Route(1, self.planner.plan(RefactorRequest(**wish), Route(0, ()), next_worker=0))


def shape(stages):
    return [(stage.worker, stage.first_atom, stage.end_atom, stage.device) for stage in stages]


def test_a_pipeline_spreads_over_nodes_before_workers_share_one():
    cluster = Cluster("n2", "n1", "n3")
    assert cluster.devices.names()[:4] == ("n1/cpu:0", "n2/cpu:0", "n3/cpu:0", "n1/cpu:1")
    assert shape(cluster.serving(stages=3).stages) == [
        (0, 0, 4, "n1/cpu:0"),
        (1, 4, 8, "n2/cpu:0"),
        (2, 8, 12, "n3/cpu:0"),
    ]


def test_workers_of_one_node_share_its_cores_unless_it_says_how_many_threads_each_has():
    cluster = Cluster("n1", "n2")
    assert [stage.threads for stage in cluster.serving(stages=3).stages] == [2, 4, 2]
    cluster = Cluster("n1", "n2", threads=3)
    assert [stage.threads for stage in cluster.serving(stages=3).stages] == [3, 3, 3]


def test_what_a_node_states_of_its_memory_counts_under_the_device_that_everybody_knows():
    assert Cluster("n1", devices=1, memory=5).devices.stated == {"n1/cpu:0": 5}


def test_stages_leave_a_node_that_may_not_be_used_any_more_and_the_others_stay():
    cluster = Cluster("n1", "n2", "n3")
    route = cluster.serving(stages=3)
    del cluster.nodes["n2"]
    moved = cluster.planner.plan(RefactorRequest(partition="0:4,4:8,8:12"), route, next_worker=7)
    assert shape(moved) == [(0, 0, 4, "n1/cpu:0"), (7, 4, 8, "n1/cpu:1"), (2, 8, 12, "n3/cpu:0")]


def test_a_recovery_changes_nothing_where_all_devices_are_here():
    cluster = Cluster("n1", "n2")
    stages = cluster.serving(stages=2).stages
    assert cluster.planner.recover(stages, next_worker=9, taken_devices=()) == stages


def test_a_recovery_has_fewer_stages_where_too_few_devices_are_left():
    cluster = Cluster("n1", "n2", "n3", devices=1)
    stages = cluster.serving(stages=3).stages
    del cluster.nodes["n3"]
    assert len(cluster.planner.recover(stages, next_worker=3, taken_devices=())) == 2
    del cluster.nodes["n2"]
    assert len(cluster.planner.recover(stages, next_worker=3, taken_devices=())) == 1


def test_a_recovery_without_any_device_is_refused_in_one_sentence():
    cluster = Cluster("n1")
    stages = (StagePlacement(0, 0, 12, "n9/cpu:0", 1),)
    del cluster.nodes["n1"]
    with pytest.raises(RefactorRefusedError, match="device"):
        cluster.planner.recover(stages, next_worker=1, taken_devices=())
