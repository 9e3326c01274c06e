"""What goes into a worker's `stage_machine` and what comes out of it: events and instructions, values only."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.interface import BufferView, StageFacts, StageOutput
from .messages import (
    Abort,
    Activation,
    Confirm,
    CopyTotals,
    Cut,
    Drain,
    FromStage,
    Open,
    Prepare,
    Release,
    StepPlan,
)

# --- events (messages Prepare, Open, Cut, Confirm, Release, Abort, Drain and StepPlan are events themselves) --------


@dataclass(frozen=True, slots=True)
class WeightsLoaded:
    """`StartLoading` ended well."""

    epoch: int
    facts: StageFacts


@dataclass(frozen=True, slots=True)
class EpochOpened:
    """`OpenEpoch` ended well: pages reserved, links open, and of what this worker gives away little is left to copy."""

    epoch: int
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class PagesCrossed:
    """After `CutHandoff`: this worker sent all that it gives away and has all that it was given."""

    epoch: int
    copied: CopyTotals


@dataclass(frozen=True, slots=True)
class EpochFailed:
    """`StartLoading` or `OpenEpoch` cannot end well, or a link between donor and acquirer broke."""

    epoch: int
    sentence: str


@dataclass(frozen=True, slots=True)
class ActivationArrived:
    """The stage before sent a step's hidden state."""

    header: Activation
    hidden: BufferView


@dataclass(frozen=True, slots=True)
class StepRan:
    """`RunStep` ended well."""

    output: StageOutput


@dataclass(frozen=True, slots=True)
class Dropped:
    """`KeepOnly` was done."""

    freed_bytes: int


Event = (
    Prepare
    | WeightsLoaded
    | Open
    | EpochOpened
    | Cut
    | PagesCrossed
    | EpochFailed
    | Confirm
    | Release
    | Abort
    | Dropped
    | StepPlan
    | ActivationArrived
    | StepRan
    | Drain
)

# --- instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message to the coordinator."""

    message: FromStage


@dataclass(frozen=True, slots=True)
class StartLoading:
    """Load weights. Answered by `WeightsLoaded` or `EpochFailed`."""

    prepare: Prepare


@dataclass(frozen=True, slots=True)
class OpenEpoch:
    """Reserve pages, open the links of an epoch, begin its handoff. Answered by `EpochOpened` or `EpochFailed`."""

    open: Open
    stage: int
    atoms: range


@dataclass(frozen=True, slots=True)
class CutHandoff:
    """The last step before the cut has run: hand the rest over. Answered by `PagesCrossed` or `EpochFailed`."""

    cut: Cut


@dataclass(frozen=True, slots=True)
class CloseEpochs:
    """Close links and handoff of every open epoch but ``keep``."""

    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeepOnly:
    """Let go of resident atoms outside ``atoms``, and of KV blocks from ``blocks`` on. Answered by `Dropped`."""

    atoms: range
    blocks: int


@dataclass(frozen=True, slots=True)
class ForgetPages:
    """No page that was written so far means anything any more."""


@dataclass(frozen=True, slots=True)
class RunStep:
    """Compute one step through ``atoms``. Answered by `StepRan`."""

    plan: StepPlan
    atoms: range
    hidden: BufferView | None


@dataclass(frozen=True, slots=True)
class Emit:
    """Send the step's output on: a hidden state to the next stage, or tokens to the scheduler."""

    plan: StepPlan
    output: StageOutput


@dataclass(frozen=True, slots=True)
class DropStale:
    """Log, by name, a message of a past epoch."""

    what: str
    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class Leave:
    """End the process; the reason is for the log."""

    reason: str


EpochInstruction = StartLoading | OpenEpoch | CutHandoff | CloseEpochs | KeepOnly | ForgetPages
Instruction = EpochInstruction | Tell | RunStep | Emit | DropStale | Leave
