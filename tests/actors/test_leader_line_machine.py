"""Whom a gateway asks: the machine alone, by examples and by random histories."""

import random

import pytest
from flexpipe.actors.cluster.leader_line_machine import (
    Attach,
    Call,
    HangUp,
    LeaderHeard,
    LeaderLineMachine,
    LineEnded,
    LineLimits,
    LineState,
    RefusalCame,
    RefuseTerm,
    SetTimer,
    TimerFired,
    WelcomeCame,
)
from flexpipe.actors.cluster.leader_source import LeaderAt
from flexpipe.actors.transitions import IllegalTransitionError

LIMITS = LineLimits(retry_s=0.1, refused_retry_s=1.0)


def attached(term=3, address="a"):
    machine = LeaderLineMachine(LIMITS)
    machine.handle(LeaderHeard(LeaderAt(address, term)))
    machine.handle(WelcomeCame(1, term))
    return machine


def test_who_is_said_to_lead_is_called_and_told_the_highest_term():
    machine = LeaderLineMachine(LIMITS)
    assert machine.handle(LeaderHeard(LeaderAt("a", 3))) == [Call(1, LeaderAt("a", 3), 3)]
    assert machine.reason == "the leader at a has not answered yet"
    assert machine.handle(WelcomeCame(1, 3)) == [Attach(1, 3)]
    assert machine.reason == ""


def test_a_line_that_ends_is_tried_again_after_a_pause():
    machine = attached()
    assert machine.handle(LineEnded(1, "it fell silent")) == [SetTimer(1, 0.1)]
    assert "it fell silent" in machine.reason
    assert machine.handle(TimerFired(1)) == [Call(2, LeaderAt("a", 3), 3)]
    assert "it fell silent" in machine.reason  # until there is an answer


def test_a_refusal_is_tried_again_after_a_longer_pause():
    machine = LeaderLineMachine(LIMITS)
    machine.handle(LeaderHeard(LeaderAt("a", 3)))
    assert machine.handle(RefusalCame(1, "another model")) == [SetTimer(1, 1.0)]
    assert "another model" in machine.reason


def test_a_higher_term_is_called_at_once_and_the_line_before_is_closed():
    machine = attached()
    hang_up, call = machine.handle(LeaderHeard(LeaderAt("b", 4)))
    assert isinstance(hang_up, HangUp)
    assert call == Call(2, LeaderAt("b", 4), 4)
    assert machine.handle(LineEnded(1, "closed")) == []
    assert machine.handle(WelcomeCame(1, 3)) == []


def test_a_lower_term_is_refused_by_name_and_changes_nothing():
    machine = attached()
    assert machine.handle(LeaderHeard(LeaderAt("b", 2))) == [RefuseTerm("b", 2, 3)]
    assert machine.state is LineState.ATTACHED


def test_a_welcome_of_a_lower_term_is_refused_by_name():
    machine = attached(term=3)
    machine.handle(LeaderHeard(LeaderAt("b", 4)))
    refusal, hang_up, timer = machine.handle(WelcomeCame(2, 3))
    assert refusal == RefuseTerm("b", 3, 4)
    assert hang_up.call == 2
    assert timer == SetTimer(2, 0.1)


def test_a_welcome_of_a_higher_term_than_was_heard_of_is_believed():
    machine = LeaderLineMachine(LIMITS)
    machine.handle(LeaderHeard(LeaderAt("a", 3)))
    assert machine.handle(WelcomeCame(1, 5)) == [Attach(1, 5)]
    assert machine.handle(LeaderHeard(LeaderAt("b", 4))) == [RefuseTerm("b", 4, 5)]


@pytest.mark.parametrize("heard", [LeaderAt("a", 3), LeaderAt("a")])
def test_the_same_leader_again_is_no_news(heard):
    assert attached().handle(LeaderHeard(heard)) == []


def test_another_term_of_the_same_daemon_is_a_new_leader():
    assert [type(one) for one in attached().handle(LeaderHeard(LeaderAt("a", 4)))] == [HangUp, Call]


def test_a_second_welcome_is_illegal_and_changes_nothing():
    machine = attached()
    with pytest.raises(IllegalTransitionError, match="welcome came while it was attached"):
        machine.handle(WelcomeCame(1, 3))
    assert machine.state is LineState.ATTACHED


class History:
    """What a gateway's lines and timers come to as the machine's instructions are carried out."""

    def __init__(self):
        self.machine = LeaderLineMachine(LIMITS)
        self.lines = {}
        self.terms = []
        self.timers = []

    def tell(self, event):
        for one in self.machine.handle(event):
            match one:
                case Call(call):
                    self.lines[call] = "called"
                case HangUp(call):
                    del self.lines[call]
                case Attach(call, term):
                    assert self.lines[call] == "called"
                    self.lines[call] = "attached"
                    self.terms.append(term)
                case SetTimer(call):
                    self.timers.append(call)
        assert len(self.lines) <= 1
        assert (self.machine.reason == "") == ("attached" in self.lines.values())

    def step(self, chance):
        """Something that may happen now."""
        call = next(iter(self.lines), None)
        may = [LeaderHeard(LeaderAt(chance.choice("abc"), chance.randrange(8)))]
        if call is not None:
            may.append(LineEnded(call, "lost"))
        if self.lines.get(call) == "called":
            may += [WelcomeCame(call, chance.randrange(8)), RefusalCame(call, "no")]
        if self.timers:
            may.append(TimerFired(self.timers[0]))
        event = chance.choice(may)
        if isinstance(event, LineEnded | RefusalCame):
            del self.lines[call]
        if isinstance(event, TimerFired):
            del self.timers[0]
        self.tell(event)


@pytest.mark.parametrize("seed", range(200))
def test_in_any_history_terms_ascend_and_one_line_is_open(seed):
    chance, history = random.Random(seed), History()
    for _ in range(60):
        history.step(chance)
    assert history.terms == sorted(history.terms)
