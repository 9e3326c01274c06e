"""The life of one worker process as its daemon sees it.

Rules:
 1. Whoever counts on the worker hears once that it is up and once that it is gone, whatever broke first.
 2. A worker whose link broke or fell silent, or that speaks another protocol, is killed: nobody knows what it still does.
 3. Leaving is a ladder: drain message → ``drain_s_max`` → SIGTERM → ``terminate_s_max`` → SIGKILL.
 4. No process, no socket, no clock here: events in, instructions out.

    spawned --hello--> up --retire--> draining --timer--> terminating --timer--> killed --exit--> gone
       '------- link lost, wrong protocol, retire at once: killed --------------------^
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .messages import PROTOCOL_VERSION, Hello
from .transitions import Transitions


class WorkerState(enum.Enum):
    """Where a worker process is in its life."""

    SPAWNED = "starting"
    UP = "up"
    DRAINING = "draining"
    TERMINATING = "terminating"
    KILLED = "killed"
    GONE = "gone"


WORKER_TRANSITIONS = Transitions(
    "a worker process",
    WorkerState.SPAWNED,
    {
        (WorkerState.SPAWNED, "hello"): WorkerState.UP,
        (WorkerState.UP, "retire"): WorkerState.DRAINING,
        (WorkerState.DRAINING, "timer"): WorkerState.TERMINATING,
        (WorkerState.TERMINATING, "timer"): WorkerState.KILLED,
        **{(state, "link lost"): WorkerState.KILLED for state in (WorkerState.SPAWNED, WorkerState.UP)},
        **{
            (state, "retire at once"): WorkerState.KILLED
            for state in (WorkerState.SPAWNED, WorkerState.UP, WorkerState.DRAINING, WorkerState.TERMINATING)
        },
        **{(state, "exit"): WorkerState.GONE for state in WorkerState if state is not WorkerState.GONE},
    },
)


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How long each step of the ladder may take."""

    drain_s_max: float = 30.0
    terminate_s_max: float = 2.0


# --- events (message Hello is one itself) ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The control link broke, fell silent, or carried garbage."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended. ``code`` is negative for a signal."""

    code: int


@dataclass(frozen=True, slots=True)
class Retire:
    """It is not needed any more; ``kill`` is whether it goes without a word."""

    kill: bool
    reason: str


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The last `SetTimer` ran out."""


Event = Hello | LinkLost | Exited | Retire | TimerFired

# --- instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendDrain:
    """Ask the worker to finish and leave."""

    reason: str


@dataclass(frozen=True, slots=True)
class Signal:
    """SIGTERM (``kill`` false) or SIGKILL."""

    kill: bool


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire `TimerFired` after ``after_s`` seconds, unless the process ends before."""

    after_s: float


@dataclass(frozen=True, slots=True)
class ReportUp:
    """It said hello."""


@dataclass(frozen=True, slots=True)
class ReportGone:
    """It is gone, or as good as gone."""

    sentence: str


Instruction = SendDrain | Signal | SetTimer | ReportUp | ReportGone


class WorkerMachine:
    """See the module's rules."""

    def __init__(self, limits: WorkerLimits) -> None:
        self.state = WorkerState.SPAWNED
        self._limits = limits
        self._reported_gone = False

    @property
    def stays(self) -> bool:
        """Whether somebody may count on it."""
        return self.state in (WorkerState.SPAWNED, WorkerState.UP)

    @property
    def is_leaving(self) -> bool:
        """Whether it was told to leave, and its end has not been reported."""
        return not self.stays and not self._reported_gone

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event. What comes after the end changes nothing."""
        if self.state is WorkerState.GONE:
            return []
        match event:
            case Hello():
                return self._hello(event)
            case LinkLost():
                return self._condemn(event.sentence)
            case Exited():
                self._go("exit")
                how = f"signal {-event.code}" if event.code < 0 else f"exit code {event.code}"
                return self._gone(f"its process ended ({how})")
            case Retire():
                return self._retire(event)
            case TimerFired():
                return self._next_rung()

    def _hello(self, event: Hello) -> list[Instruction]:
        if event.protocol != PROTOCOL_VERSION:
            return self._condemn(f"it speaks protocol {event.protocol}, this build speaks {PROTOCOL_VERSION}")
        if self.state is not WorkerState.SPAWNED:
            return []
        self._go("hello")
        return [ReportUp()]

    def _retire(self, event: Retire) -> list[Instruction]:
        if self.state is WorkerState.KILLED:
            return []
        if event.kill or self.state is WorkerState.SPAWNED:
            self._go("retire at once")
            return [Signal(kill=True)]
        if self.state is not WorkerState.UP:
            return []
        self._go("retire")
        return [SendDrain(event.reason), SetTimer(self._limits.drain_s_max)]

    def _next_rung(self) -> list[Instruction]:
        match self.state:
            case WorkerState.DRAINING:
                self._go("timer")
                return [Signal(kill=False), SetTimer(self._limits.terminate_s_max)]
            case WorkerState.TERMINATING:
                self._go("timer")
                return [Signal(kill=True)]
            case _:
                return []

    def _condemn(self, sentence: str) -> list[Instruction]:
        """Kill it, unless it is leaving anyway: then its link may well end first."""
        if self.state in (WorkerState.DRAINING, WorkerState.TERMINATING, WorkerState.KILLED):
            return []
        self._go("link lost")
        return [Signal(kill=True), *self._gone(sentence)]

    def _go(self, cause: str) -> None:
        self.state = WORKER_TRANSITIONS.after(self.state, cause)

    def _gone(self, sentence: str) -> list[Instruction]:
        if self._reported_gone:
            return []
        self._reported_gone = True
        return [ReportGone(sentence)]
