"""What goes into the scheduler's machine and what comes out of it: events and instructions, values only."""

from __future__ import annotations

from dataclasses import dataclass

from .generation import FailureKind, GenerationRequest, TokenEvent
from .messages import Cut, StepPlan, StepResult

# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submit:
    """A gateway asks for a generation. ``request`` is a new id of ours.

    ``outputs``, None for a new request, are the tokens that another scheduler delivered of one that it had to give away: it was
    accepted there, so a full queue does not refuse it.
    """

    request: int
    spec: GenerationRequest
    outputs: tuple[int, ...] | None = None

    @property
    def tokens(self) -> list[int]:
        """Prompt + outputs so far."""
        return [*self.spec.prompt, *(self.outputs or ())]


@dataclass(frozen=True, slots=True)
class Cancel:
    """A gateway no longer wants a request. Of an unknown one: nothing (it ended in the meantime)."""

    request: int


@dataclass(frozen=True, slots=True)
class PipelineUp:
    """The stages of ``epoch`` wait for their cut: ``depth`` of them, with ``kv_blocks`` empty blocks each."""

    epoch: int
    depth: int
    kv_blocks: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class PipelineSwitch:
    """The stages of ``epoch`` are prepared to go on from the cut where those of the epoch before stop.

    With ``reprefill`` no KV crosses: requests are begun anew once no step is under way.
    """

    epoch: int
    depth: int
    kv_blocks: int
    reprefill: bool


@dataclass(frozen=True, slots=True)
class LimitBlocks:
    """An epoch of ``blocks`` blocks is being made; None: it will not be.

    No id from there on is handed out, the requests that hold one are begun anew, and none is taken that would need more.
    """

    blocks: int | None


@dataclass(frozen=True, slots=True)
class PipelineInterrupted:
    """The pipeline is broken and will be up again: requests wait, and are begun anew from prompt + delivered tokens."""

    sentence: str


@dataclass(frozen=True, slots=True)
class PipelineDown:
    """The pipeline is gone for good, for the reason in ``sentence``: every request ends."""

    kind: FailureKind
    sentence: str


@dataclass(frozen=True, slots=True)
class StepDone:
    """The last stage's answer to a plan."""

    result: StepResult


Event = Submit | Cancel | PipelineUp | PipelineSwitch | LimitBlocks | PipelineInterrupted | PipelineDown | StepDone

# --- instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendStep:
    """Send the plan to every stage of its epoch. Answered by `StepDone`, or by the end of the pipeline for all under way."""

    plan: StepPlan


@dataclass(frozen=True, slots=True)
class SendCut:
    """Send the cut to every worker of the old and the next route, after the plans before it."""

    cut: Cut


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give a token to the request's gateway."""

    request: int
    event: TokenEvent


@dataclass(frozen=True, slots=True)
class Fail:
    """End the request with one explicit error."""

    request: int
    kind: FailureKind
    sentence: str


@dataclass(frozen=True, slots=True)
class Requeued:
    """Nothing to do but to tell: the request has lost its blocks and waits again. ``cause`` as in the event catalogue."""

    request: int
    cause: str


Instruction = SendStep | SendCut | Deliver | Fail | Requeued
