"""The product's actors as the world runs them: each is the real one, watched by the checks and open to faults.

They override how an actor is built and where it talks, and nothing that it decides; what is planted wrongly on purpose is in
`mutations`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from ...actors.coordinator import Coordinator
from ...actors.coordinator_events import Event as CoordinatorEvent
from ...actors.coordinator_events import FromWorker, ToWorker
from ...actors.engine_port import LoadProgressed
from ...actors.event_log import EventLog
from ...actors.generation import FailureKind
from ...actors.journal import JournalError, JournalRecord, fold
from ...actors.layer_pages import LayerPages
from ...actors.messages import FromStage, Hello, StageReport, StepResult
from ...actors.scheduler import Scheduler
from ...actors.scheduler_events import Event as SchedulerEvent
from ...actors.stage import StageActor
from ...actors.stage_events import Instruction as StageInstruction
from ...actors.worker_pool import WorkerPool
from ...runtime.interface import (
    EngineSpec,
    OutOfMemoryError,
    StageFacts,
)
from ...transport.interface import Link
from ..memory_journal import MemoryJournal
from ..modelled_engine import ModelledEngine
from .checks import Checks


class Hand(Protocol):
    """The hand that does harm, as the actors feel it."""

    def pass_on(self, message: ToWorker | FromWorker, deliver: Callable[[], None], /) -> None:
        """Let a message arrive: now, or later, or twice, or never."""
        ...

    def happened(self, kind: str, /) -> None:
        """A fault that was laid out took effect just now."""
        ...


class WorldEngine(ModelledEngine):
    """An engine that can run out of memory, damage what it gathers, and whose use of memory is watched."""

    worker = -1
    hand: Hand
    checks: Checks
    refuses_memory = False
    damages_pages = 0

    async def load(self, spec: EngineSpec, atoms: range, progress: LoadProgressed) -> StageFacts:
        """See `EnginePort`."""
        self._demand_memory()
        facts = await super().load(spec, atoms, progress)
        self.checks.engine_used(self.worker, self)
        return facts

    async def reserve(self, atoms: range, blocks: int) -> int:
        """See `EnginePort`."""
        self._demand_memory()
        try:
            reserved = await super().reserve(atoms, blocks)
        except OutOfMemoryError as error:
            self.checks.asked_too_much(self.worker, str(error))
            raise
        self.checks.engine_used(self.worker, self)
        return reserved

    async def gather_pages(self, pages: Sequence[LayerPages], out: memoryview) -> int:
        """See `EnginePort`."""
        checksum = await super().gather_pages(pages, out)
        if self.damages_pages > 0:
            self.damages_pages -= 1
            out[len(out) // 2] ^= 0x10
            self.hand.happened("corrupt-page")
        return checksum

    def _demand_memory(self) -> None:
        if self.refuses_memory:
            self.refuses_memory = False
            self.hand.happened("no-memory")
            raise OutOfMemoryError("another process took the memory of this device")


class WorldJournal(MemoryJournal):
    """A disk that the world can fill, and that tells what it was given."""

    hand: Hand
    checks: Checks

    def _append(self, record: JournalRecord) -> None:
        try:
            super()._append(record)
        except JournalError:
            self.hand.happened("disk-full")
            raise
        self.checks.journaled(fold(self.records))


class WorldStage(StageActor):
    """A worker whose every move is watched."""

    checks: Checks

    async def _perform(self, instruction: StageInstruction) -> None:
        self.checks.worker_serves(self.machine)
        await super()._perform(instruction)


class WorldPool(WorkerPool):
    """A pool between whose coordinator and workers messages get lost and come twice."""

    hand: Hand

    def tell(self, worker: int, message: ToWorker) -> None:
        """See `WorkerPool`."""
        tell = super().tell
        self.hand.pass_on(message, lambda: self._if_alive(tell, worker, message))

    def _take(self, worker: int, hold: object, message: FromStage) -> None:
        take: Callable[..., None] = super()._take
        if isinstance(message, StepResult | Hello | StageReport):
            take(worker, hold, message)
        else:
            self.hand.pass_on(message, lambda: self._if_alive(take, worker, hold, message))

    def _if_alive(self, act: Callable[..., None], *args: object) -> None:
        """What comes late may find its daemon dead."""
        assert self._nursery is not None
        if not self._nursery.cancel_scope.cancel_called:
            act(*args)


class WorldScheduler(Scheduler):
    """A scheduler whose books are audited after every event."""

    checks: Checks

    def pipeline_up(self, epoch: int, kv_blocks: int, links: Sequence[Link]) -> None:
        """See `SchedulerPort`."""
        self.checks.planned_for(epoch)
        super().pipeline_up(epoch, kv_blocks, links)

    def pipeline_switch(
        self, epoch: int, kv_blocks: int, links: Sequence[Link], leaving: Sequence[Link], *, reprefill: bool
    ) -> None:
        """See `SchedulerPort`."""
        self.checks.planned_for(epoch)
        super().pipeline_switch(epoch, kv_blocks, links, leaving, reprefill=reprefill)

    def pipeline_interrupted(self, sentence: str) -> None:
        """See `SchedulerPort`."""
        self.checks.interrupted(sentence)
        super().pipeline_interrupted(sentence)

    def pipeline_down(self, kind: FailureKind, sentence: str) -> None:
        """See `SchedulerPort`."""
        if kind != "shutting_down":
            self.checks.given_up(sentence)
        super().pipeline_down(kind, sentence)

    def _handle(self, event: SchedulerEvent) -> None:
        super()._handle(event)
        self.checks.books_balance(self._machine)


class WorldCoordinator(Coordinator):
    """A coordinator that the world follows through its phases."""

    checks: Checks
    follow: Callable[[], None]

    def handle(self, event: CoordinatorEvent) -> None:
        """See `Coordinator`."""
        super().handle(event)
        self.checks.epoch_is("the coordinator", self.machine.epoch)
        self.follow()


class WorldLog(EventLog):
    """A process's log: written only where somebody wants to read it, and its bad news always heard."""

    def __init__(self, stream: LogLines | None, checks: Checks, process: str) -> None:
        super().__init__(stream or _NOWHERE, clock=trio.current_time, process=process)
        self._written = stream is not None
        self._checks = checks
        self._process = process

    def emit(self, event: str, **fields: object) -> None:
        """See `EventLog`."""
        if event == "worker_failed":
            self._checks.worker_failed(self._process, str(fields["sentence"]))
        if self._written:
            super().emit(event, **fields)


class LogLines:
    """A log in memory."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def write(self, text: str, /) -> None:
        """Append text."""
        self.text.append(text)

    def flush(self) -> None:
        """Nothing waits."""


_NOWHERE = LogLines()
