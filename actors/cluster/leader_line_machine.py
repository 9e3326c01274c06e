"""Whom a gateway asks for tokens: it finds the leader, calls it, and turns to the next one when there is one.

Rules:
 1. A gateway believes one leader at a time, of the highest term that it has heard of; a lower one is refused by name, be it one
    that is said to lead or one that answers.
 2. Who is heard to lead in a higher term is called at once; the line to the one before is closed, whatever is under way on it.
 3. That nobody is known to lead ends no line: a leader goes on serving where only the store of terms is lost.
 4. A line that ended is tried again after ``retry_s``, a refusal after ``refused_retry_s``: somebody has to mend something.
 5. No link, no clock here: events in, instructions out. Each call has a number; what is told of an earlier one changes nothing.

    seeking --heard of a leader--> calling --welcome--> attached --line ended--> pausing --timer--> calling
                                   calling --refused, line ended--> pausing
    calling, attached, pausing --heard of a higher term--> calling
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ..transitions import Transitions
from .leader_source import LeaderAt


class LineState(enum.Enum):
    """Where a gateway stands with the leader."""

    SEEKING = "seeking"
    CALLING = "calling"
    ATTACHED = "attached"
    PAUSING = "pausing"


LINE_TRANSITIONS = Transitions(
    "a gateway's line to the leader",
    LineState.SEEKING,
    {
        **{(state, "heard of a leader"): LineState.CALLING for state in LineState},
        (LineState.CALLING, "welcome"): LineState.ATTACHED,
        (LineState.CALLING, "refused"): LineState.PAUSING,
        (LineState.CALLING, "line ended"): LineState.PAUSING,
        (LineState.ATTACHED, "line ended"): LineState.PAUSING,
        (LineState.PAUSING, "timer"): LineState.CALLING,
    },
)


@dataclass(frozen=True, slots=True)
class LineLimits:
    """Bounds, in seconds. ``greet_s_max``: how long a leader may take to answer the hello."""

    retry_s: float = 0.1
    refused_retry_s: float = 1.0
    greet_s_max: float = 3.0


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeaderHeard:
    """Somebody is said to lead."""

    leader: LeaderAt


@dataclass(frozen=True, slots=True)
class WelcomeCame:
    """The leader that was called as number ``call`` answered; it leads in ``term``."""

    call: int
    term: int


@dataclass(frozen=True, slots=True)
class RefusalCame:
    """It does not want this gateway."""

    call: int
    sentence: str


@dataclass(frozen=True, slots=True)
class LineEnded:
    """Its link is lost."""

    call: int
    sentence: str


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The pause after call number ``call`` is over."""

    call: int


Event = LeaderHeard | WelcomeCame | RefusalCame | LineEnded | TimerFired


# --- instructions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the link of ``call``; its streams are lost there."""

    call: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Call:
    """Call a leader; tell it ``term``, the highest that was heard of."""

    call: int
    leader: LeaderAt
    term: int


@dataclass(frozen=True, slots=True)
class Attach:
    """The link of ``call`` may be used."""

    call: int
    term: int


@dataclass(frozen=True, slots=True)
class RefuseTerm:
    """Say that somebody leads, or believes to, in a term that is over."""

    address: str
    term: int
    highest_term: int


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Tell `TimerFired` for ``call`` after ``after_s`` seconds."""

    call: int
    after_s: float


Instruction = HangUp | Call | Attach | RefuseTerm | SetTimer


class LeaderLineMachine:
    """See the module's rules. ``reason`` says in one sentence why there is no leader to ask, "" where there is one."""

    def __init__(self, limits: LineLimits = LineLimits()) -> None:
        self.state = LineState.SEEKING
        self.limits = limits
        self.term = 0
        self.reason = "no daemon is known to lead yet"
        self._leader: LeaderAt | None = None
        self._call = 0

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event. Raises `IllegalTransitionError` where it cannot come, before anything changed."""
        match event:
            case LeaderHeard(leader):
                return self._heard(leader)
            case WelcomeCame(call, term) if call == self._call:
                return self._welcome(term)
            case RefusalCame(call, sentence) if call == self._call:
                return self._pause("refused", sentence, self.limits.refused_retry_s)
            case LineEnded(call, sentence) if call == self._call:
                return self._pause("line ended", sentence, self.limits.retry_s)
            case TimerFired(call) if call == self._call:
                return self._ring("timer")
        return []

    def _heard(self, leader: LeaderAt) -> list[Instruction]:
        if leader.term and leader.term < self.term:
            return [RefuseTerm(leader.address, leader.term, self.term)]
        before, self.term = self._leader, max(self.term, leader.term)
        if before is not None and leader.address == before.address and (not before.term or leader.term <= before.term):
            self._leader = LeaderAt(before.address, max(before.term, leader.term))
            return []
        self._leader = leader
        ended: list[Instruction] = []
        if self.state in (LineState.CALLING, LineState.ATTACHED):
            ended = [HangUp(self._call, f"{leader.address} leads now, in term {leader.term}")]
        return [*ended, *self._ring("heard of a leader")]

    def _ring(self, cause: str) -> list[Instruction]:
        assert self._leader is not None
        self.state = LINE_TRANSITIONS.after(self.state, cause)
        self._call += 1
        if cause != "timer":
            self.reason = f"the leader at {self._leader.address} has not answered yet"
        return [Call(self._call, self._leader, self.term)]

    def _welcome(self, term: int) -> list[Instruction]:
        assert self._leader is not None
        after = LINE_TRANSITIONS.after(self.state, "welcome")
        if term < self.term:
            refusal = RefuseTerm(self._leader.address, term, self.term)
            sentence = f"{self._leader.address} believes to lead in term {term}, and term {self.term} has begun"
            paused = self._pause("refused", sentence, self.limits.retry_s)
            return [refusal, HangUp(self._call, sentence), *paused]
        self.state = after
        self.term = term
        self._leader = LeaderAt(self._leader.address, term)
        self.reason = ""
        return [Attach(self._call, term)]

    def _pause(self, cause: str, sentence: str, after_s: float) -> list[Instruction]:
        assert self._leader is not None
        self.state = LINE_TRANSITIONS.after(self.state, cause)
        self.reason = f"the leader at {self._leader.address} does not answer: {sentence}"
        return [SetTimer(self._call, after_s)]
