"""The life of a pipeline's processes: start, serve, lose one, start again, give up, stop."""

import pytest
from flexpipe.actors.messages import (
    PROTOCOL_VERSION,
    Drain,
    Hello,
    Load,
    Loaded,
    LoadProgress,
    Serve,
    Serving,
    StageFailed,
)
from flexpipe.actors.pipeline_spec import PipelineSpec, StagePlan, SupervisorLimits
from flexpipe.actors.supervisor_machine import (
    AnnounceDown,
    AnnounceUp,
    Exited,
    Finish,
    FromStageArrived,
    PipelineState,
    SetTimer,
    Signal,
    Spawn,
    StageLost,
    Start,
    Stop,
    SupervisorError,
    SupervisorMachine,
    Tell,
    TimerFired,
)

STAGES = 3


def make(**limits):
    stages = tuple(StagePlan(i, i + 1, f"layers.{i}", f"layers.{i}", "cpu", 1) for i in range(STAGES))
    spec = PipelineSpec("folder", "program", stages, "float32", False, 512, kv_blocks_max=100, context_tokens=512)
    return SupervisorMachine(spec, SupervisorLimits(**limits), "ipc:///x/{epoch}-{stage}")


def from_stage(machine, stage, message):
    return machine.handle(FromStageArrived(machine.epoch, stage, message))


def loaded(machine, stage, free=1 << 20, per_block=1024):
    return from_stage(machine, stage, Loaded(machine.epoch, stage, 5, per_block, free, (stage,), "modelled"))


def bring_up(machine):
    for stage in range(STAGES):
        from_stage(machine, stage, Hello(stage, 100 + stage, PROTOCOL_VERSION))
    for stage in range(STAGES):
        loaded(machine, stage)
    return [i for stage in range(STAGES) for i in from_stage(machine, stage, Serving(machine.epoch, stage, 7))]


def serving(**limits):
    machine = make(**limits)
    machine.handle(Start())
    bring_up(machine)
    return machine


def everyone_exits(machine, code=-9):
    return [i for stage in range(STAGES) for i in machine.handle(Exited(machine.epoch, stage, code))]


def test_start_spawns_every_stage_and_sets_a_bound_on_the_start():
    machine = make(start_s_max=9)
    assert machine.handle(Start()) == [*(Spawn(1, stage) for stage in range(STAGES)), SetTimer(1, "start", 9)]


def test_each_stage_is_told_what_to_load_when_it_says_hello():
    machine = make()
    machine.handle(Start())
    (tell,) = from_stage(machine, 1, Hello(1, 42, PROTOCOL_VERSION))
    assert isinstance(tell, Tell)
    assert isinstance(tell.message, Load)
    assert (tell.stage, tell.message.first_atom, tell.message.end_atom) == (1, 1, 2)
    assert machine.stages[1].pid == 42


def test_links_open_only_when_all_are_loaded_and_join_neighbours():
    machine = make()
    machine.handle(Start())
    assert loaded(machine, 0) == loaded(machine, 1) == []
    serves = [tell.message for tell in loaded(machine, 2)]
    assert serves == [
        Serve(1, 100, "", "ipc:///x/1-1"),
        Serve(1, 100, "ipc:///x/1-1", "ipc:///x/1-2"),
        Serve(1, 100, "ipc:///x/1-2", ""),
    ]


def test_the_smallest_room_decides_how_many_blocks_all_have():
    machine = make()
    machine.handle(Start())
    loaded(machine, 0)
    loaded(machine, 1, free=10 * 1024)
    loaded(machine, 2)
    assert machine.kv_blocks == 10


def test_the_scheduler_hears_when_the_last_stage_serves():
    machine = make(steady_s=60)
    machine.handle(Start())
    assert bring_up(machine) == [AnnounceUp(1, 100), SetTimer(1, "steady", 60)]
    assert machine.state is PipelineState.SERVING


@pytest.mark.parametrize(
    "loss",
    [
        Exited(1, 1, -9),
        StageLost(1, 1, "silent for 10 s"),
        FromStageArrived(1, 1, StageFailed(1, "EngineError", "NaN logits")),
    ],
    ids=["killed", "silent", "its own word"],
)
def test_the_loss_of_one_stage_is_announced_at_once_and_the_others_are_killed(loss):
    machine = serving()
    instructions = machine.handle(loss)
    assert isinstance(instructions[0], AnnounceDown)
    assert instructions[0].lost
    assert "stage 1" in instructions[0].sentence
    killed = {i.stage for i in instructions if isinstance(i, Signal) and i.kill}
    assert {0, 2} <= killed


def test_when_all_are_gone_the_next_epoch_starts_after_a_pause():
    machine = serving(restart_pause_s=0.5)
    assert everyone_exits(machine)[-1] == SetTimer(1, "restart", 0.5)
    instructions = machine.handle(TimerFired(1, "restart"))
    assert instructions[0] == Spawn(2, 0)
    assert machine.epoch == 2


def test_the_pause_doubles_and_after_too_many_failures_the_supervisor_gives_up():
    machine = make(restarts_max=3, restart_pause_s=1)
    machine.handle(Start())
    pauses = []
    for _ in range(3):
        (*_, timer) = everyone_exits(machine, code=1)
        pauses.append(timer.after_s)
        machine.handle(TimerFired(machine.epoch, "restart"))
    assert pauses == [1, 2, 4]
    (*_, finish) = everyone_exits(machine, code=1)
    assert finish == Finish(failed=True, sentence="the process of stage 0 ended (exit code 1)")
    assert machine.state is PipelineState.FAILED


def test_a_steady_minute_forgives_earlier_failures():
    machine = serving(restarts_max=1, restart_pause_s=1)
    machine.handle(TimerFired(1, "steady"))
    for _ in range(3):
        assert everyone_exits(machine)[-1] == SetTimer(machine.epoch, "restart", 1)
        machine.handle(TimerFired(machine.epoch, "restart"))
        bring_up(machine)
        machine.handle(TimerFired(machine.epoch, "steady"))


@pytest.mark.parametrize("problem", ["weights", "room", "protocol"])
def test_what_another_try_would_only_repeat_ends_the_start(problem):
    machine = make()
    machine.handle(Start())
    if problem == "weights":
        from_stage(machine, 0, StageFailed(0, "WeightsError", "model.safetensors is cut off"))
    elif problem == "room":
        for stage in range(STAGES):
            loaded(machine, stage, free=10)
    else:
        from_stage(machine, 0, Hello(0, 1, PROTOCOL_VERSION + 1))
    (*_, finish) = everyone_exits(machine)
    assert isinstance(finish, Finish)
    assert finish.failed


def test_a_slow_start_is_a_failure_that_names_the_slow_stages():
    machine = make(start_s_max=9)
    machine.handle(Start())
    down = machine.handle(TimerFired(1, "start"))[0]
    assert down.sentence == "stages 0, 1, 2 did not serve within 9 s"


def test_stop_climbs_the_ladder():
    machine = serving(drain_s_max=30, terminate_s_max=2)
    down, *drains, timer = machine.handle(Stop())
    assert isinstance(down, AnnounceDown)
    assert not down.lost
    assert [(tell.stage, type(tell.message)) for tell in drains] == [(stage, Drain) for stage in range(STAGES)]
    assert timer == SetTimer(1, "drain", 30)
    machine.handle(Exited(1, 0, 0))
    assert machine.handle(TimerFired(1, "drain")) == [Signal(1, False), Signal(2, False), SetTimer(1, "terminate", 2)]
    machine.handle(Exited(1, 1, -15))
    assert machine.handle(TimerFired(1, "terminate")) == [Signal(2, True)]
    assert machine.handle(Exited(1, 2, -9)) == [Finish(failed=False, sentence="every stage left")]


def test_stop_while_loading_does_not_wait_for_the_load():
    machine = make()
    machine.handle(Start())
    assert machine.handle(Stop()) == [Signal(stage, True) for stage in range(STAGES)]


def test_stop_between_two_epochs_is_immediate():
    machine = serving()
    everyone_exits(machine)
    assert machine.handle(Stop()) == [Finish(failed=False, sentence="every stage left")]


def test_a_second_stop_changes_nothing():
    machine = serving()
    machine.handle(Stop())
    assert machine.handle(Stop()) == []


@pytest.mark.parametrize(
    "event",
    [
        Exited(1, 0, -9),
        StageLost(1, 0, "late"),
        TimerFired(1, "start"),
        FromStageArrived(1, 0, LoadProgress(0, 1, 2)),
    ],
)
def test_events_of_a_past_epoch_change_nothing(event):
    machine = serving()
    everyone_exits(machine)
    machine.handle(TimerFired(1, "restart"))
    assert machine.handle(event) == []
    assert machine.state is PipelineState.STARTING


def test_starting_twice_is_our_bug():
    machine = serving()
    with pytest.raises(SupervisorError):
        machine.handle(Start())
    assert machine.state is PipelineState.SERVING
