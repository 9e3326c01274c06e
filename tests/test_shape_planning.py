"""The shapes that a model could take: placed as a refactoring would place them, with costs that follow from the atoms'."""

import pytest
from flexpipe.actors.route import Route, StagePlacement
from flexpipe.device_supply import HostDevices
from flexpipe.policies.types import AtomCost
from flexpipe.refactor_planning import RefactorPlanner
from flexpipe.shape_planning import (
    COPY_BYTES_PER_S,
    STAGE_OVERHEAD_S,
    WORKER_START_S,
    DecodeLoad,
    Running,
    ShapePlanner,
)

MIB = 2**20
ATOMS = tuple(
    AtomCost(
        f"layers.{n // 2}.{'mlp' if n % 2 else 'attention'}", 10_000_000, 50 * MIB, (1 - n % 2) * 1000, 8, (n // 2,)
    )
    for n in range(8)
)
LOAD = DecodeLoad(rows=8, prompt_weight=0.1, kv_tokens_max=100_000)
ALONE = Running((Route(1, (StagePlacement(0, 0, 8, "cpu:0", 1),)),))


def planner(stated=None, devices=4, cores=4):
    names = [f"cpu:{number}" for number in range(devices)]
    text = ",".join(f"cpu:1x{size}MiB" for size in stated) if stated else f"cpu:{devices}"
    refactoring = RefactorPlanner(ATOMS, HostDevices(text, 1, cores))
    memory = {name: size * MIB for name, size in zip(names, stated or (), strict=False)}
    return ShapePlanner(ATOMS, refactoring, LOAD, names, memory, cores)


def by_words(shapes):
    return {shape.words: shape for shape in shapes}


def test_every_other_shape_that_the_devices_allow_is_a_candidate():
    assert list(by_words(planner().candidates(ALONE))) == [
        "2 replicas of 1 stage",
        "3 replicas of 1 stage",
        "4 replicas of 1 stage",
        "2 stages",
        "2 replicas of 2 stages",
        "3 stages",
        "4 stages",
    ]


def test_capacity_grows_with_stages_as_far_as_there_are_cores_and_a_token_takes_longer_by_the_overhead():
    shapes = {1: planner().present(ALONE)} | {shape.stages: shape for shape in planner().candidates(ALONE)[3:]}
    assert shapes[1].tpot_s == pytest.approx(0.08 + STAGE_OVERHEAD_S)
    assert shapes[1].capacity_tokens_per_s == pytest.approx(8 / shapes[1].tpot_s)
    assert shapes[4].tpot_s == pytest.approx(0.08 + 4 * STAGE_OVERHEAD_S, rel=0.01)
    assert shapes[4].capacity_tokens_per_s == pytest.approx(4 * 8 / shapes[4].tpot_s)
    on_two_cores = by_words(planner(cores=2).candidates(ALONE))
    assert on_two_cores["4 stages"].capacity_tokens_per_s < on_two_cores["2 stages"].capacity_tokens_per_s
    crowded = on_two_cores["2 replicas of 2 stages"]
    assert crowded.tpot_s == pytest.approx(2 * on_two_cores["2 stages"].tpot_s, rel=0.01)


def test_what_does_not_fit_is_refused_by_name_and_what_fits_in_fragments_is_not():
    shapes = by_words(planner(stated=(600, 220, 220, 220)).candidates(ALONE))
    assert "does not fit" in shapes["2 replicas of 1 stage"].refused
    assert shapes["2 stages"].refused is None
    assert shapes["2 stages"].kv_tokens < LOAD.kv_tokens_max


def test_a_shape_that_leaves_less_of_use_for_other_stages_makes_more_fragments():
    shapes = by_words(planner(stated=(600, 220, 220, 220)).candidates(ALONE))
    assert shapes["2 stages"].fragmentation_share != 0
    assert all(shape.fragmentation_share == 0 for shape in planner().candidates(ALONE))


def test_starting_up_takes_a_worker_and_the_pages_of_what_runs():
    idle, busy = (by_words(planner().candidates(Running(ALONE.routes, tokens)))["2 stages"] for tokens in (0, 9000))
    assert idle.startup_s == WORKER_START_S
    assert idle.moved_bytes == 4 * 50 * MIB
    assert busy.moved_bytes - idle.moved_bytes == 9000 * 2000
    assert busy.startup_s == pytest.approx(WORKER_START_S + 9000 * 2000 / COPY_BYTES_PER_S)


def test_fewer_replicas_free_devices_before_the_stages_change():
    routes = tuple(Route(1, (StagePlacement(n, 0, 8, f"cpu:{n}", 1),)) for n in range(3))
    shapes = by_words(planner().candidates(Running(routes)))
    assert shapes["4 stages"].refused is None
    assert shapes["2 replicas of 2 stages"].refused is None
    assert "1 stage" in shapes
