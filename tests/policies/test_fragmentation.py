"""Expected fragmentation: by hand on small nodes, its bounds, and that its growth is the difference that it claims to be."""

import pytest
from flexpipe.policies.cluster.cluster_map import cluster_map
from flexpipe.policies.cluster.device_facts import DeviceFacts
from flexpipe.policies.cluster.fragmentation import (
    MixError,
    StageDemand,
    StageMix,
    fragmentation,
    fragmentation_growth,
    fragmented_share,
    node_fragmentation,
)
from hypothesis import given
from hypothesis import strategies as st

TOTAL = 100


def cluster(*nodes):
    """Nodes of devices, each device with so many bytes free of 100."""
    return cluster_map(
        [
            DeviceFacts(f"n{node}.{place}", node=f"n{node}", total_bytes=TOTAL, free_bytes=free)
            for node, devices in enumerate(nodes)
            for place, free in enumerate(devices)
        ]
    )


clusters = st.lists(st.lists(st.integers(0, TOTAL), min_size=1, max_size=4), min_size=1, max_size=4)
mixes = st.lists(
    st.builds(StageDemand, st.integers(1, TOTAL), st.floats(0.1, 10), st.integers(1, 3)), min_size=1, max_size=3
).map(lambda demands: StageMix(tuple(demands)))


def test_what_is_free_in_pieces_too_small_is_fragment():
    assert node_fragmentation(cluster([10, 60], [30, 40]), StageMix.of_sizes([50])).tolist() == [10, 70]


def test_a_node_that_cannot_serve_a_wide_demand_is_all_fragment():
    pair = StageMix((StageDemand(50, devices=2),))
    assert node_fragmentation(cluster([10, 60], [10, 60, 70]), pair).tolist() == [70, 10]


def test_demands_count_by_their_shares():
    mix = StageMix((StageDemand(50, share=3), StageDemand(5, share=1)))
    assert fragmentation(cluster([40]), mix) == 30
    assert fragmented_share(cluster([40]), mix) == 0.75


def test_smaller_stages_find_less_fragment():
    told = cluster([10, 20, 30, 40])
    assert [fragmented_share(told, StageMix.of_sizes([size])) for size in (5, 15, 25, 50)] == [0, 0.1, 0.3, 1]


def test_nothing_free_and_no_devices_are_no_fragment():
    assert fragmented_share(cluster([0, 0]), StageMix.of_sizes([1])) == 0
    assert fragmented_share(cluster(), StageMix.of_sizes([1])) == 0


@given(clusters, mixes)
def test_fragmentation_is_between_nothing_and_all_that_is_free(nodes, mix):
    share = fragmented_share(cluster(*nodes), mix)
    assert -1e-12 <= share <= 1 + 1e-12


@given(clusters, mixes, st.data())
def test_growth_is_the_difference_that_taking_makes(nodes, mix, data):
    told = cluster(*nodes)
    row = data.draw(st.integers(0, told.devices - 1))
    taken = data.draw(st.integers(0, int(told.free_bytes[row])))
    growth = fragmentation_growth(told, mix, row, taken)
    before = fragmentation(told, mix)
    told.update(row, free_bytes=int(told.free_bytes[row]) - taken)
    assert fragmentation(told, mix) - before == pytest.approx(growth, abs=1e-6)


@pytest.mark.parametrize(
    "demands",
    [
        (),
        (StageDemand(0),),
        (StageDemand(1, devices=0),),
        (StageDemand(1, share=float("nan")),),
        (StageDemand(1, share=0),),
    ],
)
def test_a_mix_that_cannot_be_is_refused(demands):
    with pytest.raises(MixError):
        StageMix(demands)
