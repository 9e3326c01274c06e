"""Whom a node obeys: every event in every state."""

import pytest
from flexpipe.actors.cluster.node_agent_machine import (
    AgentLimits,
    AgentState,
    EndWorkers,
    Leave,
    LinkLost,
    LinkUp,
    NodeAgentMachine,
    SayHello,
    Stop,
    TermHeard,
    TryAgain,
    Unlink,
)
from flexpipe.actors.cluster.node_messages import NodeRefused, NodeRelease, NodeWelcome

LIMITS = AgentLimits(retry_s=1.0, name_s_max=2.0)
AGAIN = [Unlink(), TryAgain(1.0)]


def seeking():
    return NodeAgentMachine(LIMITS)


def greeting():
    machine = seeking()
    machine.handle(LinkUp())
    return machine


def joined(term=3):
    machine = greeting()
    machine.handle(NodeWelcome("n1", term, 1))
    return machine


def left():
    machine = joined()
    machine.handle(Stop())
    return machine


def test_a_node_introduces_itself_with_the_highest_term_that_it_heard():
    machine = seeking()
    machine.handle(TermHeard(8))
    machine.handle(TermHeard(2))
    assert machine.handle(LinkUp()) == [SayHello(8)]


def test_a_welcome_makes_it_a_member():
    machine = joined()
    assert (machine.state, machine.leader, machine.term) == (AgentState.JOINED, "n1", 3)


def test_a_leader_of_a_lower_term_is_not_obeyed():
    machine = seeking()
    machine.handle(TermHeard(4))
    machine.handle(LinkUp())
    assert machine.handle(NodeWelcome("n1", 3, 1)) == AGAIN
    assert machine.state is AgentState.SEEKING


def test_losing_the_leader_ends_the_workers_and_the_node_looks_again():
    end, *rest = joined().handle(LinkLost("silence"))
    assert end == EndWorkers("the link to leader n1 was lost: silence")
    assert rest == AGAIN


def test_a_higher_term_ends_the_workers_of_the_lower_one():
    machine = joined(3)
    assert machine.handle(TermHeard(3)) == []
    end, *rest = machine.handle(TermHeard(4))
    assert isinstance(end, EndWorkers)
    assert rest == AGAIN
    assert machine.state is AgentState.SEEKING


@pytest.mark.parametrize("reason", ["version", "model"])
def test_a_refusal_that_no_other_try_mends_ends_the_node(reason):
    machine = greeting()
    instructions = machine.handle(NodeRefused(reason, "because"))
    assert instructions[1:] == [Unlink(), Leave("because", failed=True)]
    assert machine.state is AgentState.LEFT


@pytest.mark.parametrize("reason", ["term", "not-leading"])
def test_another_leader_is_looked_for(reason):
    for _ in range(20):
        assert (machine := greeting()).handle(NodeRefused(reason, "because")) == AGAIN
        assert machine.state is AgentState.SEEKING


def test_a_name_that_stays_taken_ends_the_node_and_one_that_is_free_soon_does_not():
    machine = seeking()
    for _ in range(2):
        machine.handle(LinkUp())
        assert machine.handle(NodeRefused("name", "taken")) == AGAIN
    machine.handle(LinkUp())
    assert machine.handle(NodeRefused("name", "taken"))[-1] == Leave("taken", failed=True)

    machine = greeting()
    machine.handle(NodeRefused("name", "taken"))
    machine.handle(LinkUp())
    machine.handle(NodeWelcome("n1", 1, 1))
    machine.handle(LinkLost("gone"))
    machine.handle(LinkUp())
    assert machine.handle(NodeRefused("name", "taken")) == AGAIN


def test_a_link_that_cannot_be_made_is_tried_again_without_harm():
    assert seeking().handle(LinkLost("nobody there")) == [TryAgain(1.0)]
    assert greeting().handle(LinkLost("silence")) == AGAIN


@pytest.mark.parametrize("make", [seeking, greeting, joined])
@pytest.mark.parametrize("event", [Stop(), NodeRelease("drained")])
def test_a_node_that_is_let_go_ends_its_workers_and_leaves(make, event):
    machine = make()
    end, unlink, leave = machine.handle(event)
    assert isinstance(end, EndWorkers)
    assert unlink == Unlink()
    assert not leave.failed
    assert machine.state is AgentState.LEFT


@pytest.mark.parametrize("make", [seeking, joined])
@pytest.mark.parametrize("event", [NodeWelcome("n9", 9, 1), NodeRefused("name", "late")])
def test_an_answer_that_was_not_asked_for_changes_nothing(make, event):
    machine = make()
    before = (machine.state, machine.leader, machine.term, machine.heard)
    assert machine.handle(event) == []
    assert (machine.state, machine.leader, machine.term, machine.heard) == before


@pytest.mark.parametrize(
    "event", [LinkUp(), LinkLost(""), TermHeard(9), Stop(), NodeWelcome("n", 9, 1), NodeRefused("term", "")]
)
def test_after_it_has_left_nothing_happens(event):
    machine = left()
    assert machine.handle(event) == []
    assert machine.state is AgentState.LEFT
