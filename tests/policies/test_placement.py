"""Placement against trying everything, kernels against the reference, and what holds for every plan."""

from dataclasses import replace

import pytest
from flexpipe.bench.placement_cases import MODELS, request_for, small_case
from flexpipe.policies.cluster.cluster_map import cluster_map
from flexpipe.policies.cluster.device_facts import DeviceFacts
from flexpipe.policies.cluster.fragmentation import StageMix, fragmentation
from flexpipe.policies.placement.baselines import BASELINES
from flexpipe.policies.placement.pricing import verify
from flexpipe.policies.placement.solver import PlacementSolver, place
from flexpipe.policies.placement.values import (
    NoPlacement,
    ObjectiveWeights,
    Placement,
    PlacementRequest,
    PresentStage,
    stale,
)
from flexpipe.policies.types import AtomCost
from flexpipe.sim.synthetic_map import SyntheticMap
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from placement_cases import REFERENCE, cluster_maps, every_plan, requests

GIB = 1 << 30
ATOMS = tuple(AtomCost(f"block.{b}.mlp", 1_000_000, 3 * GIB, 1 << 17, 1 << 20, (b,)) for b in range(4))


def devices(*free_gib, node=lambda number: f"node-{number // 2}"):
    facts = [
        DeviceFacts(f"gpu-{number}", node(number), 24 * GIB, int(gib * GIB)) for number, gib in enumerate(free_gib)
    ]
    return cluster_map(facts)


@given(cluster_maps(devices_max=4), requests(atoms_max=4))
@settings(max_examples=150, deadline=None)
def test_a_plan_costs_what_the_best_of_all_plans_costs(cluster, request):
    plans = list(every_plan(cluster, request))
    found = place(cluster, request)
    if not plans:
        assert isinstance(found, NoPlacement)
        assert found.proved
    else:
        assert found.cost == min(plan.terms.cost(request.weights) for plan in plans)
        assert found.proved


@given(cluster_maps(), requests(replicas_max=2))
@settings(max_examples=150, deadline=None)
def test_every_plan_holds_each_atom_once_per_replica_and_breaks_no_limit(cluster, request):
    found = place(cluster, request)
    if isinstance(found, Placement):
        assert len(found.replicas) == request.replicas
        verify(cluster, request, found.replicas)
        assert found.cost == sum(replica.terms.cost(request.weights) for replica in found.replicas)
        assert found.bound <= found.cost


@given(cluster_maps(devices_max=5), requests(replicas_max=2))
@settings(max_examples=40, deadline=None)
def test_the_kernels_answer_as_the_reference_does(cluster, request):
    assert place(cluster, request) == place(cluster, request, REFERENCE)


@pytest.mark.parametrize(("seed", "stages"), [(0, 3), (1, 4)])
def test_the_kernels_answer_as_the_reference_does_on_a_map_of_many_devices(seed, stages):
    cluster = SyntheticMap("random", 0.7, nodes=40, seed=seed).draw()
    request = replace(request_for(MODELS[0], stages), atoms=MODELS[0].atoms()[:12] + MODELS[0].atoms()[-1:])
    compiled, reference = PlacementSolver(cluster, request), PlacementSolver(cluster, request, REFERENCE)
    for _ in range(3):
        plan = compiled.solve()
        assert plan == reference.solve()
        assert isinstance(plan, Placement)
        cluster.update(plan.devices[0], free_bytes=0)


@given(cluster_maps(devices_max=5), requests(), st.integers(0, 4), st.integers(1, 100))
@settings(max_examples=150, deadline=None)
def test_more_free_memory_never_makes_a_plan_dearer(cluster, request, device, more):
    request = replace(request, fragment_mix=())
    before = place(cluster, request)
    row = device % cluster.devices
    cluster.update(row, free_bytes=min(int(cluster.free_bytes[row]) + more, 100))
    after = place(cluster, request)
    if isinstance(before, Placement):
        assert before.proved
        assert isinstance(after, Placement)
        assert after.cost <= before.cost


@given(cluster_maps(), requests(replicas_max=2))
@settings(max_examples=60, deadline=None)
def test_placing_changes_nothing_and_repeats_itself(cluster, request):
    free, epochs, now = cluster.free_bytes.copy(), cluster.epoch.copy(), cluster.now
    assert place(cluster, request) == place(cluster, request)
    assert (cluster.free_bytes == free).all()
    assert (cluster.epoch == epochs).all()
    assert cluster.now == now


@given(cluster_maps(), requests(), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100)), max_size=4))
@settings(max_examples=60, deadline=None)
def test_on_a_small_map_a_solver_that_saw_events_answers_as_a_new_one(cluster, request, events):
    solver = PlacementSolver(cluster, request)
    solver.solve()
    for device, free in events:
        cluster.update(device % cluster.devices, free_bytes=free)
        assert solver.solve() == place(cluster, request)


def test_after_events_on_a_large_map_plans_keep_within_what_is_free():
    cluster = SyntheticMap("random", 0.9, nodes=300, seed=3).draw()
    solver, chance = PlacementSolver(cluster, request_for(MODELS[1], 8)), default_rng(5)
    for number in range(60):
        plan = solver.solve()
        assert isinstance(plan, Placement)
        verify(cluster, request_for(MODELS[1], 8), plan.replicas)
        assert stale(cluster, plan) is None
        row = plan.devices[number % len(plan.devices)] if number % 2 else int(chance.integers(cluster.devices))
        cluster.update(row, free_bytes=int(cluster.total_bytes[row] * chance.random()))


@given(cluster_maps(), requests())
@settings(max_examples=60, deadline=None)
def test_a_plan_grows_fragmentation_by_what_it_says(cluster, request):
    # In units of a GiB, since the map's measure counts bytes and a plan KiB, rounded down for each stage.
    cluster = cluster_map(
        [
            DeviceFacts(name, str(node), 100 * GIB, int(free) * GIB)
            for name, node, free in zip(cluster.device_names, cluster.node_of, cluster.free_bytes, strict=True)
        ]
    )
    atoms = tuple(replace(atom, weight_bytes=atom.weight_bytes * GIB, kv_bytes_per_token=0) for atom in request.atoms)
    mix = ((20 * GIB, 500_000), (60 * GIB, 500_000))
    plan = place(cluster, PlacementRequest(atoms, stages_max=3, fragment_mix=mix))
    if isinstance(plan, Placement):
        measure = StageMix.of_sizes([size for size, _ in mix])
        before = fragmentation(cluster, measure)
        for stage in plan.replicas[0].stages:
            cluster.update(stage.device, free_bytes=int(cluster.free_bytes[stage.device]) - stage.cost.memory_bytes)
        growth = fragmentation(cluster, measure) - before
        assert plan.replicas[0].terms.fragmentation_kib == pytest.approx(growth / 1024, abs=3)


def test_replicas_leave_each_other_what_the_other_needs():
    # Alone, a replica takes the two large devices of one node; then the second one would have no place.
    atoms = (replace(ATOMS[0], weight_bytes=10 * GIB), replace(ATOMS[1], weight_bytes=4 * GIB, activation_bytes=0))
    cluster = devices(12, 12, 5, 5, node=lambda number: f"node-{number // 2}")
    plan = place(cluster, PlacementRequest(atoms, stages_max=2, replicas=2))
    assert isinstance(plan, Placement)
    assert {stage.device for replica in plan.replicas for stage in replica.stages} == {0, 1, 2, 3}


def test_replicas_are_added_until_they_make_the_wanted_steps():
    cluster = devices(*[13] * 8)
    request = PlacementRequest(ATOMS, stages_max=1, replicas=1, replicas_max=6, steps_per_s=600.0)
    plan = place(cluster, request)
    assert isinstance(plan, Placement)
    assert len(plan.replicas) == 3  # of 250 steps a second each


def test_devices_that_hold_other_stages_of_the_model_are_left_alone():
    cluster = devices(24, 24, 24)
    plan = place(cluster, PlacementRequest(ATOMS, stages_max=1, occupied=frozenset({0, 2})))
    assert plan.devices == (1,)


def test_a_node_that_keeps_the_weights_warm_is_taken():
    cluster = devices(20, 20, 20, 20, 20, 20)
    plan = place(cluster, PlacementRequest(ATOMS, stages_max=1, warm={2: frozenset(range(4))}))
    assert cluster.node_of[plan.devices[0]] == 2


def test_a_present_placement_stays_where_moving_gains_nothing():
    cluster = devices(20, 20, 1, 20)
    present = ((PresentStage(2, 0, 4, held_bytes=15 * GIB),),)
    request = PlacementRequest(ATOMS, stages_max=2, present=present, held_kv_tokens=1000, kv_tokens=1000)
    heavy_move = replace(request, weights=ObjectiveWeights(bottleneck=0, move=1000))
    assert place(cluster, heavy_move).devices == (2,)


def test_a_plan_names_the_device_that_changed_since():
    cluster = devices(20, 20)
    plan = place(cluster, PlacementRequest(ATOMS, stages_max=1))
    assert stale(cluster, plan) is None
    cluster.vanish(plan.devices[0])
    found = stale(cluster, plan)
    assert found.device == cluster.device_names[plan.devices[0]]
    assert "plan again" in found.reason
    assert place(cluster, PlacementRequest(ATOMS, stages_max=1)).devices != plan.devices


@pytest.mark.parametrize(
    ("free", "asked", "reason", "missing"),
    [
        ((), {}, "the map has no devices", 0),
        (
            (2, 3.1, 1),
            {"kv_tokens": 8192},
            "the largest free device has 3.1 GiB and atom block.0.mlp with KV for 8,192 tokens needs 4.0 GiB",
            0.9,
        ),
        ((0, 0), {}, "the largest free device has 0 bytes and atom block.0.mlp needs 3.0 GiB", 3),
        ((4, 4), {"occupied": frozenset({0, 1})}, "each of the 2 devices holds a stage of this model already", 0),
        ((4, 7, 2), {}, "1.0 GiB more on devices of at least 3.0 GiB are needed", 1),
        (
            (5, 5, 5),
            {},
            "no cut of 1 replica into 1 to 3 stages fits the free devices, although they have enough in all",
            0,
        ),
        ((24, 24), {"step_ns_max": 900_000}, "atom block.0.mlp takes 1.00 ms on the fastest device with room", 0),
        ((24, 24), {"step_ns_max": 1_900_000}, "a stage's step takes 2.00 ms even on the 3 fastest devices", 0),
        ((24, 24), {"tpot_ns_max": 3_000_000}, "a token's way takes 4.00 ms even on the fastest device with room", 0),
        ((24, 24), {"stages_min": 3}, "only 2 devices have any room: 1 more devices are needed", 0),
        ((24,), {"replicas": 2}, "only 1 devices have any room: 1 more devices are needed", 0),
    ],
)
def test_where_there_is_no_plan_the_reason_names_the_tightest_constraint(free, asked, reason, missing):
    found = place(devices(*free), PlacementRequest(ATOMS, **({"stages_max": 3} | asked)))
    assert isinstance(found, NoPlacement)
    assert reason in found.reason
    assert found.missing_bytes == pytest.approx(missing * GIB, abs=GIB // 100)
    assert found.proved


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_no_baseline_breaks_a_limit_or_beats_a_proved_optimum(name, seed):
    cluster, request = small_case(seed)
    request = replace(request, replicas=1)
    found = BASELINES[name](cluster, request, default_rng(seed))
    plan = place(cluster, request)
    if found is not None:
        verify(cluster, request, [found])
        assert isinstance(plan, Placement)
        assert plan.cost <= found.terms.cost(request.weights) or not plan.proved


@pytest.mark.parametrize(
    "nonsense",
    [
        {"atoms": ()},
        {"stages_max": 0},
        {"stages_min": 4},
        {"replicas": 0},
        {"kv_tokens": -1},
        {"fragment_mix": ((GIB, 2_000_000),)},
    ],
)
def test_a_request_that_nobody_can_have_meant_is_refused(nonsense):
    with pytest.raises(ValueError, match=r"\w"):
        PlacementRequest(**({"atoms": ATOMS, "stages_max": 3} | nonsense))
