"""One worker through its epochs: legal orders, illegal ones, the pairing of plans with activations, the cut."""

import copy
import itertools

import msgspec
import pytest
from flexpipe.actors.link_place import LinkPlace
from flexpipe.actors.messages import (
    Abort,
    Aborted,
    Activation,
    Confirm,
    CopyTotals,
    Cut,
    Drain,
    HandoffFailed,
    Loaded,
    Open,
    Prepare,
    Prepared,
    Release,
    Released,
    StepPlan,
    Switched,
    Transfer,
)
from flexpipe.actors.stage_events import (
    ActivationArrived,
    CloseEpochs,
    CutHandoff,
    Dropped,
    DropStale,
    Emit,
    EpochFailed,
    EpochOpened,
    ForgetPages,
    KeepOnly,
    Leave,
    OpenEpoch,
    PagesCrossed,
    RunStep,
    StartLoading,
    StepRan,
    Tell,
    WeightsLoaded,
)
from flexpipe.actors.stage_machine import StageMachine, StageProtocolError
from flexpipe.runtime.interface import BufferView, EngineSpec, StageFacts, StageOutput

WORKER = 7
SPEC = EngineSpec("digest")
FACTS = StageFacts(100, 10, 1000, (0, 1), (8, 8), (0, 0), "modelled", "modelled")
OUTPUT = StageOutput()
NOTHING = CopyTotals()


def prepare(epoch=1, atoms=(0, 3)):
    return Prepare(epoch, 0, *atoms, SPEC)


def opened(epoch=1, upstream=None, transfers=()):
    return Open(epoch, 8, upstream, None, transfers, True, b"")


def cut(epoch=1, step=0, *, abandon=False):
    return Cut(epoch, step, b"\xff", abandon)


def plan(step, epoch=1):
    return StepPlan(epoch, step, (0,), b"", b"", b"", b"", b"", ())


def activation(step, epoch=1):
    return ActivationArrived(
        Activation(epoch, step, "float32", (1, 1)), BufferView("float32", (1, 1), memoryview(b"1234"))
    )


def transfer(donor, acquirer):
    return Transfer(donor, acquirer, LinkPlace("memory://pages"), (1,), (8,))


def told(machine, *events):
    """What the coordinator hears of the last of ``events``."""
    for event in events:
        instructions = machine.handle(event)
    return [instruction.message for instruction in instructions if isinstance(instruction, Tell)]


def prepared(machine=None, *, epoch=1, atoms=(0, 3), upstream=None, transfers=()):
    machine = machine or StageMachine(WORKER)
    told(machine, prepare(epoch, atoms), WeightsLoaded(epoch, FACTS), opened(epoch, upstream, transfers))
    told(machine, EpochOpened(epoch, 64))
    return machine


def serving(upstream=None, epoch=1, step=0):
    machine = prepared(upstream=upstream, epoch=epoch)
    told(machine, cut(epoch, step), Release(epoch), Dropped(0))
    return machine


def test_an_epoch_is_loaded_opened_voted_for_cut_to_and_released():
    machine = StageMachine(WORKER)
    assert machine.handle(prepare()) == [StartLoading(prepare())]
    assert told(machine, WeightsLoaded(1, FACTS)) == [Loaded(1, WORKER, FACTS)]
    assert machine.handle(opened()) == [OpenEpoch(opened(), 0, range(3))]
    assert told(machine, EpochOpened(1, 64)) == [Prepared(1, WORKER, 64)]
    assert told(machine, cut(step=5)) == [Switched(1, WORKER, 5, NOTHING)]
    assert machine.handle(Release(1)) == [CloseEpochs((1,)), KeepOnly(range(3), 8)]
    assert told(machine, Dropped(12)) == [Released(1, WORKER, 12)]
    assert (machine.epoch, machine.atoms) == (1, range(3))


def test_a_command_that_comes_again_is_answered_again_and_not_done_again():
    machine = StageMachine(WORKER)
    machine.handle(prepare())
    assert machine.handle(prepare()) == []
    told(machine, WeightsLoaded(1, FACTS))
    assert machine.handle(prepare()) == [Tell(Loaded(1, WORKER, FACTS))]
    machine.handle(opened())
    assert machine.handle(opened()) == []
    told(machine, EpochOpened(1, 64))
    assert machine.handle(opened()) == [Tell(Prepared(1, WORKER, 64))]
    assert machine.handle(Confirm(1)) == []
    machine.handle(cut())
    assert machine.handle(Confirm(1)) == [Tell(Switched(1, WORKER, 0, NOTHING))]
    told(machine, Release(1), Dropped(3))
    assert machine.handle(Release(1)) == [Tell(Released(1, WORKER, 3))]


def test_the_first_stage_runs_a_plan_at_once_and_one_at_a_time():
    machine = serving()
    assert machine.handle(plan(0)) == [RunStep(plan(0), range(3), None)]
    assert machine.handle(plan(1)) == []
    assert machine.handle(StepRan(OUTPUT)) == [Emit(plan(0), OUTPUT), RunStep(plan(1), range(3), None)]
    assert machine.handle(StepRan(OUTPUT)) == [Emit(plan(1), OUTPUT)]


@pytest.mark.parametrize("order", [*itertools.permutations(["plan 0", "plan 1", "activation 0", "activation 1"])])
def test_a_later_stage_runs_a_step_once_its_plan_and_its_activation_are_here(order):
    if order.index("plan 0") > order.index("plan 1") or order.index("activation 0") > order.index("activation 1"):
        return  # links keep order
    machine = serving(LinkPlace("memory://up"))
    events = {"plan 0": plan(0), "plan 1": plan(1), "activation 0": activation(0), "activation 1": activation(1)}
    ran = []
    for name in order:
        ran += [i.plan.step for i in machine.handle(events[name]) if isinstance(i, RunStep)]
    while machine.running is not None:
        ran += [i.plan.step for i in machine.handle(StepRan(OUTPUT)) if isinstance(i, RunStep)]
    assert ran == [0, 1]


@pytest.mark.parametrize("first", ["plan", "activation"])
def test_a_plan_and_an_activation_of_different_steps_end_the_worker(first):
    machine = serving(LinkPlace("memory://up"))
    events = [plan(4), activation(5)] if first == "plan" else [activation(5), plan(4)]
    machine.handle(events[0])
    with pytest.raises(StageProtocolError, match=r"step 4, the next activation epoch 1 step 5"):
        machine.handle(events[1])


def test_steps_before_the_cut_run_through_the_old_atoms_and_steps_from_it_on_through_the_new():
    machine = prepared(serving(), epoch=2, atoms=(0, 5))
    machine.handle(plan(0, 1))
    machine.handle(plan(1, 1))
    assert machine.handle(cut(2, 2)) == []
    machine.handle(plan(2, 2))
    assert machine.handle(StepRan(OUTPUT))[1] == RunStep(plan(1, 1), range(3), None)
    last = machine.handle(StepRan(OUTPUT))
    assert last[0] == Emit(plan(1, 1), OUTPUT)
    assert Tell(Switched(2, WORKER, 2, NOTHING)) in last
    assert last[-1] == RunStep(plan(2, 2), range(5), None)


def test_no_step_of_an_epoch_starts_before_the_pages_that_it_needs_are_here():
    machine = prepared(serving(), epoch=2, transfers=(transfer(3, WORKER),))
    crossing = machine.handle(cut(2, 1))
    assert crossing == [CutHandoff(cut(2, 1))]
    assert machine.handle(plan(1, 2)) == []
    copied = CopyTotals(sent_bytes=8)
    assert machine.handle(PagesCrossed(2, copied)) == [
        Tell(Switched(2, WORKER, 1, copied)),
        RunStep(plan(1, 2), range(3), None),
    ]


def test_a_worker_that_only_gives_away_opens_without_loading_and_then_serves_nothing():
    machine = serving()
    moves = (transfer(WORKER, 3),)
    assert machine.handle(opened(2, transfers=moves)) == [OpenEpoch(opened(2, transfers=moves), -1, range(0))]
    assert told(machine, EpochOpened(2, 0)) == [Prepared(2, WORKER, 0)]
    assert machine.handle(cut(2, 9)) == [CutHandoff(cut(2, 9))]
    assert told(machine, PagesCrossed(2, NOTHING)) == [Switched(2, WORKER, 9, NOTHING)]
    assert machine.atoms == range(0)
    assert machine.handle(Drain("not needed")) == [Leave("not needed")]


def test_activations_of_the_next_epoch_wait_for_its_cut():
    machine = prepared(serving(LinkPlace("memory://up")), epoch=2, upstream=LinkPlace("memory://up2"))
    assert machine.handle(activation(1, 2)) == []
    machine.handle(cut(2, 1))
    assert machine.handle(plan(1, 2)) == [RunStep(plan(1, 2), range(3), activation(1, 2).hidden)]


def test_an_abort_discards_what_was_made_and_the_old_epoch_serves_on():
    machine = prepared(serving(), epoch=2, atoms=(0, 5))
    assert machine.handle(Abort(2, "why")) == [CloseEpochs((1,)), KeepOnly(range(3), 8)]
    assert told(machine, Dropped(9)) == [Aborted(2, WORKER)]
    assert machine.handle(Abort(2, "why")) == [Tell(Aborted(2, WORKER))]
    assert machine.handle(plan(0)) == [RunStep(plan(0), range(3), None)]


def test_an_abort_keeps_the_blocks_of_the_epoch_that_serves_and_a_release_those_of_the_new_one():
    machine = serving()
    fewer = msgspec.structs.replace(opened(2), kv_blocks=3)
    told(machine, prepare(2), WeightsLoaded(2, FACTS), fewer)
    assert machine.handle(Abort(2, "why")) == [CloseEpochs((1,)), KeepOnly(range(3), 8)]
    fewer = msgspec.structs.replace(opened(3), kv_blocks=3)
    told(machine, Dropped(0), prepare(3), WeightsLoaded(3, FACTS), fewer, EpochOpened(3, 24), cut(3))
    assert machine.handle(Release(3)) == [CloseEpochs((3,)), KeepOnly(range(3), 3)]


def test_nothing_is_loaded_while_something_is_let_go_of():
    machine = serving()
    told(machine, prepare(2), EpochFailed(2, "no memory"))
    assert machine.handle(prepare(3)) == []
    assert machine.handle(prepare(3)) == []
    assert machine.handle(Dropped(9)) == [StartLoading(prepare(3))]
    assert told(machine, WeightsLoaded(3, FACTS)) == [Loaded(3, WORKER, FACTS)]


def test_a_load_that_waits_for_memory_is_given_up_with_its_epoch():
    machine = serving()
    told(machine, prepare(2), EpochFailed(2, "no memory"), prepare(3), Abort(3, "why"))
    assert machine.handle(Dropped(9)) == []
    assert machine.handle(Dropped(0)) == [Tell(Aborted(3, WORKER))]
    assert machine.handle(prepare(4)) == [StartLoading(prepare(4))]


def test_an_epoch_that_was_aborted_before_it_was_heard_of_is_not_prepared_afterwards():
    machine = serving()
    assert told(machine, Abort(2, "why")) == [Aborted(2, WORKER)]
    assert machine.handle(prepare(2)) == [DropStale("Prepare", 2, -1)]


def test_an_epoch_that_was_cut_to_is_never_aborted():
    machine = prepared(serving(), epoch=2)
    machine.handle(cut(2, 1))
    with pytest.raises(StageProtocolError, match="Abort came while epoch 2 was switched"):
        machine.handle(Abort(2, "why"))


def test_a_newer_epoch_discards_one_that_was_never_cut_to():
    machine = prepared(serving(), epoch=2)
    assert machine.handle(prepare(3)) == [CloseEpochs((1,)), StartLoading(prepare(3))]
    assert machine.handle(opened(2)) == [DropStale("Open", 2, -1)]


def test_a_failure_before_the_cut_is_told_and_told_again_and_the_old_epoch_serves_on():
    machine = serving()
    machine.handle(prepare(2, (0, 5)))
    failed = Tell(HandoffFailed(2, WORKER, "no memory"))
    assert machine.handle(EpochFailed(2, "no memory")) == [CloseEpochs((1,)), KeepOnly(range(3), 8), failed]
    machine.handle(Dropped(0))
    assert machine.handle(prepare(2, (0, 5))) == [failed]
    assert machine.handle(plan(0)) == [RunStep(plan(0), range(3), None)]


def test_weights_that_arrive_after_their_epoch_was_given_up_are_let_go():
    machine = serving()
    machine.handle(prepare(2))
    told(machine, Abort(2, "why"), Dropped(0))
    assert machine.handle(WeightsLoaded(2, FACTS)) == [KeepOnly(range(3), 8)]
    assert machine.handle(Dropped(5)) == []


def test_a_cut_that_abandons_drops_steps_that_cannot_run_any_more():
    machine = prepared(serving(LinkPlace("memory://up")), epoch=2)
    for step in (0, 1):
        assert machine.handle(plan(step)) == []
    assert machine.handle(cut(2, 2, abandon=True)) == [
        CloseEpochs((2,)),
        ForgetPages(),
        Tell(Switched(2, WORKER, 2, NOTHING)),
    ]
    assert machine.handle(plan(2, 2)) == [RunStep(plan(2, 2), range(3), None)]
    assert machine.handle(activation(0, 1)) == [DropStale("Activation", 1, 0)]


def test_a_step_that_runs_while_its_epoch_is_abandoned_sends_nothing_on():
    machine = prepared(serving(), epoch=2)
    machine.handle(plan(0))
    assert machine.handle(cut(2, 1, abandon=True)) == []
    assert not any(isinstance(instruction, Emit) for instruction in machine.handle(StepRan(OUTPUT)))
    assert machine.epoch == 2


def test_after_a_cut_that_failed_a_recovery_makes_the_next_epoch():
    machine = prepared(serving(), epoch=2, transfers=(transfer(3, WORKER),))
    machine.handle(cut(2, 1))
    assert told(machine, EpochFailed(2, "the donor is gone")) == [HandoffFailed(2, WORKER, "the donor is gone")]
    prepared(machine, epoch=3)
    assert told(machine, cut(3, 1, abandon=True)) == [Switched(3, WORKER, 1, NOTHING)]
    assert machine.handle(PagesCrossed(2, NOTHING)) == []
    assert machine.handle(plan(1, 3)) == [RunStep(plan(1, 3), range(3), None)]


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (plan(0, 2), "names epoch 2"),
        (activation(0, 2), "nobody announced"),
        (cut(2, 0), "prepared no such epoch"),
        (Release(2), "never heard of it"),
    ],
)
def test_a_message_of_an_unannounced_epoch_ends_the_worker(event, sentence):
    with pytest.raises(StageProtocolError, match=sentence):
        serving(LinkPlace("memory://up")).handle(event)


@pytest.mark.parametrize(
    ("event", "what"),
    [(plan(0), "StepPlan"), (activation(0), "Activation"), (prepare(1), "Prepare"), (Release(1), "Release")],
)
def test_a_message_of_a_past_epoch_is_dropped_by_name(event, what):
    (instruction,) = serving("memory://up", epoch=2).handle(event)
    assert isinstance(instruction, DropStale)
    assert instruction.what == what


def test_a_worker_that_only_gives_pages_runs_the_next_step_while_they_leave():
    machine = prepared(serving(), epoch=2, transfers=(transfer(WORKER, 3),))
    assert machine.handle(cut(2, 1)) == [CutHandoff(cut(2, 1))]
    assert machine.handle(plan(1, 2)) == [RunStep(plan(1, 2), range(3), None)]
    assert machine.handle(PagesCrossed(2, NOTHING)) == [Tell(Switched(2, WORKER, 1, NOTHING))]


def test_a_step_that_was_planned_before_is_refused():
    machine = serving()
    machine.handle(plan(3))
    with pytest.raises(StageProtocolError, match="step 3 was planned after step 3"):
        machine.handle(plan(3))


def test_draining_lets_the_plans_that_are_here_finish():
    machine = serving()
    machine.handle(plan(0))
    machine.handle(plan(1))
    assert machine.handle(Drain("bye")) == []
    assert machine.handle(StepRan(OUTPUT)) == [Emit(plan(0), OUTPUT), RunStep(plan(1), range(3), None)]
    assert machine.handle(StepRan(OUTPUT)) == [Emit(plan(1), OUTPUT), Leave("bye")]
    assert machine.retired


PHASES = {
    "new": lambda: StageMachine(WORKER),
    "loading": lambda: _after(prepare(2)),
    "loaded": lambda: _after(prepare(2), WeightsLoaded(2, FACTS)),
    "opening": lambda: _after(prepare(2), WeightsLoaded(2, FACTS), opened(2)),
    "prepared": lambda: prepared(serving(), epoch=2),
    "switching": lambda: _after_cut(),  # noqa: PLW0108 - defined below
    "switched": lambda: _after_cut(PagesCrossed(2, NOTHING)),
    "released": lambda: _after_cut(PagesCrossed(2, NOTHING), Release(2), Dropped(1)),
    "draining": lambda: _after(plan(0), Drain("bye")),
    "retired": lambda: _after(Drain("bye")),
}


def _after(*events):
    machine = serving()
    for event in events:
        machine.handle(event)
    return machine


def _after_cut(*events):
    machine = prepared(serving(), epoch=2, transfers=(transfer(3, WORKER),))
    for event in (cut(2, 1), *events):
        machine.handle(event)
    return machine


EVENTS = {
    "prepare": prepare(2),
    "weights": WeightsLoaded(2, FACTS),
    "open": opened(2),
    "opened": EpochOpened(2, 1),
    "cut": cut(2, 4),
    "crossed": PagesCrossed(2, NOTHING),
    "failed": EpochFailed(2, "why"),
    "confirm": Confirm(2),
    "release": Release(2),
    "abort": Abort(2, "why"),
    "plan": plan(9, 2),
    "old plan": plan(9, 1),
    "activation": activation(9, 2),
    "drain": Drain("bye"),
}


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("phase", PHASES)
def test_every_event_in_every_phase_is_either_legal_or_changes_nothing(phase, name):
    machine = PHASES[phase]()
    before = _snapshot(machine)
    try:
        machine.handle(EVENTS[name])
    except StageProtocolError:
        assert _snapshot(machine) == before


def _snapshot(machine):
    state = dict(vars(machine))
    del state["_handlers"]
    return copy.deepcopy({key: value for key, value in state.items() if key != "_droppings"})


def test_a_recovery_overtakes_a_cut_that_waits_behind_a_running_step():
    """Found by simulation, seed 9."""
    machine = prepared(serving(), epoch=2)
    machine.handle(plan(0))
    assert machine.handle(cut(2, 1)) == []
    machine.handle(plan(1, 2))
    prepared(machine, epoch=3)
    assert machine.handle(plan(2, 2)) == [DropStale("StepPlan", 2, 2)]
    assert machine.handle(cut(3, 3, abandon=True)) == []
    assert Tell(Switched(3, WORKER, 3, NOTHING)) in machine.handle(StepRan(OUTPUT))
    assert machine.handle(plan(3, 3)) == [RunStep(plan(3, 3), range(3), None)]


def test_an_epoch_whose_cut_came_is_never_aborted_even_before_its_first_step():
    machine = prepared(serving(), epoch=2)
    machine.handle(plan(0))
    machine.handle(cut(2, 1))
    with pytest.raises(StageProtocolError, match="Abort came while epoch 2 was cut"):
        machine.handle(Abort(2, "why"))
    assert machine.handle(EpochFailed(2, "a donor is gone")) == [Tell(HandoffFailed(2, WORKER, "a donor is gone"))]
