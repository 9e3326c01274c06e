"""What goes into the `coordinator_machine` and what comes out of it: events, instructions and its state, values only."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from .generation import FailureKind
from .journal import JournalRecord, JournalState
from .messages import (
    Abort,
    Aborted,
    Confirm,
    CopyProgress,
    HandoffFailed,
    Loaded,
    LoadProgress,
    Open,
    Prepare,
    Prepared,
    Release,
    Released,
    StageFailed,
    Switched,
)
from .refactor import Phase
from .route import Route, StagePlacement, Strategy
from .transitions import Transitions

ToWorker = Prepare | Open | Confirm | Release | Abort
FromWorker = (
    LoadProgress | Loaded | CopyProgress | Prepared | Switched | Released | Aborted | HandoffFailed | StageFailed
)


class CoordinatorError(Exception):
    """An event that cannot come in this state: our bug. Nothing was changed."""


class PipelineState(enum.Enum):
    """Where the pipeline is in its life."""

    IDLE = "idle"
    STARTING = "starting"
    SERVING = "serving"
    WAITING = "waiting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


_ALIVE = (PipelineState.IDLE, PipelineState.STARTING, PipelineState.SERVING, PipelineState.WAITING)
PIPELINE_TRANSITIONS = Transitions(
    "a pipeline",
    PipelineState.IDLE,
    {
        (PipelineState.IDLE, "begin"): PipelineState.STARTING,
        (PipelineState.IDLE, "took over"): PipelineState.SERVING,
        (PipelineState.IDLE, "broken"): PipelineState.WAITING,
        (PipelineState.STARTING, "cut"): PipelineState.SERVING,
        (PipelineState.STARTING, "broken"): PipelineState.WAITING,
        (PipelineState.SERVING, "broken"): PipelineState.WAITING,
        (PipelineState.SERVING, "restart"): PipelineState.STARTING,
        (PipelineState.WAITING, "begin"): PipelineState.STARTING,
        **{(state, "given up"): PipelineState.FAILED for state in _ALIVE},
        **{(state, "stop"): PipelineState.STOPPING for state in _ALIVE},
        (PipelineState.STOPPING, "all gone"): PipelineState.STOPPED,
    },
)
"""Live changes come and go while it is SERVING."""


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Bring the pipeline up, or go on where a coordinator before this one ended.

    ``journal`` is what that one wrote down, ``alive`` the workers that live, ``scheduler_epoch`` the epoch that steps are planned
    for (-1: none); ``leaving`` live too, but were told to go.
    """

    journal: JournalState
    alive: tuple[int, ...]
    scheduler_epoch: int
    leaving: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stop:
    """Take the pipeline down gracefully, for good."""


@dataclass(frozen=True, slots=True)
class Refactor:
    """Let ``stages`` serve from the next epoch on. Workers that do not live yet have ids of their own already.

    ``based_on`` is the epoch whose stages the plan was made from.
    """

    based_on: int
    stages: tuple[StagePlacement, ...]
    strategy: Strategy
    allow_preempt: bool


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A worker said hello."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A worker ended, or its link broke or fell silent (then it is being killed). Comes once for each."""

    worker: int
    sentence: str


@dataclass(frozen=True, slots=True)
class WorkerSaid:
    """A message of a worker."""

    message: FromWorker


@dataclass(frozen=True, slots=True)
class Journaled:
    """`WriteJournal` ended; ``error`` is "" where the record is safe on disk."""

    record: JournalRecord
    error: str


@dataclass(frozen=True, slots=True)
class RoomKnown:
    """Answer to `AskRoom`: ``live`` is what requests hold (see `messages.Open.live`).

    ``beyond`` requests hold a block beyond those asked about; the largest may come to need ``largest_blocks``.
    """

    epoch: int
    live: bytes
    beyond: int
    largest_blocks: int


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A `SetTimer` ran out."""

    timer: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StagesKnown:
    """Answer to `AskStages`: ``stages`` can be had now; () where none can, for the reason in ``sentence``."""

    epoch: int
    stages: tuple[StagePlacement, ...]
    sentence: str = ""


Event = Start | Stop | Refactor | WorkerUp | WorkerGone | WorkerSaid | Journaled | RoomKnown | StagesKnown | TimerFired

# --- instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpawnWorker:
    """Start a process. Ends in `WorkerGone` whatever happens."""

    placement: StagePlacement


@dataclass(frozen=True, slots=True)
class TellWorker:
    """Send a command to a worker."""

    worker: int
    message: ToWorker


@dataclass(frozen=True, slots=True)
class RetireWorker:
    """Let a worker leave: gracefully, or at once."""

    worker: int
    kill: bool
    reason: str


@dataclass(frozen=True, slots=True)
class WriteJournal:
    """Make a record durable. Answered by `Journaled`."""

    record: JournalRecord


@dataclass(frozen=True, slots=True)
class AskStages:
    """Ask what is to come up in the place of ``wanted``: the same, unless devices are gone. Answered by `StagesKnown`."""

    epoch: int
    wanted: tuple[StagePlacement, ...]
    next_worker: int


@dataclass(frozen=True, slots=True)
class AskRoom:
    """Ask the scheduler what a pipeline of so many blocks would do to its requests. Answered by `RoomKnown`."""

    epoch: int
    kv_blocks: int


@dataclass(frozen=True, slots=True)
class LimitBlocks:
    """Tell the scheduler that an epoch of ``blocks`` blocks is being made, so that it counts on no more; None: it will not be."""

    blocks: int | None


@dataclass(frozen=True, slots=True)
class BringUp:
    """Tell the scheduler that the stages of ``route`` wait for steps, with empty pages."""

    route: Route
    kv_blocks: int


@dataclass(frozen=True, slots=True)
class SwitchOver:
    """Tell the scheduler to cut over to ``route``; ``leaving`` are workers of the old route that the new one lacks."""

    route: Route
    leaving: tuple[int, ...]
    kv_blocks: int
    reprefill: bool


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Tell the scheduler that the pipeline is broken and will be up again."""

    sentence: str


@dataclass(frozen=True, slots=True)
class TakeDown:
    """Tell the scheduler that the pipeline is gone for good."""

    kind: FailureKind
    sentence: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire `TimerFired` after ``after_s`` seconds."""

    timer: str
    epoch: int
    after_s: float


@dataclass(frozen=True, slots=True)
class Begun:
    """A change entered a phase; for reports and for whoever watches."""

    epoch: int
    strategy: str
    phase: Phase


@dataclass(frozen=True, slots=True)
class Ended:
    """A change is over. ``reason`` is "" where its epoch serves, else how it failed; ``preempted`` had to be begun anew."""

    epoch: int
    reason: Literal["", "refused", "aborted", "recovered"]
    sentence: str
    preempted: int = 0


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing more will happen. ``failed`` is whether the pipeline was given up."""

    failed: bool
    sentence: str


Instruction = (
    SpawnWorker
    | TellWorker
    | RetireWorker
    | WriteJournal
    | AskStages
    | AskRoom
    | LimitBlocks
    | BringUp
    | SwitchOver
    | Interrupt
    | TakeDown
    | SetTimer
    | Begun
    | Ended
    | Finish
)
