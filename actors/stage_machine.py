"""One stage's life and the order in which it runs steps.

Rules:
 1. A stage runs the plans of its epoch in step order, one at a time, each exactly once.
 2. Behind the first stage a step starts when both its plan and its activation are here; they must name the same
    (epoch, step), and both arrive in step order, so anything else is a peer's mistake and ends the stage.
 3. A message of a past epoch is dropped by name; one of an epoch that was never announced is a peer's mistake.
 4. Drain lets the plans that are here finish; then the stage is retired and accepts nothing.
 5. No clock, no socket, no thread here: events in, instructions out. An illegal event raises and changes nothing.

    new --load--> loading --loaded--> loaded --serve--> opening --opened--> serving --drain--> draining --last step--> retired
                                        ^                                      |
                                        '---------- serve (next epoch) --------'        any but retired --drain, idle--> retired
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from ..runtime.interface import BufferView, StageFacts, StageOutput
from .messages import Activation, Drain, Load, Serve, StepPlan


class StageState(enum.Enum):
    """Where a stage is in its life."""

    NEW = "new"
    LOADING = "loading"
    LOADED = "loaded"
    OPENING = "opening"
    SERVING = "serving"
    DRAINING = "draining"
    RETIRED = "retired"


class StageProtocolError(Exception):
    """A peer sent what it must not send now; the sentence says what. The stage cannot go on; nothing was changed."""


# --- events (messages Load, Serve, Drain, StepPlan are events themselves) -----------------------------------------


@dataclass(frozen=True, slots=True)
class WeightsLoaded:
    """`StartLoading` ended well."""

    facts: StageFacts


@dataclass(frozen=True, slots=True)
class PipelineOpened:
    """`OpenPipeline` ended well: pages reserved, links open."""


@dataclass(frozen=True, slots=True)
class ActivationArrived:
    """The stage before sent a step's hidden state."""

    header: Activation
    hidden: BufferView


@dataclass(frozen=True, slots=True)
class StepRan:
    """`RunStep` ended well."""

    output: StageOutput


Event = Load | Serve | Drain | StepPlan | WeightsLoaded | PipelineOpened | ActivationArrived | StepRan

# --- instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartLoading:
    """Load weights. Answered by `WeightsLoaded`."""

    load: Load


@dataclass(frozen=True, slots=True)
class TellLoaded:
    """Tell the supervisor what the stage weighs."""

    epoch: int
    facts: StageFacts


@dataclass(frozen=True, slots=True)
class OpenPipeline:
    """Reserve pages and open the activation links of an epoch. Answered by `PipelineOpened`."""

    serve: Serve


@dataclass(frozen=True, slots=True)
class TellServing:
    """Tell the supervisor that steps are welcome."""

    epoch: int


@dataclass(frozen=True, slots=True)
class RunStep:
    """Compute one step. Answered by `StepRan`."""

    plan: StepPlan
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


Instruction = StartLoading | TellLoaded | OpenPipeline | TellServing | RunStep | Emit | DropStale | Leave

_LEGAL: dict[type, frozenset[StageState]] = {
    Load: frozenset({StageState.NEW}),
    WeightsLoaded: frozenset({StageState.LOADING, StageState.RETIRED}),
    Serve: frozenset({StageState.LOADED, StageState.SERVING}),
    PipelineOpened: frozenset({StageState.OPENING, StageState.RETIRED}),
    StepPlan: frozenset({StageState.SERVING, StageState.OPENING}),
    ActivationArrived: frozenset({StageState.SERVING, StageState.OPENING, StageState.DRAINING, StageState.RETIRED}),
    StepRan: frozenset({StageState.SERVING, StageState.DRAINING}),
    Drain: frozenset(StageState) - {StageState.RETIRED},
}
"""In which states each event may come. RETIRED tolerates what was under way when it left."""


class StageMachine:
    """See the module's rules."""

    def __init__(self) -> None:
        self.state = StageState.NEW
        self.epoch = -1
        self._has_upstream = False
        self._plans: deque[StepPlan] = deque()
        self._activations: deque[ActivationArrived] = deque()
        self._running: StepPlan | None = None
        self._drain_reason = ""

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event; raises `StageProtocolError`, with nothing changed, where it may not come now."""
        if self.state not in _LEGAL[type(event)]:
            raise StageProtocolError(f"{type(event).__name__} came while the stage was {self.state.value}")
        match event:
            case Load():
                self.state = StageState.LOADING
                self.epoch = event.epoch
                return [StartLoading(event)]
            case WeightsLoaded():
                return self._weights_loaded(event)
            case Serve():
                return self._serve(event)
            case PipelineOpened():
                return self._opened()
            case StepPlan():
                return self._planned(event)
            case ActivationArrived():
                return self._arrived(event)
            case StepRan():
                return self._ran(event)
            case Drain():
                return self._drain(event)

    @property
    def waiting_steps(self) -> int:
        """Plans that are here and not yet running."""
        return len(self._plans)

    def _weights_loaded(self, event: WeightsLoaded) -> list[Instruction]:
        if self.state is StageState.RETIRED:
            return []
        self.state = StageState.LOADED
        return [TellLoaded(self.epoch, event.facts)]

    def _serve(self, event: Serve) -> list[Instruction]:
        if event.epoch < self.epoch:
            return [DropStale("Serve", event.epoch, -1)]
        self.state = StageState.OPENING
        self.epoch = event.epoch
        self._has_upstream = bool(event.upstream)
        return [OpenPipeline(event)]

    def _opened(self) -> list[Instruction]:
        if self.state is StageState.RETIRED:
            return []
        self.state = StageState.SERVING
        return [TellServing(self.epoch), *self._next_step()]

    def _planned(self, plan: StepPlan) -> list[Instruction]:
        if plan.epoch < self.epoch:
            return [DropStale("StepPlan", plan.epoch, plan.step)]
        if plan.epoch > self.epoch:
            raise StageProtocolError(f"a plan names epoch {plan.epoch}; this stage serves epoch {self.epoch}")
        last = self._plans[-1] if self._plans else self._running
        if last is not None and plan.step <= last.step:
            raise StageProtocolError(f"step {plan.step} was planned after step {last.step}")
        if len(self._activations) > len(self._plans):
            _check_pair(plan, self._activations[len(self._plans)].header)
        self._plans.append(plan)
        return self._next_step()

    def _arrived(self, event: ActivationArrived) -> list[Instruction]:
        header = event.header
        if header.epoch < self.epoch or self.state is StageState.RETIRED:
            return [DropStale("Activation", header.epoch, header.step)]
        if header.epoch > self.epoch or not self._has_upstream:
            raise StageProtocolError(
                f"an activation names epoch {header.epoch}, step {header.step}: nobody announced it"
            )
        if len(self._plans) > len(self._activations):
            _check_pair(self._plans[len(self._activations)], header)
        self._activations.append(event)
        return self._next_step()

    def _ran(self, event: StepRan) -> list[Instruction]:
        if self._running is None:
            raise StageProtocolError("a step ended that was not running")
        emit = Emit(self._running, event.output)
        self._running = None
        return [emit, *self._next_step()]

    def _drain(self, event: Drain) -> list[Instruction]:
        self._drain_reason = event.reason
        self.state = StageState.DRAINING
        return self._next_step()

    def _next_step(self) -> list[Instruction]:
        if self.state is StageState.OPENING or self._running is not None:
            return []
        if not self._plans:
            return self._retire() if self.state is StageState.DRAINING else []
        if not self._has_upstream:
            self._running = self._plans.popleft()
            return [RunStep(self._running, None)]
        if not self._activations:
            return []
        self._running = self._plans.popleft()
        return [RunStep(self._running, self._activations.popleft().hidden)]

    def _retire(self) -> list[Instruction]:
        self.state = StageState.RETIRED
        return [Leave(self._drain_reason)]


def _check_pair(plan: StepPlan, header: Activation) -> None:
    """Both queues are in step order, so equal places must hold the same step."""
    if (plan.epoch, plan.step) != (header.epoch, header.step):
        raise StageProtocolError(
            f"the next plan is epoch {plan.epoch} step {plan.step}, the next activation epoch {header.epoch} step {header.step}"
        )
