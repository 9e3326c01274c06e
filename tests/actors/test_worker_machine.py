"""The life of one worker process as its daemon sees it: every event in every state."""

import pytest
from flexpipe.actors.messages import PROTOCOL_VERSION, Hello
from flexpipe.actors.worker_machine import (
    Exited,
    LinkLost,
    ReportGone,
    ReportUp,
    Retire,
    SendDrain,
    SetTimer,
    Signal,
    TimerFired,
    WorkerLimits,
    WorkerMachine,
    WorkerState,
)
from hypothesis import given
from hypothesis import strategies as st

LIMITS = WorkerLimits(drain_s_max=30.0, terminate_s_max=2.0)
HELLO, STRANGER = Hello(7, 100, PROTOCOL_VERSION), Hello(7, 100, PROTOCOL_VERSION + 1)
LOST, LEAVE, KILL = LinkLost("silence"), Retire(kill=False, reason="drained"), Retire(kill=True, reason="dead")
TIMER, END = TimerFired(), Exited(0)
SPAWNED, UP, DRAINING, TERMINATING, KILLED, GONE = WorkerState

WAYS = {
    SPAWNED: (),
    UP: (HELLO,),
    DRAINING: (HELLO, LEAVE),
    TERMINATING: (HELLO, LEAVE, TIMER),
    KILLED: (HELLO, KILL),
    GONE: (HELLO, END),
}
FOREIGN = f"it speaks protocol {PROTOCOL_VERSION + 1}, this build speaks {PROTOCOL_VERSION}"
ENDED = ReportGone("its process ended (exit code 0)")
SIGKILL, SIGTERM = Signal(kill=True), Signal(kill=False)

STAYS, LEAVES = {SPAWNED, UP}, {DRAINING, TERMINATING, KILLED}

TABLE = [
    (SPAWNED, HELLO, UP, [ReportUp()]),
    (SPAWNED, STRANGER, KILLED, [SIGKILL, ReportGone(FOREIGN)]),
    (SPAWNED, LOST, KILLED, [SIGKILL, ReportGone("silence")]),
    (SPAWNED, LEAVE, KILLED, [SIGKILL]),
    (SPAWNED, KILL, KILLED, [SIGKILL]),
    (SPAWNED, TIMER, SPAWNED, []),
    (SPAWNED, END, GONE, [ENDED]),
    (UP, HELLO, UP, []),
    (UP, STRANGER, KILLED, [SIGKILL, ReportGone(FOREIGN)]),
    (UP, LOST, KILLED, [SIGKILL, ReportGone("silence")]),
    (UP, LEAVE, DRAINING, [SendDrain("drained"), SetTimer(30.0)]),
    (UP, KILL, KILLED, [SIGKILL]),
    (UP, TIMER, UP, []),
    (UP, END, GONE, [ENDED]),
    (DRAINING, HELLO, DRAINING, []),
    (DRAINING, STRANGER, DRAINING, []),
    (DRAINING, LOST, DRAINING, []),
    (DRAINING, LEAVE, DRAINING, []),
    (DRAINING, KILL, KILLED, [SIGKILL]),
    (DRAINING, TIMER, TERMINATING, [SIGTERM, SetTimer(2.0)]),
    (DRAINING, END, GONE, [ENDED]),
    (TERMINATING, HELLO, TERMINATING, []),
    (TERMINATING, STRANGER, TERMINATING, []),
    (TERMINATING, LOST, TERMINATING, []),
    (TERMINATING, LEAVE, TERMINATING, []),
    (TERMINATING, KILL, KILLED, [SIGKILL]),
    (TERMINATING, TIMER, KILLED, [SIGKILL]),
    (TERMINATING, END, GONE, [ENDED]),
    (KILLED, HELLO, KILLED, []),
    (KILLED, STRANGER, KILLED, []),
    (KILLED, LOST, KILLED, []),
    (KILLED, LEAVE, KILLED, []),
    (KILLED, KILL, KILLED, []),
    (KILLED, TIMER, KILLED, []),
    (KILLED, END, GONE, [ENDED]),
    *((GONE, event, GONE, []) for event in (HELLO, STRANGER, LOST, LEAVE, KILL, TIMER, END)),
]


def machine_in(state):
    machine = WorkerMachine(LIMITS)
    for event in WAYS[state]:
        machine.handle(event)
    assert machine.state is state
    return machine


@pytest.mark.parametrize(
    ("state", "event", "after", "instructions"), TABLE, ids=lambda value: getattr(value, "value", type(value).__name__)
)
def test_every_event_in_every_state(state, event, after, instructions):
    machine = machine_in(state)
    assert machine.handle(event) == instructions
    assert machine.state is after


def test_the_table_names_every_event_in_every_state_once():
    events = (HELLO, STRANGER, LOST, LEAVE, KILL, TIMER, END)
    assert sorted((state.value, repr(event)) for state, event, _, _ in TABLE) == sorted(
        (state.value, repr(event)) for state in WorkerState for event in events
    )


def test_an_end_by_a_signal_is_told_by_its_number():
    assert machine_in(UP).handle(Exited(-9)) == [ReportGone("its process ended (signal 9)")]


def test_a_condemned_worker_is_reported_gone_once_though_its_process_ends_later():
    machine = machine_in(UP)
    assert ReportGone("silence") in machine.handle(LOST)
    assert machine.handle(Exited(-9)) == []


@given(st.lists(st.sampled_from([HELLO, STRANGER, LOST, LEAVE, KILL, TIMER]), max_size=12))
def test_whatever_happens_up_comes_once_and_gone_comes_once_and_last(events):
    machine = WorkerMachine(LIMITS)
    said = [instruction for event in (*events, END, *events) for instruction in machine.handle(event)]
    reports = [instruction for instruction in said if isinstance(instruction, ReportUp | ReportGone)]
    assert sum(isinstance(report, ReportGone) for report in reports) == 1
    assert isinstance(reports[-1], ReportGone)
    assert sum(isinstance(report, ReportUp) for report in reports) <= 1


@pytest.mark.parametrize("state", WorkerState)
def test_who_starts_to_count_on_workers_learns_which_stay_and_which_were_told_to_leave(state):
    machine = WorkerMachine(LIMITS)
    for event in WAYS[state]:
        machine.handle(event)
    assert (machine.stays, machine.is_leaving) == (state in STAYS, state in LEAVES)


def test_a_worker_whose_loss_was_told_neither_stays_nor_leaves():
    machine = WorkerMachine(LIMITS)
    machine.handle(HELLO)
    machine.handle(LOST)
    assert (machine.stays, machine.is_leaving) == (False, False)
