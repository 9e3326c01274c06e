"""Drawn maps: the same for the same seed, as large and as full as asked for, and fragmented as the policies fragment."""

from collections import Counter

import numpy as np
import pytest
from flexpipe.policies.cluster.device_facts import MapError
from flexpipe.policies.cluster.map_summary import free_shares, summarise
from flexpipe.sim.synthetic_map import NODE_KINDS, NODES, SyntheticMap
from flexpipe.sim.tenants import POLICIES, SHAPES, WHOLE, fill


def drawn(text="random:70", nodes=300, seed=0):
    return SyntheticMap.parse(text, nodes, seed).draw()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_draws_the_same_map_and_another_another(policy):
    first, again, other = (drawn(f"{policy}:70", seed=seed).free_bytes for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_whole_cluster_has_the_traces_nodes_and_gpus():
    whole = drawn("random:0", NODES)
    widths = Counter(np.diff(whole.first_device).tolist())
    assert (whole.devices, whole.nodes, widths) == (6212, 1213, {8: 617, 2: 518, 4: 54, 1: 24})
    assert Counter(whole.models) == {
        "G2": 4392, "T4": 842, "G3": 312, "P100": 265, "V100M32": 204, "V100M16": 195, "A10": 2,
    }  # fmt: skip


@pytest.mark.parametrize("nodes", [1, 7, 100, NODES + 1])
def test_smaller_and_larger_clusters_keep_the_proportions(nodes):
    told = drawn("random:0", nodes)
    kinds = Counter(
        (int(width), told.models[first])
        for width, first in zip(np.diff(told.first_device), told.first_device, strict=False)
    )
    assert told.nodes == nodes
    assert all(abs(kinds[gpus, model] - count * nodes / NODES) < 1 for gpus, model, count in NODE_KINDS)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("percent", [0, 50, 90])
def test_as_much_is_taken_as_was_asked_for(policy, percent):
    taken = 1 - float(np.mean(free_shares(drawn(f"{policy}:{percent}"))))
    assert taken == pytest.approx(percent / 100, abs=0.005)


def test_no_gpu_holds_more_than_it_has():
    held = [free for node in fill([8] * 20 + [1] * 5, "random", 0.95, np.random.default_rng(1)) for free in node]
    assert len(held) == 165
    assert 0 <= min(held) <= max(held) <= WHOLE


# Of maps derived from the trace by the same policies: free GPUs, and nodes with one and with eight of them, in per cent.
PUBLISHED = {
    "random:50": (41, 67, 0.7),
    "random:70": (19, 49, 0),
    "random:90": (1.1, 5.6, 0),
    "bestfit:50": (48, 33, 29),
    "bestfit:70": (27, 20, 16),
    "bestfit:90": (5.8, 6.1, 2.6),
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_maps_are_as_fragmented_as_those_derived_from_the_trace(text):
    told = summarise(drawn(text, NODES, seed=7))
    found = (
        100 * told.nearly_free / told.devices,
        100 * told.nodes_with[0] / told.nodes,
        100 * told.nodes_with[2] / told.nodes,
    )
    assert found == pytest.approx(PUBLISHED[text], abs=4)


def test_the_gradient_policy_makes_less_fragment_than_chance():
    shares = {policy: summarise(drawn(f"{policy}:90"), [12 << 30]).fragments[0].share for policy in ("random", "fgd")}
    assert shares["fgd"] < 0.8 * shares["random"]


def test_the_shapes_of_tenants_are_all_of_them():
    assert sum(shape.share for shape in SHAPES) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("random", {}, "'random' is no synthetic map; write random:90, bestfit:90, fgd:90"),
        ("worst:50", {}, "'worst' at 50% is no synthetic map"),
        ("random:100", {}, "is no synthetic map"),
        ("random:nan", {}, "is no synthetic map"),
        ("random:50", {"nodes": 0}, "of 0 nodes"),
        ("random:50", {"nodes": 10**9}, "of 1000000000 nodes"),
        ("random:50", {"seed": -1}, "-1 is no seed"),
    ],
)
def test_what_cannot_be_drawn_is_refused(text, options, sentence):
    with pytest.raises(MapError, match=sentence):
        SyntheticMap.parse(text, **options)
