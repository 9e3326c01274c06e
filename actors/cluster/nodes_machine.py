"""The nodes of a cluster as its leader knows them: who belongs to it, who is refused, who is to leave.

Rules:
 1. A node belongs to the cluster from its welcome until its link ends. Then it is gone, with all that was on it.
 2. Refused, by name: a name that is here already, a key that is another node's, a build that speaks no version of ours, another
    model. A node that has heard of a higher term is not refused: this leader is over.
 3. A node that drains takes nothing new; once it is empty it is released, and its link's end is no loss.
 4. No link, no clock here: events in, instructions out.

    (absent) --hello--> here --drain--> draining --empty--> released --link ends--> (absent)
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from ..transitions import Transitions
from .node_messages import (
    VERSION_HIGHEST,
    VERSION_LOWEST,
    NodeFacts,
    NodeHello,
    NodeRefused,
    NodeRelease,
    NodeReport,
    NodeWelcome,
    RefusalKind,
)


class NodeState(enum.Enum):
    """Where a node is in its life with this leader."""

    HERE = "here"
    DRAINING = "draining"
    RELEASED = "released"
    GONE = "gone"


NODE_TRANSITIONS: Transitions[NodeState] = Transitions(
    "a node",
    NodeState.HERE,
    {
        (NodeState.HERE, "drain"): NodeState.DRAINING,
        (NodeState.DRAINING, "empty"): NodeState.RELEASED,
        **{(state, "link ended"): NodeState.GONE for state in NodeState if state is not NodeState.GONE},
    },
)


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HelloCame:
    """A node introduced itself on link ``link``. ``peer`` is the name that its key has, "" where there are no keys."""

    link: int
    peer: str
    hello: NodeHello


@dataclass(frozen=True, slots=True)
class ReportCame:
    """A node said how it is."""

    link: int
    report: NodeReport


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Everything is to leave a node."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Emptied:
    """Nothing is left on a node that drains."""

    node: str


@dataclass(frozen=True, slots=True)
class LinkEnded:
    """A node's link is lost, or closed by it."""

    link: int
    sentence: str


Event = HelloCame | ReportCame | DrainAsked | Emptied | LinkEnded


# --- instructions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Say:
    """Send to the node on ``link``; after a refusal the link is closed."""

    link: int
    message: NodeWelcome | NodeRefused | NodeRelease


@dataclass(frozen=True, slots=True)
class NodeCame:
    """Its devices may be used."""

    node: str


@dataclass(frozen=True, slots=True)
class NodeDrains:
    """Its devices may not be used any more, and what is on them is to be moved."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class NodeGone:
    """Everything on it has ended. ``sentence`` is "" where it was released before."""

    node: str
    sentence: str


@dataclass(frozen=True, slots=True)
class StepDown:
    """Somebody leads in a higher term."""

    term: int


Instruction = Say | NodeCame | NodeDrains | NodeGone | StepDown


class NodeError(Exception):
    """What was asked of a node cannot be; the sentence says why."""


@dataclass(slots=True)
class KnownNode:
    """A node that belongs to the cluster, and what it last said of itself."""

    link: int
    facts: NodeFacts
    version: int
    state: NodeState = NodeState.HERE
    report: NodeReport | None = None
    reason: str = ""


class NodesMachine:
    """See the module's rules. ``leader`` is the node that leads in ``term``; ``model`` is the digest of what is served."""

    def __init__(self, leader: str, term: int, model: str) -> None:
        self._leader = leader
        self._term = term
        self._model = model
        self._nodes: dict[str, KnownNode] = {}

    @property
    def nodes(self) -> Mapping[str, KnownNode]:
        """Those that belong to the cluster, by name, in the order in which they came."""
        return self._nodes

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event. Raises `NodeError`, and then nothing was changed."""
        match event:
            case HelloCame():
                return self._hello(event)
            case ReportCame(link, report):
                if (node := self._on(link)) is not None:
                    self._nodes[node].report = report
                return []
            case DrainAsked(node, reason):
                return self._drain(self._named(node), node, reason)
            case Emptied(node):
                return self._emptied(self._named(node))
            case LinkEnded(link, sentence):
                return self._ended(link, sentence)

    def _hello(self, event: HelloCame) -> list[Instruction]:
        hello, name = event.hello, event.hello.facts.node
        if hello.term > self._term:
            sentence = f"{self._leader} led in term {self._term}, which is over: term {hello.term} was heard of"
            return [Say(event.link, NodeRefused("term", sentence)), StepDown(hello.term)]
        refusal = self._refusal(event)
        if refusal is not None:
            return [Say(event.link, refusal)]
        version = min(hello.highest_version, VERSION_HIGHEST)
        self._nodes[name] = KnownNode(event.link, hello.facts, version)
        return [Say(event.link, NodeWelcome(self._leader, self._term, version)), NodeCame(name)]

    def _refusal(self, event: HelloCame) -> NodeRefused | None:
        hello, name = event.hello, event.hello.facts.node

        def refused(reason: RefusalKind, sentence: str) -> NodeRefused:
            return NodeRefused(reason, sentence)

        if event.peer and event.peer != name:
            return refused("name", f"a node calls itself {name} and has the key of {event.peer}; give it its own key")
        if self._on(event.link) is not None:
            return refused("name", f"node {name} introduced itself twice on one link")
        if name in self._nodes:
            return refused(
                "name", f"a node named {name} belongs to the cluster already; give each daemon its own --name"
            )
        if hello.lowest_version > VERSION_HIGHEST or hello.highest_version < VERSION_LOWEST:
            theirs = f"{hello.lowest_version} to {hello.highest_version}"
            return refused(
                "version",
                f"node {name} speaks versions {theirs}, the leader {VERSION_LOWEST} to {VERSION_HIGHEST}; "
                "upgrade the older of the two",
            )
        if hello.model != self._model:
            return refused(
                "model",
                f"node {name} has model {hello.model[:12]}, the cluster serves {self._model[:12]}; give every node the same "
                "weights and the same versions of torch and transformers",
            )
        return None

    def _drain(self, node: KnownNode, name: str, reason: str) -> list[Instruction]:
        if node.state is not NodeState.HERE:
            return []  # asked again
        node.state = NODE_TRANSITIONS.after(node.state, "drain")
        node.reason = reason
        return [NodeDrains(name, reason)]

    def _emptied(self, node: KnownNode) -> list[Instruction]:
        node.state = NODE_TRANSITIONS.after(node.state, "empty")
        return [Say(node.link, NodeRelease(node.reason))]

    def _ended(self, link: int, sentence: str) -> list[Instruction]:
        name = self._on(link)
        if name is None:
            return []
        node = self._nodes.pop(name)
        released = node.state is NodeState.RELEASED
        node.state = NODE_TRANSITIONS.after(node.state, "link ended")
        return [NodeGone(name, "" if released else sentence)]

    def _on(self, link: int) -> str | None:
        """The node on ``link``."""
        return next((name for name, node in self._nodes.items() if node.link == link), None)

    def _named(self, name: str) -> KnownNode:
        if name not in self._nodes:
            here = ", ".join(self._nodes) or "none"
            raise NodeError(f"no node named {name} belongs to the cluster; there are: {here}")
        return self._nodes[name]
