"""One stage's life: legal orders, illegal ones, and the pairing of plans with activations."""

import itertools

import pytest
from flexpipe.actors.messages import Activation, Drain, Load, Serve, StepPlan
from flexpipe.actors.stage_machine import (
    ActivationArrived,
    DropStale,
    Emit,
    Leave,
    OpenPipeline,
    PipelineOpened,
    RunStep,
    StageMachine,
    StageProtocolError,
    StageState,
    StartLoading,
    StepRan,
    TellLoaded,
    TellServing,
    WeightsLoaded,
)
from flexpipe.runtime.interface import BufferView, StageFacts, StageOutput

LOAD = Load(1, 0, "folder", "program", 0, 3, "cpu", 1, "float32", False, 512)
FACTS = StageFacts(100, 10, 1000, (0, 1), "modelled")
OUTPUT = StageOutput()


def plan(step, epoch=1):
    return StepPlan(epoch, step, (0,), b"", b"", b"", b"", b"", ())


def activation(step, epoch=1):
    return ActivationArrived(
        Activation(epoch, step, "float32", (1, 1)), BufferView("float32", (1, 1), memoryview(b"1234"))
    )


def serve(upstream="", epoch=1):
    return Serve(epoch, 8, upstream, "")


def serving(upstream=""):
    machine = StageMachine()
    for event in (LOAD, WeightsLoaded(FACTS), serve(upstream), PipelineOpened()):
        machine.handle(event)
    return machine


def test_a_stage_loads_opens_and_serves_in_that_order():
    machine = StageMachine()
    assert machine.handle(LOAD) == [StartLoading(LOAD)]
    assert machine.handle(WeightsLoaded(FACTS)) == [TellLoaded(1, FACTS)]
    assert machine.handle(serve()) == [OpenPipeline(serve())]
    assert machine.handle(PipelineOpened()) == [TellServing(1)]
    assert machine.state is StageState.SERVING


def test_the_first_stage_runs_a_plan_at_once_and_one_at_a_time():
    machine = serving()
    assert machine.handle(plan(1)) == [RunStep(plan(1), None)]
    assert machine.handle(plan(2)) == []
    assert machine.handle(StepRan(OUTPUT)) == [Emit(plan(1), OUTPUT), RunStep(plan(2), None)]


def merges(left, right):
    """Every way to merge two ordered lists."""
    for places in itertools.combinations(range(len(left) + len(right)), len(left)):
        ways = (iter(left), iter(right))
        yield [next(ways[place not in places]) for place in range(len(left) + len(right))]


@pytest.mark.parametrize("order", list(merges([plan(1), plan(2)], [activation(1), activation(2)])))
def test_a_later_stage_runs_a_step_once_its_plan_and_its_activation_are_here(order):
    machine, ran = serving("up"), []
    for event in order:
        for instruction in machine.handle(event):
            assert isinstance(instruction, RunStep)
            ran.append(instruction.plan.step)
            more = machine.handle(StepRan(OUTPUT))
            ran.extend(i.plan.step for i in more if isinstance(i, RunStep))
    assert ran == [1, 2]


def test_plans_that_come_while_links_open_wait_for_them():
    machine = StageMachine()
    for event in (LOAD, WeightsLoaded(FACTS), serve()):
        machine.handle(event)
    assert machine.handle(plan(1)) == []
    assert machine.handle(PipelineOpened()) == [TellServing(1), RunStep(plan(1), None)]


@pytest.mark.parametrize("first", [plan(1), activation(2)], ids=["plan first", "activation first"])
def test_a_plan_and_an_activation_of_different_steps_end_the_stage(first):
    machine = serving("up")
    machine.handle(first)
    second = activation(2) if first == plan(1) else plan(1)
    with pytest.raises(StageProtocolError, match=r"step 1.*step 2"):
        machine.handle(second)


@pytest.mark.parametrize("event", [plan(3, epoch=0), activation(3, epoch=0)], ids=["plan", "activation"])
def test_a_message_of_a_past_epoch_is_dropped_by_name(event):
    (dropped,) = serving("up").handle(event)
    assert isinstance(dropped, DropStale)
    assert (dropped.epoch, dropped.step) == (0, 3)


@pytest.mark.parametrize("event", [plan(3, epoch=2), activation(3, epoch=2)], ids=["plan", "activation"])
def test_a_message_of_an_unannounced_epoch_ends_the_stage(event):
    with pytest.raises(StageProtocolError, match="epoch 2"):
        serving("up").handle(event)


def test_a_step_that_was_planned_before_is_refused():
    machine = serving()
    machine.handle(plan(5))
    with pytest.raises(StageProtocolError, match="step 5 was planned after step 5"):
        machine.handle(plan(5))


def test_an_activation_into_the_first_stage_is_refused():
    with pytest.raises(StageProtocolError, match="nobody announced it"):
        serving().handle(activation(1))


def test_draining_lets_the_plans_that_are_here_finish():
    machine = serving()
    machine.handle(plan(1))
    machine.handle(plan(2))
    assert machine.handle(Drain("enough")) == []
    assert machine.handle(StepRan(OUTPUT)) == [Emit(plan(1), OUTPUT), RunStep(plan(2), None)]
    assert machine.handle(StepRan(OUTPUT)) == [Emit(plan(2), OUTPUT), Leave("enough")]
    assert machine.state is StageState.RETIRED


def test_an_idle_stage_leaves_at_once():
    assert serving().handle(Drain("bye")) == [Leave("bye")]


EVENTS = {
    "Load": LOAD,
    "WeightsLoaded": WeightsLoaded(FACTS),
    "Serve": serve(),
    "PipelineOpened": PipelineOpened(),
    "StepPlan": plan(9),
    "StepRan": StepRan(OUTPUT),
    "Drain": Drain("x"),
}
LEGAL = {
    StageState.NEW: {"Load", "Drain"},
    StageState.LOADING: {"WeightsLoaded", "Drain"},
    StageState.LOADED: {"Serve", "Drain"},
    StageState.OPENING: {"PipelineOpened", "StepPlan", "Drain"},
    StageState.SERVING: {"Serve", "StepPlan", "Drain"},  # StepRan only while one runs
    StageState.DRAINING: {"StepRan"},
    StageState.RETIRED: {"WeightsLoaded", "PipelineOpened"},
}
ROADS = {
    StageState.NEW: [],
    StageState.LOADING: [LOAD],
    StageState.LOADED: [LOAD, WeightsLoaded(FACTS)],
    StageState.OPENING: [LOAD, WeightsLoaded(FACTS), serve()],
    StageState.SERVING: [LOAD, WeightsLoaded(FACTS), serve(), PipelineOpened()],
    StageState.DRAINING: [LOAD, WeightsLoaded(FACTS), serve(), PipelineOpened(), plan(1), Drain("x")],
    StageState.RETIRED: [Drain("x")],
}


@pytest.mark.parametrize(("state", "name"), list(itertools.product(StageState, EVENTS)))
def test_every_event_in_every_state_is_either_legal_or_changes_nothing(state, name):
    machine = StageMachine()
    for event in ROADS[state]:
        machine.handle(event)
    assert machine.state is state
    if name in LEGAL[state] or (state is StageState.DRAINING and name == "Drain"):
        machine.handle(EVENTS[name])
        return
    before = (machine.state, machine.epoch, machine.waiting_steps)
    with pytest.raises(StageProtocolError):
        machine.handle(EVENTS[name])
    assert (machine.state, machine.epoch, machine.waiting_steps) == before
