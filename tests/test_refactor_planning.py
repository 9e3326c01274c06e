"""From a user's wish to stages at workers: every kind of wish, devices and threads, and refusals in one sentence."""

import pytest
from flexpipe import device_supply
from flexpipe.actors.refactor import RefactorRefusedError, RefactorRequest, SameShapeRefusedError
from flexpipe.actors.route import Route, StagePlacement
from flexpipe.device_supply import HostDevices
from flexpipe.planning import costs_under
from flexpipe.policies.types import AtomCost
from flexpipe.refactor_planning import RefactorPlanner
from flexpipe.runtime.costing.costs import StepLoad
from flexpipe.runtime.costing.device_rates import STATED_RATES
from tiny_models import captured


def atom(name, *layers, kv=0, weight=100):
    return AtomCost(name, 1_000_000, weight, kv, 8, layers)


def layer(number):
    return atom(f"layers.{number}.attention", number, kv=4), atom(f"layers.{number}.mlp", number)


MODEL = (atom("embed"), *(half for number in range(6) for half in layer(number)), atom("head"))
"""14 atoms: layer l is atoms 2l + 1 and 2l + 2."""


@pytest.fixture(autouse=True)
def gpus(monkeypatch):
    """The driver's answer: this node has two GPUs."""
    monkeypatch.setattr(device_supply, "cuda_devices", lambda: 2)


def serving(*cuts, kind="cpu"):
    bounds = [0, *cuts, len(MODEL)]
    return Route(5, tuple(StagePlacement(w, bounds[w], bounds[w + 1], f"{kind}:{w}", 3) for w in range(len(cuts) + 1)))


def plan(route, devices=None, threads=None, cores=8, model=MODEL, live_tokens=0, taken=(), next_worker=20, **wish):
    planner = RefactorPlanner(model, HostDevices(devices, threads, cores))
    return planner.plan(
        RefactorRequest(**wish), route, next_worker=next_worker, live_tokens=live_tokens, taken_devices=taken
    )


def shape(stages):
    return [(stage.worker, stage.first_atom, stage.end_atom, stage.device) for stage in stages]


@pytest.mark.parametrize(
    ("route", "wish", "after"),
    [
        (serving(), {"stages": 2}, [(0, 0, 7, "cpu:0"), (20, 7, 14, "cpu:1")]),
        (serving(7), {"stages": 1}, [(0, 0, 14, "cpu:0")]),
        (serving(3), {"stages": 2}, [(0, 0, 7, "cpu:0"), (1, 7, 14, "cpu:1")]),
        (serving(7), {"partition": "1,5"}, [(0, 0, 3, "cpu:0"), (1, 3, 14, "cpu:1")]),
        (serving(7), {"partition": "0:2,2:14"}, [(0, 0, 2, "cpu:0"), (1, 2, 14, "cpu:1")]),
        (serving(7), {"move": "3-5:cpu:9"}, [(0, 0, 7, "cpu:0"), (20, 7, 14, "cpu:9")]),
        (serving(7), {"move": "2:cpu:1"}, [(0, 0, 5, "cpu:0"), (1, 5, 14, "cpu:1")]),
        (serving(), {"move": "1-2:cuda:1"}, [(20, 0, 3, "cpu:1"), (21, 3, 7, "cuda:1"), (0, 7, 14, "cpu:0")]),
    ],
)
def test_a_wish_becomes_stages_at_workers(route, wish, after):
    stages = plan(route, **wish)
    assert shape(stages) == after
    Route(6, stages).check(len(MODEL))
    assert all((s.first_name, s.last_name) == (MODEL[s.first_atom].name, MODEL[s.end_atom - 1].name) for s in stages)


def test_live_kv_counts_for_what_it_weighs():
    model = (atom("layers.0.attention", 0, kv=4), *(atom(f"layers.0.mlp.{part}", 0, weight=110) for part in range(2)))
    route = Route(1, (StagePlacement(0, 0, 1, "cpu:0", 1), StagePlacement(1, 1, 3, "cpu:1", 1)))
    assert shape(plan(route, model=model, stages=1)) == [(1, 0, 3, "cpu:1")]
    assert shape(plan(route, model=model, stages=1, live_tokens=1000)) == [(0, 0, 3, "cpu:0")]


def test_workers_share_the_cores_unless_the_user_said_how_many_threads():
    assert [stage.threads for stage in plan(serving(7), stages=4)] == [2, 2, 2, 2]
    assert [stage.threads for stage in plan(serving(), stages=2)] == [4, 4]
    assert [stage.threads for stage in plan(serving(), stages=2, cores=1)] == [1, 1]
    assert [stage.threads for stage in plan(serving(), stages=2, threads=5)] == [5, 5]


def test_new_stages_go_to_the_kind_of_device_that_serves():
    assert shape(plan(serving(kind="cuda"), stages=2))[1] == (20, 7, 14, "cuda:1")
    assert shape(plan(serving(kind="cuda"), move="3-5:cpu:0"))[1] == (20, 7, 14, "cpu:0")
    with pytest.raises(RefactorRefusedError, match="3 stages need 3 devices, 1 more than are here"):
        plan(serving(kind="cuda"), stages=3)


def test_only_devices_that_were_named_are_used():
    assert shape(plan(serving(), devices="cpu:3", stages=3))[2][3] == "cpu:2"
    with pytest.raises(
        RefactorRefusedError, match="4 stages need 4 devices, 1 more than are here: cpu:0, cpu:1, cpu:2"
    ):
        plan(serving(), devices="cpu:3", stages=4)
    with pytest.raises(RefactorRefusedError, match="there is no device cpu:3 here; there are cpu:0, cpu:1, cpu:2"):
        plan(serving(), devices="cpu:3", move="2:cpu:3")


def test_a_device_of_a_worker_that_is_leaving_is_not_taken():
    assert shape(plan(serving(), stages=2, taken=["cpu:1"]))[1][3] == "cpu:2"


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({}, "give exactly one of stages, partition and move"),
        ({"stages": 3, "move": "2:cpu:3"}, "give exactly one of stages, partition and move"),
        ({"replicas": 2}, "give exactly one of stages, partition and move"),
        ({"stages": 0}, "0 stages cannot serve; ask for 1 or more"),
        ({"stages": -1}, "-1 stages cannot serve"),
        ({"stages": 15}, "15 stages need 14 cuts, but the model can be cut at 13 places; ask for at most 14"),
        ({"stages": 10**12}, "ask for at most 14"),
        ({"stages": 2}, "the pipeline already has this shape; nothing was changed"),
        ({"partition": "3,3"}, "the pipeline already has this shape"),
        ({"partition": "3,4"}, "partition 3,4 has 7 layers in 2 stages, but the model has 6"),
        ({"partition": "3,0,3"}, "each stage needs at least one"),
        ({"partition": "0:7,7:13"}, "the ranges end at atom 13, but the model has atoms 0 to 13: end at 14"),
        ({"partition": "0:7,8:14"}, "range 8:14 must begin at atom 7"),
        ({"partition": "a,b"}, "is neither layers per stage"),
        ({"partition": ""}, "is neither layers per stage"),
        ({"move": "3-9:cpu:3"}, "goes beyond the model, which has layers 0-5"),
        ({"move": "two:cpu:3"}, "is not layers and a device; write 12-17:cpu:3"),
        ({"move": "4-5:cpu:1"}, "cpu:1 already holds layers 4-5; nothing was changed"),
        ({"move": "0:cpu:1"}, "and a stage holds one run; move 0-2:cpu:1, or name a free device"),
        ({"move": "4:cuda:2"}, "there is no device cuda:2 here"),
        ({"move": "4:cpu:64"}, "there is no device cpu:64 here"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(wish, sentence):
    with pytest.raises(RefactorRefusedError, match=sentence) as refusal:
        plan(serving(7), **wish)
    assert "\n" not in str(refusal.value)


def test_a_real_models_costs_lead_to_a_route_of_all_its_atoms():
    program = captured("llama")
    atoms = costs_under(program, StepLoad.decode(8, 128), STATED_RATES["a100"])
    route = Route(1, (StagePlacement(0, 0, len(atoms), "cpu:0", 1),))
    for count in (2, 4, len(atoms), 3, 1):
        stages = plan(route, model=atoms, stages=count, next_worker=10 * route.epoch)
        route = Route(route.epoch + 1, stages)
        route.check(len(program.atoms))
        assert len(stages) == count


LARGE_AND_SMALL = "cpu:1x2000B,cpu:2x800B,cpu:2x700B"
"""The model weighs 1400 bytes, and each token of context 24."""


@pytest.mark.parametrize(
    ("cuts", "wish", "after"),
    [
        # halves of 700 fit everywhere
        ((), {"stages": 2}, [(0, 0, 7, "cpu:0"), (20, 7, 14, "cpu:1")]),
        # 1100 of the second stage fit the large device only, and the first goes to the tightest
        ((7,), {"partition": "1,5"}, [(20, 0, 3, "cpu:3"), (0, 3, 14, "cpu:0")]),
        ((3,), {"stages": 1}, [(0, 0, 14, "cpu:0")]),
    ],
)
def test_stages_go_where_their_weights_and_kv_fit(cuts, wish, after):
    assert shape(plan(serving(*cuts), devices=LARGE_AND_SMALL, **wish)) == after


def test_stages_are_cut_to_the_memory_of_their_devices_where_the_best_cuts_do_not_fit():
    assert shape(plan(serving(), devices="cpu:1x1000B,cpu:1x500B", stages=2)) == [
        (20, 0, 5, "cpu:1"),
        (0, 5, 14, "cpu:0"),
    ]


def test_more_stages_than_free_devices_are_refused_where_memories_are_stated():
    with pytest.raises(RefactorRefusedError, match="3 stages need 3 devices, and 2 are free for them"):
        plan(serving(), devices="cpu:3x2000B", stages=3, taken=("cpu:2",))


def test_kv_of_live_requests_counts_against_a_stated_memory():
    assert shape(plan(serving(), devices=LARGE_AND_SMALL, stages=2, live_tokens=8))[1][3] == "cpu:1"
    with pytest.raises(RefactorRefusedError, match="40 bytes more on devices of at least 100 bytes are needed"):
        plan(serving(), devices="cpu:2x800B", stages=2, live_tokens=10)


@pytest.mark.parametrize(
    ("devices", "wish", "sentence"),
    [
        ("cpu:1x2000B,cpu:1x300B", {"move": "3-5:cpu:1"}, r"cpu:1 \(0 MiB\); move fewer layers there"),
        ("cpu:3x800B", {"partition": "1,5"}, "stage 1 needs .* the largest device left for it is cpu:0"),
        ("cpu:3x600B", {"stages": 2}, "200 bytes more on devices"),
    ],
)
def test_a_stage_that_does_not_fit_its_device_is_refused_by_name(devices, wish, sentence):
    with pytest.raises(RefactorRefusedError, match=sentence):
        plan(serving(), devices=devices, **wish)


def test_another_replica_goes_to_devices_that_hold_it():
    assert shape(copied(serving(7), devices="cpu:2x2000B,cpu:2x500B,cpu:2x800B")) == [
        (0, 0, 7, "cpu:4"),
        (1, 7, 14, "cpu:5"),
    ]
    with pytest.raises(RefactorRefusedError, match="another replica does not fit: stage 0 needs"):
        copied(serving(7), devices="cpu:2x2000B,cpu:2x500B")


def copied(route, devices=None, cores=8, taken=None):
    taken = [stage.device for stage in route.stages] if taken is None else taken
    return RefactorPlanner(MODEL, HostDevices(devices, None, cores)).copy(route, taken_devices=taken)


@pytest.mark.parametrize(
    ("route", "after"),
    [
        (serving(7), [(0, 0, 7, "cpu:2"), (1, 7, 14, "cpu:3")]),
        (serving(kind="cuda"), [(0, 0, 14, "cuda:1")]),
    ],
)
def test_another_replica_has_the_same_cuts_on_the_first_free_devices(route, after):
    assert shape(copied(route)) == after


def test_another_replica_shares_the_cores_with_those_that_are_there():
    assert [stage.threads for stage in copied(serving(7), cores=8)] == [2, 2]


def test_a_replica_that_finds_too_few_free_devices_is_refused():
    with pytest.raises(RefactorRefusedError, match="2 stages needs as many free devices, and there are 1"):
        copied(serving(7), devices="cpu:3")
    with pytest.raises(RefactorRefusedError, match="there are 0"):
        copied(serving(kind="cuda"), taken=["cuda:0", "cuda:1"])


def test_a_shape_that_is_there_already_is_refused_by_a_kind_of_its_own():
    with pytest.raises(SameShapeRefusedError):
        plan(serving(7), stages=2)
