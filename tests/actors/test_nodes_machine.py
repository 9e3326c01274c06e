"""The leader's roster of nodes: every event in every state, and refusals by name."""

import pytest
from flexpipe.actors.cluster.node_messages import (
    VERSION_HIGHEST,
    VERSION_LOWEST,
    NodeDevice,
    NodeFacts,
    NodeHello,
    NodeRefused,
    NodeRelease,
    NodeReport,
    NodeWelcome,
)
from flexpipe.actors.cluster.nodes_machine import (
    DrainAsked,
    Emptied,
    HelloCame,
    LinkEnded,
    NodeCame,
    NodeDrains,
    NodeError,
    NodeGone,
    NodesMachine,
    NodeState,
    ReportCame,
    Say,
    StepDown,
)
from flexpipe.actors.transitions import IllegalTransitionError

TERM = 4


def hello(node="n2", *, term=0, model="m", lowest=VERSION_LOWEST, highest=VERSION_HIGHEST):
    facts = NodeFacts(node, "10.0.0.2", 7710, 7719, 2, 0, 1 << 30, (NodeDevice("cpu:0"),))
    return NodeHello(facts, model, term, lowest, highest)


def machine(*nodes):
    made = NodesMachine("n1", TERM, "m")
    for link, node in enumerate(nodes):
        made.handle(HelloCame(link, node, hello(node)))
    return made


def refused(said):
    (say,) = said
    assert isinstance(say.message, NodeRefused)
    return say.message


def test_a_node_is_welcomed_to_the_term_in_the_highest_version_of_both():
    nodes = machine()
    assert nodes.handle(HelloCame(7, "n2", hello(highest=99))) == [
        Say(7, NodeWelcome("n1", TERM, VERSION_HIGHEST)),
        NodeCame("n2"),
    ]
    assert nodes.nodes["n2"].state is NodeState.HERE


@pytest.mark.parametrize(
    ("link", "peer", "said", "reason", "sentence"),
    [
        (9, "n2", hello("n2"), "name", "a node named n2 belongs to the cluster already"),
        (9, "n3", hello("n4"), "name", "calls itself n4 and has the key of n3"),
        (0, "", hello("n5"), "name", "twice on one link"),
        (9, "", hello("n3", lowest=VERSION_HIGHEST + 1, highest=VERSION_HIGHEST + 2), "version", "speaks versions"),
        (9, "", hello("n3", lowest=-2, highest=VERSION_LOWEST - 1), "version", "upgrade the older of the two"),
        (9, "", hello("n3", model="other"), "model", "has model other, the cluster serves m; give every node the same"),
    ],
)
def test_who_does_not_belong_is_refused_by_name_and_changes_nothing(link, peer, said, reason, sentence):
    nodes = machine("n2")
    refusal = refused(nodes.handle(HelloCame(link, peer, said)))
    assert refusal.reason == reason
    assert sentence in refusal.sentence
    assert list(nodes.nodes) == ["n2"]


def test_a_node_that_has_heard_of_a_higher_term_ends_this_leader():
    say, down = machine("n2").handle(HelloCame(9, "", hello("n3", term=TERM + 1)))
    assert down == StepDown(TERM + 1)
    assert say.message.reason == "term"


def test_a_node_whose_link_ended_is_gone_and_may_come_again():
    nodes = machine("n2", "n3")
    assert nodes.handle(LinkEnded(0, "silence")) == [NodeGone("n2", "silence")]
    assert nodes.handle(LinkEnded(0, "silence")) == []
    assert nodes.handle(HelloCame(5, "n2", hello("n2")))[1] == NodeCame("n2")
    assert list(nodes.nodes) == ["n3", "n2"]


def test_a_node_that_drains_is_released_once_it_is_empty_and_its_end_is_no_loss():
    nodes = machine("n2")
    assert nodes.handle(DrainAsked("n2", "maintenance")) == [NodeDrains("n2", "maintenance")]
    assert nodes.handle(DrainAsked("n2", "again")) == []
    assert nodes.handle(Emptied("n2")) == [Say(0, NodeRelease("maintenance"))]
    assert nodes.handle(LinkEnded(0, "closed")) == [NodeGone("n2", "")]


def test_a_node_that_is_lost_while_it_drains_is_a_loss():
    nodes = machine("n2")
    nodes.handle(DrainAsked("n2", "maintenance"))
    assert nodes.handle(LinkEnded(0, "silence")) == [NodeGone("n2", "silence")]


def test_a_node_that_is_not_asked_to_leave_is_not_released():
    nodes = machine("n2")
    with pytest.raises(IllegalTransitionError):
        nodes.handle(Emptied("n2"))
    assert nodes.nodes["n2"].state is NodeState.HERE


@pytest.mark.parametrize("event", [DrainAsked("n9", ""), Emptied("n9")])
def test_an_unknown_node_is_an_error_that_names_the_known(event):
    with pytest.raises(NodeError, match="no node named n9 belongs to the cluster; there are: n2, n3"):
        machine("n2", "n3").handle(event)


def test_reports_are_kept_by_link_and_those_of_strangers_are_not():
    nodes = machine("n2")
    report = NodeReport(1, 2, 3)
    assert nodes.handle(ReportCame(0, report)) == nodes.handle(ReportCame(8, NodeReport(9, 9, 9))) == []
    assert nodes.nodes["n2"].report == report
