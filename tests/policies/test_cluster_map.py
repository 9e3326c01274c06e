"""The map of a cluster: its order, its aggregates under change, its epochs, and the facts it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from flexpipe.policies.cluster.cluster_map import BUCKETS, CLUSTER, ISLAND, NODE, RACK, cluster_map
from flexpipe.policies.cluster.device_facts import DeviceFacts, MapError, NodeFacts
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
FACTS = DeviceFacts("a", node="n", total_bytes=16 * GIB, free_bytes=4 * GIB)


def device(name, node, free=4 * GIB, **more):
    return DeviceFacts(name, node=node, total_bytes=16 * GIB, free_bytes=free, **more)


def cluster():
    """Two racks; n0 has two islands, and the devices come in no order."""
    return cluster_map(
        [
            device("n1.0", "n1", 8 * GIB),
            device("n0.0", "n0", 1 * GIB, island="left"),
            device("n0.2", "n0", 3 * GIB, island="right"),
            device("n2.0", "n2", 16 * GIB),
            device("n0.1", "n0", 2 * GIB, island="left"),
        ],
        [NodeFacts("n0", "east"), NodeFacts("n1", "west"), NodeFacts("n2", "east")],
    )


@st.composite
def maps_and_updates(draw):
    devices = [
        device(f"d{number}", f"n{draw(st.integers(0, 5))}", draw(st.integers(0, 16 * GIB)))
        for number in range(draw(st.integers(1, 20)))
    ]
    racks = [NodeFacts(f"n{node}", f"rack-{draw(st.integers(0, 2))}") for node in range(6)]
    changes = draw(st.lists(st.tuples(st.integers(0, len(devices) - 1), st.integers(-1, 16 * GIB)), max_size=20))
    return devices, racks, changes


def test_each_level_is_a_range_of_the_level_below():
    told = cluster()
    assert told.rack_names == ("west", "east")
    assert told.node_names == ("n1", "n0", "n2")
    assert told.device_names == ("n1.0", "n0.0", "n0.1", "n0.2", "n2.0")
    assert [told.devices_of_node(node) for node in range(3)] == [slice(0, 1), slice(1, 4), slice(4, 5)]
    assert [told.devices_of_rack(rack) for rack in range(2)] == [slice(0, 1), slice(1, 5)]


def test_a_hop_costs_what_the_nearest_common_level_costs():
    told = cluster()
    left, mate, right, neighbour, far = (told.row(name) for name in ("n0.0", "n0.1", "n0.2", "n2.0", "n1.0"))
    assert [told.distance(left, other) for other in (mate, right, neighbour, far)] == [ISLAND, NODE, RACK, CLUSTER]
    assert told.link(left, neighbour) == told.links.rack


def test_no_devices_are_a_map_too():
    told = cluster_map([])
    assert (told.devices, told.nodes, told.racks, told.nodes_with(1, 0)) == (0, 0, 0, 0)


@given(maps_and_updates())
def test_updates_leave_the_same_aggregates_as_a_map_made_anew(case):
    devices, racks, changes = case
    told = cluster_map(devices, racks)
    for row, free in changes:
        if free < 0:
            told.vanish(row)
        elif told.total_bytes[row]:
            told.update(row, free_bytes=free)
    anew = cluster_map(
        [
            replace(facts, free_bytes=int(told.free_bytes[row]), total_bytes=int(told.total_bytes[row]))
            for facts in devices
            for row in [told.row(facts.name)]
        ],
        racks,
    )
    for name in ("free_bytes", "descending_free", "rack_free_bytes", "rack_total_bytes", "colocated"):
        assert np.array_equal(getattr(told, name), getattr(anew, name)), name


@given(maps_and_updates(), st.integers(1, 8), st.sampled_from(range(len(BUCKETS))))
def test_the_table_of_colocated_devices_agrees_with_a_count(case, devices, bucket):
    facts, racks, _ = case
    told = cluster_map(facts, racks)
    by_hand = sum(
        sum(told.free_bytes[told.devices_of_node(node)] >= BUCKETS[bucket]) >= devices for node in range(told.nodes)
    )
    assert told.nodes_with(devices, BUCKETS[bucket]) == by_hand
    assert (told.colocated[devices, bucket] if devices < len(told.colocated) else 0) == by_hand


def test_a_plan_learns_which_devices_changed_since_it_saw_them():
    told = cluster()
    seen = told.seen([told.row("n0.0"), told.row("n2.0")])
    told.update(told.row("n1.0"), free_bytes=0)
    assert told.changed(seen) == ()
    told.update(told.row("n0.0"), free_bytes=5 * GIB)
    told.vanish(told.row("n2.0"))
    assert told.changed(seen) == ("n0.0", "n2.0")
    assert told.rack_epoch.tolist() == [1, 3]


def test_facts_that_are_no_news_leave_plans_valid():
    told = cluster()
    row = told.row("n0.0")
    assert not told.update(row, free_bytes=1 * GIB, slowdown=0.0)
    assert told.update(row, slowdown=0.25)
    assert (told.now, told.epoch[row]) == (1, 1)


def test_a_copy_does_not_follow_its_original():
    told = cluster()
    twin = told.copy()
    told.vanish(0)
    assert (twin.now, twin.free_bytes[0], twin.nodes_with(1, 8 * GIB)) == (0, 8 * GIB, 2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"free_bytes": float("nan")}, "nan bytes of free memory"),
        ({"total_bytes": float("nan")}, "nan bytes of total memory"),
        ({"free_bytes": -1}, "-1 bytes of free memory"),
        ({"free_bytes": 17 * GIB}, "no more can be free than there is"),
        ({"free_bytes": 0.5}, "bytes come whole"),
        ({"total_bytes": 1 << 60}, "from 0 to"),
        ({"speed": 0.0}, "speed"),
        ({"slowdown": float("inf")}, "slowdown"),
        ({"node": ""}, "a name and a node"),
    ],
)
def test_a_fact_that_cannot_be_is_refused_with_the_devices_name(change, sentence):
    with pytest.raises(MapError, match=sentence) as refusal:
        replace(FACTS, **change)
    assert "a " in str(refusal.value)


@pytest.mark.parametrize("free", [-1, 17 * GIB, float("nan")])
def test_a_refused_update_changes_nothing(free):
    told = cluster()
    with pytest.raises(MapError):
        told.update(0, free_bytes=free)
    assert (told.now, told.free_bytes[0]) == (0, 8 * GIB)


def test_a_name_that_comes_twice_is_refused():
    with pytest.raises(MapError, match="two devices are called 'a'"):
        cluster_map([device("a", "n0"), device("a", "n1")])


def test_a_device_that_nobody_knows_has_no_row():
    with pytest.raises(MapError, match="'b'"):
        cluster_map([FACTS]).row("b")
