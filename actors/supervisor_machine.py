"""The life of one pipeline's stage processes: start, load, serve, notice a death, start again, stop.

Rules:
 1. A pipeline serves an epoch only while every one of its stages serves it; the scheduler hears of each change at once.
 2. The loss of one stage (exit, silence, its own word, a broken link) takes the whole epoch down: survivors are killed,
    and when the last is gone all are started again in the next epoch, after a pause that doubles with each failure.
 3. After ``restarts_max`` failures without a served minute in between, or one that another try would only repeat (a
    stage that says it cannot load, no room for KV), the supervisor gives up and says why.
 4. Stop is a ladder: drain message → ``drain_s_max`` → SIGTERM → ``terminate_s_max`` → SIGKILL.
 5. Events of a past epoch's process change nothing. No clock here: timers are instructions, their firing is an event.

    idle --start--> starting --all serving--> serving --stop--> stopping --all gone--> stopped
                       ^  |                     |  a stage lost
                       |  '---- stage lost -----+-----> clearing --all gone--> waiting --timer--> starting
                       '---------------------------------------------------------'   or, after too many, failed
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ..policies.kv_room import NoRoomError, StageRoom, kv_blocks
from .messages import PROTOCOL_VERSION, Drain, Hello, Load, Loaded, LoadProgress, Serve, Serving, StageFailed
from .pipeline_spec import PipelineSpec, SupervisorLimits


class PipelineState(enum.Enum):
    """Where the pipeline is in its life."""

    IDLE = "idle"
    STARTING = "starting"
    SERVING = "serving"
    CLEARING = "clearing"
    WAITING = "waiting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class StagePhase(enum.Enum):
    """Where one stage process is, as the supervisor sees it."""

    SPAWNED = "starting"
    LOADING = "loading"
    LOADED = "loaded"
    OPENING = "opening"
    SERVING = "serving"
    GONE = "gone"


# --- events (Hello, LoadProgress, Loaded, Serving and StageFailed come inside `FromStageArrived`) -------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Bring the pipeline up."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Take the pipeline down gracefully, for good."""


@dataclass(frozen=True, slots=True)
class FromStageArrived:
    """A message of the stage process that was spawned for ``epoch``."""

    epoch: int
    stage: int
    message: Hello | LoadProgress | Loaded | Serving | StageFailed


@dataclass(frozen=True, slots=True)
class StageLost:
    """The link to a stage broke or fell silent."""

    epoch: int
    stage: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Exited:
    """A stage process ended. ``code`` is negative for a signal."""

    epoch: int
    stage: int
    code: int


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A `SetTimer` ran out."""

    epoch: int
    timer: str


Event = Start | Stop | FromStageArrived | StageLost | Exited | TimerFired

# --- instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process for a stage. Ends in `Exited` whatever happens."""

    epoch: int
    stage: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message to a stage."""

    stage: int
    message: Load | Serve | Drain


@dataclass(frozen=True, slots=True)
class Signal:
    """Send SIGTERM (``kill`` false) or SIGKILL to a stage's process."""

    stage: int
    kill: bool


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire `TimerFired` after ``after_s`` seconds."""

    epoch: int
    timer: str
    after_s: float


@dataclass(frozen=True, slots=True)
class AnnounceUp:
    """Tell the scheduler that the epoch serves."""

    epoch: int
    kv_blocks: int


@dataclass(frozen=True, slots=True)
class AnnounceDown:
    """Tell the scheduler that the epoch is over. ``lost`` is whether a stage was lost, rather than stopped."""

    epoch: int
    lost: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing more will happen. ``failed`` is whether the supervisor gave up."""

    failed: bool
    sentence: str


Instruction = Spawn | Tell | Signal | SetTimer | AnnounceUp | AnnounceDown | Finish


class SupervisorError(Exception):
    """An event that cannot come in this state: our bug. Nothing was changed."""


@dataclass(slots=True)
class StageRecord:
    """What is known of one stage's process."""

    phase: StagePhase = StagePhase.SPAWNED
    pid: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    kv_bytes: int = 0
    loaded: Loaded | None = None


@dataclass(slots=True)
class _Restarts:
    failures: int = 0
    steady: bool = False


class SupervisorMachine:
    """See the module's rules. ``link_address`` is a pattern with {epoch} and {stage}."""

    def __init__(self, spec: PipelineSpec, limits: SupervisorLimits, link_address: str) -> None:
        self.spec = spec
        self.limits = limits
        self.state = PipelineState.IDLE
        self.epoch = 0
        self.stages: list[StageRecord] = []
        self.reason = "the pipeline was not started"
        self.kv_blocks = 0
        self._link_address = link_address
        self._restarts = _Restarts()

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event; instructions come in the order to carry them out."""
        match event:
            case Start():
                return self._start()
            case Stop():
                return self._stop()
            case TimerFired():
                return self._timer(event) if event.epoch == self.epoch else []
            case FromStageArrived() | StageLost() | Exited() if event.epoch != self.epoch:
                return []
            case FromStageArrived():
                return self._message(event.stage, event.message)
            case StageLost():
                return self._lost(f"stage {event.stage} was lost: {event.sentence}")
            case Exited():
                return self._exited(event)

    def _start(self) -> list[Instruction]:
        if self.state not in (PipelineState.IDLE, PipelineState.WAITING):
            raise SupervisorError(f"start came while the pipeline was {self.state.value}")
        self.state = PipelineState.STARTING
        self.reason = "the pipeline is starting"
        self.epoch += 1
        self.kv_blocks = 0
        self.stages = [StageRecord() for _ in self.spec.stages]
        spawns = [Spawn(self.epoch, stage) for stage in range(len(self.stages))]
        return [*spawns, SetTimer(self.epoch, "start", self.limits.start_s_max)]

    def _message(self, stage: int, message: Hello | LoadProgress | Loaded | Serving | StageFailed) -> list[Instruction]:
        if self.state is not PipelineState.STARTING and not isinstance(message, StageFailed):
            return []  # a word of a stage that is being cleared away
        record = self.stages[stage]
        match message:
            case Hello():
                return self._hello(stage, record, message)
            case LoadProgress():
                record.done_bytes, record.total_bytes = message.done_bytes, message.total_bytes
                return []
            case Loaded():
                record.phase, record.loaded = StagePhase.LOADED, message
                return self._open() if self._all(StagePhase.LOADED) else []
            case Serving():
                record.phase, record.kv_bytes = StagePhase.SERVING, message.kv_bytes
                return self._up() if self._all(StagePhase.SERVING) else []
            case StageFailed():
                return self._stage_failed(stage, message)

    def _hello(self, stage: int, record: StageRecord, message: Hello) -> list[Instruction]:
        if message.protocol != PROTOCOL_VERSION:
            return self._hopeless(
                f"stage {stage} speaks protocol {message.protocol}, this build speaks {PROTOCOL_VERSION}"
            )
        record.phase, record.pid = StagePhase.LOADING, message.pid
        return [Tell(stage, self.spec.load_message(self.epoch, stage))]

    def _open(self) -> list[Instruction]:
        rooms = [
            StageRoom(record.loaded.memory_free_bytes, record.loaded.kv_bytes_per_block)
            for record in self.stages
            if record.loaded is not None
        ]
        try:
            self.kv_blocks = kv_blocks(rooms, self.spec.kv_blocks_max)
        except NoRoomError as error:
            return self._hopeless(str(error))
        last = len(self.stages) - 1
        instructions: list[Instruction] = []
        for stage, record in enumerate(self.stages):
            record.phase = StagePhase.OPENING
            upstream = self._link(stage) if stage > 0 else ""
            downstream = self._link(stage + 1) if stage < last else ""
            instructions.append(Tell(stage, Serve(self.epoch, self.kv_blocks, upstream, downstream)))
        return instructions

    def _stage_failed(self, stage: int, message: StageFailed) -> list[Instruction]:
        sentence = f"stage {stage} failed: {message.sentence}"
        return self._hopeless(sentence) if self.state is PipelineState.STARTING else self._lost(sentence)

    def _hopeless(self, sentence: str) -> list[Instruction]:
        """A failure that another try would only repeat: bad weights, no room."""
        self._restarts.steady = False
        self._restarts.failures = self.limits.restarts_max
        return self._lost(sentence)

    def _link(self, stage: int) -> str:
        return self._link_address.format(epoch=self.epoch, stage=stage)

    def _up(self) -> list[Instruction]:
        self.state = PipelineState.SERVING
        self.reason = ""
        return [AnnounceUp(self.epoch, self.kv_blocks), SetTimer(self.epoch, "steady", self.limits.steady_s)]

    def _all(self, phase: StagePhase) -> bool:
        return all(record.phase is phase for record in self.stages)

    def _exited(self, event: Exited) -> list[Instruction]:
        self.stages[event.stage].phase = StagePhase.GONE
        how = f"signal {-event.code}" if event.code < 0 else f"exit code {event.code}"
        lost = self._lost(f"the process of stage {event.stage} ended ({how})")
        if not self._all(StagePhase.GONE):
            return lost
        return [*lost, *self._all_gone()]

    def _lost(self, sentence: str) -> list[Instruction]:
        """A stage is no more: where the pipeline still counted on it, take the epoch down."""
        if self.state not in (PipelineState.STARTING, PipelineState.SERVING):
            return []
        self.state = PipelineState.CLEARING
        self.reason = sentence
        self._restarts.failures = 1 if self._restarts.steady else self._restarts.failures + 1
        self._restarts.steady = False
        kills = [Signal(stage, kill=True) for stage in self._alive()]
        return [AnnounceDown(self.epoch, lost=True, sentence=sentence), *kills]

    def _alive(self) -> list[int]:
        return [stage for stage, record in enumerate(self.stages) if record.phase is not StagePhase.GONE]

    def _all_gone(self) -> list[Instruction]:
        if self.state is PipelineState.STOPPING:
            self.state = PipelineState.STOPPED
            return [Finish(failed=False, sentence="every stage left")]
        if self._restarts.failures > self.limits.restarts_max:
            self.state = PipelineState.FAILED
            return [Finish(failed=True, sentence=self.reason)]
        self.state = PipelineState.WAITING
        pause = self.limits.restart_pause_s * 2 ** (self._restarts.failures - 1)
        return [SetTimer(self.epoch, "restart", pause)]

    def _stop(self) -> list[Instruction]:
        if self.state in (PipelineState.STOPPING, PipelineState.STOPPED, PipelineState.FAILED):
            return []
        alive = self._alive()
        drain = self.state is PipelineState.SERVING
        self.state = PipelineState.STOPPING
        self.reason = "the server is shutting down"
        if not alive:
            return self._all_gone()
        if not drain:
            return [Signal(stage, kill=True) for stage in alive]
        down = AnnounceDown(self.epoch, lost=False, sentence=self.reason)
        drains = [Tell(stage, Drain(self.reason)) for stage in alive]
        return [down, *drains, SetTimer(self.epoch, "drain", self.limits.drain_s_max)]

    def _timer(self, event: TimerFired) -> list[Instruction]:
        match event.timer, self.state:
            case "start", PipelineState.STARTING:
                slow = [str(s) for s, record in enumerate(self.stages) if record.phase is not StagePhase.SERVING]
                return self._lost(f"stages {', '.join(slow)} did not serve within {self.limits.start_s_max:g} s")
            case "steady", PipelineState.SERVING:
                self._restarts.steady = True
                return []
            case "restart", PipelineState.WAITING:
                return self._start()
            case "drain", PipelineState.STOPPING:
                terminate = [Signal(stage, kill=False) for stage in self._alive()]
                return [*terminate, SetTimer(self.epoch, "terminate", self.limits.terminate_s_max)]
            case "terminate", PipelineState.STOPPING:
                return [Signal(stage, kill=True) for stage in self._alive()]
            case _:
                return []
