"""Whom a node obeys: it finds the leader, joins it, and ends its workers when it has lost it.

Rules:
 1. A node obeys one leader at a time, of the highest term that it has heard of. A lower one is refused by name.
 2. Once the link to its leader is lost, its workers end at once: the leader counts them as ended, too, and KV blocks mean
    nothing without the scheduler that gave them out. Weights stay warm on the node, so new workers load fast.
 3. A refusal that another try cannot mend ends the node. A name that is taken is tried again for ``name_s_max``: it may be
    this node's own link of a moment ago, whose loss the leader has not noticed yet.
 4. No link, no process, no clock here: events in, instructions out.

    seeking --link up--> greeting --welcome--> joined --link lost--> seeking
       any --release, refused for good, stop--> left
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ..transitions import Transitions
from .node_messages import NodeRefused, NodeRelease, NodeWelcome


class AgentState(enum.Enum):
    """Where a node stands with the leader."""

    SEEKING = "seeking"
    GREETING = "greeting"
    JOINED = "joined"
    LEFT = "left"


AGENT_TRANSITIONS = Transitions(
    "a node's place in the cluster",
    AgentState.SEEKING,
    {
        (AgentState.SEEKING, "link up"): AgentState.GREETING,
        (AgentState.GREETING, "welcome"): AgentState.JOINED,
        (AgentState.GREETING, "refused"): AgentState.SEEKING,
        (AgentState.GREETING, "link lost"): AgentState.SEEKING,
        (AgentState.JOINED, "link lost"): AgentState.SEEKING,
        **{(state, "leave"): AgentState.LEFT for state in AgentState if state is not AgentState.LEFT},
    },
)


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Bounds, in seconds. ``retry_s``: between two tries to join. ``name_s_max``: so long a taken name is tried again."""

    retry_s: float = 0.25
    name_s_max: float = 5.0


# --- events (messages NodeWelcome, NodeRefused and NodeRelease are some themselves) -----------------------------------


@dataclass(frozen=True, slots=True)
class LinkUp:
    """There is a link towards whoever leads, or is said to."""


@dataclass(frozen=True, slots=True)
class LinkLost:
    """It is lost, or could not be made."""

    sentence: str


@dataclass(frozen=True, slots=True)
class TermHeard:
    """Somebody leads in ``term``."""

    term: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The daemon ends."""


Event = LinkUp | LinkLost | TermHeard | Stop | NodeWelcome | NodeRefused | NodeRelease


# --- instructions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SayHello:
    """Introduce this node, which has heard of terms up to ``term``."""

    term: int


@dataclass(frozen=True, slots=True)
class Unlink:
    """Close the link."""


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Look for the leader ``after_s`` seconds from now."""

    after_s: float


@dataclass(frozen=True, slots=True)
class EndWorkers:
    """Kill every worker of this node."""

    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The node is no part of the cluster any more. ``failed``: it never should have been, and its user must mend something."""

    reason: str
    failed: bool


Instruction = SayHello | Unlink | TryAgain | EndWorkers | Leave


class NodeAgentMachine:
    """See the module's rules."""

    def __init__(self, limits: AgentLimits = AgentLimits()) -> None:
        self.state = AgentState.SEEKING
        self.term = 0
        self.leader = ""
        self._heard = 0
        self._limits = limits
        self._name_refusals = 0

    @property
    def heard(self) -> int:
        """The highest term that this node has heard of."""
        return self._heard

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event. What comes after the node has left changes nothing."""
        if self.state is AgentState.LEFT:
            return []
        match event:
            case LinkUp():
                self._go("link up")
                return [SayHello(self._heard)]
            case LinkLost(sentence):
                return self._lost(sentence)
            case TermHeard(term):
                return self._hear(term)
            case NodeWelcome():
                return self._welcome(event)
            case NodeRefused():
                return self._refused(event)
            case NodeRelease(reason):
                return self._leave(reason, failed=False)
            case Stop():
                return self._leave("the daemon was told to stop", failed=False)

    def _welcome(self, event: NodeWelcome) -> list[Instruction]:
        if self.state is not AgentState.GREETING:
            return []
        if event.term < self._heard:
            self._go("refused")
            return [Unlink(), TryAgain(self._limits.retry_s)]
        self._go("welcome")
        self._heard = self.term = event.term
        self.leader = event.leader
        self._name_refusals = 0
        return []

    def _refused(self, event: NodeRefused) -> list[Instruction]:
        if self.state is not AgentState.GREETING:
            return []
        match event.reason:
            case "version" | "model":
                return self._leave(event.sentence, failed=True)
            case "name":
                self._name_refusals += 1
                if self._name_refusals * self._limits.retry_s > self._limits.name_s_max:
                    return self._leave(event.sentence, failed=True)
        self._go("refused")
        return [Unlink(), TryAgain(self._limits.retry_s)]

    def _lost(self, sentence: str) -> list[Instruction]:
        if self.state is AgentState.SEEKING:
            return [TryAgain(self._limits.retry_s)]
        joined = self.state is AgentState.JOINED
        self._go("link lost")
        end = [EndWorkers(f"the link to leader {self.leader} was lost: {sentence}")] if joined else []
        return [*end, Unlink(), TryAgain(self._limits.retry_s)]

    def _hear(self, term: int) -> list[Instruction]:
        self._heard = max(self._heard, term)
        if self.state is AgentState.JOINED and self._heard > self.term:
            return self._lost(f"term {self._heard} has begun")
        return []

    def _leave(self, reason: str, *, failed: bool) -> list[Instruction]:
        self._go("leave")
        return [EndWorkers(reason), Unlink(), Leave(reason, failed)]

    def _go(self, cause: str) -> None:
        self.state = AGENT_TRANSITIONS.after(self.state, cause)
