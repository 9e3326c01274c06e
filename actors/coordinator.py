"""The coordinator actor: carries out `coordinator_machine`'s instructions with a pool of workers, a scheduler and a journal.

All decisions are the machine's. It may end and start anew at any point: what counts is in the journal and at the workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import trio

from ..transport.interface import Link
from .change_watch import ChangeWatch
from .coordinator_events import (
    AskRoom,
    AskStages,
    Begun,
    BringUp,
    Ended,
    Event,
    Finish,
    FromWorker,
    Instruction,
    Interrupt,
    Journaled,
    LimitBlocks,
    Refactor,
    RetireWorker,
    RoomKnown,
    SetTimer,
    SpawnWorker,
    StagesKnown,
    Start,
    Stop,
    SwitchOver,
    TakeDown,
    TellWorker,
    TimerFired,
    WorkerGone,
    WorkerSaid,
    WorkerUp,
    WriteJournal,
)
from .coordinator_machine import CoordinatorMachine
from .event_log import EventLog
from .generation import FailureKind
from .journal import Journal, JournalError, JournalRecord
from .messages import LoadProgress
from .refactor import BusyRefusedError, RefactorRefusedError
from .route import StagePlacement
from .scheduler_machine import SchedulerCounts
from .token_times import TokenTimes
from .worker_pool import WorkerPool

JOURNAL_RECORDS_WAITING_MAX = 64
"""Records that may wait for the disk; a change writes three."""
CHANGEABLE_S_MAX = 2.0
"""How long who asks for a change waits for another to end that nobody asked for. Its epoch serves already: what is left are a few
messages, and one record on disk."""


class SchedulerPort(Protocol):
    """What the coordinator asks of a scheduler."""

    times: TokenTimes

    @property
    def epoch(self) -> int:
        """The epoch that steps are planned for; -1 while there is none."""
        ...

    def counts(self) -> SchedulerCounts:
        """A snapshot."""
        ...

    def pipeline_up(self, epoch: int, kv_blocks: int, links: Sequence[Link]) -> None:
        """The stages behind ``links`` wait for steps, with empty pages. The same epoch again: nothing."""
        ...

    def pipeline_switch(
        self, epoch: int, kv_blocks: int, links: Sequence[Link], leaving: Sequence[Link], *, reprefill: bool
    ) -> None:
        """Cut over to the stages behind ``links``. The same epoch again: nothing."""
        ...

    def pipeline_interrupted(self, sentence: str) -> None:
        """Broken, will be up again."""
        ...

    def pipeline_down(self, kind: FailureKind, sentence: str) -> None:
        """Gone for good."""
        ...

    def limit_blocks(self, blocks: int | None) -> None:
        """Count on no block from ``blocks`` on, and take no request that needs more; None lifts the limit."""
        ...

    def room(self, blocks: int) -> tuple[bytes, int, int]:
        """Blocks held (a bit each), requests that hold one beyond ``blocks``, blocks the largest may need."""
        ...


class RecoveryPlanner(Protocol):
    """Finds devices for a pipeline that is to come up again."""

    async def recover(self, wanted: tuple[StagePlacement, ...], next_worker: int) -> tuple[StagePlacement, ...]:
        """``wanted``, or stages on other devices where some of its are gone, new workers numbered from ``next_worker``.

        Raises `RefactorRefusedError` where there are too few.
        """
        ...


class Coordinator:
    """See the module. The `PoolListener` of its pool. Without a ``recovery`` the devices of a pipeline never go.

    ``run`` ends when the pipeline was stopped, or was given up.
    """

    def __init__(
        self,
        machine: CoordinatorMachine,
        pool: WorkerPool,
        scheduler: SchedulerPort,
        journal: Journal,
        log: EventLog,
        recovery: RecoveryPlanner | None = None,
    ) -> None:
        self.machine = machine
        self.finish: Finish | None = None
        self.loading: dict[int, tuple[int, int]] = {}  # worker -> bytes of weights done, and in all
        self._pool = pool
        self._scheduler = scheduler
        self._journal = journal
        self._recovery = recovery
        self._log = log
        self._watch: ChangeWatch | None = None
        self._events: deque[Event] = deque()
        self._busy = False
        self._handled = trio.lowlevel.ParkingLot()
        self._records, self._unwritten = trio.open_memory_channel[JournalRecord](JOURNAL_RECORDS_WAITING_MAX)
        self._nursery: trio.Nursery | None = None

    async def run(self) -> Finish:
        """Start the pipeline, or go on where a coordinator before this one ended, and keep it alive. Raises `JournalError`."""
        async with trio.open_nursery() as self._nursery:
            journal = await self._journal.read()
            self._pool.listener = self
            self._nursery.start_soon(self._write_journal)
            self.handle(Start(journal, self._pool.alive(), self._scheduler.epoch, self._pool.leaving()))
        assert self.finish is not None
        return self.finish

    def stop(self) -> None:
        """Ask for a graceful end; `run` returns when it is done."""
        self.handle(Stop())

    def watch_start(self, times: TokenTimes) -> ChangeWatch:
        """Watch the first epoch come up, and what it does to the requests of ``times``. To be called before `run`."""
        self._watch = ChangeWatch(times, self._scheduler.counts)
        return self._watch

    async def changeable(self) -> None:
        """Wait a moment for what nobody asked for (the end of a start, of a recovery). Raises `RefactorRefusedError`."""
        with trio.move_on_after(CHANGEABLE_S_MAX):
            while self._is_busy():
                await self._handled.park()
        self.machine.check_changeable()

    def _is_busy(self) -> bool:
        try:
            self.machine.check_changeable()
        except BusyRefusedError:
            return True
        except RefactorRefusedError:
            pass
        return False

    def refactor(self, change: Refactor) -> ChangeWatch:
        """Begin a change. Raises `RefactorRefusedError`, and then nothing was changed."""
        watch = ChangeWatch(self._scheduler.times, self._scheduler.counts)
        previous, self._watch = self._watch, watch
        try:
            self.handle(change)
        except Exception:
            self._watch = previous
            if previous is None:
                self._scheduler.times.watch(False)
            raise
        return watch

    # --- told by the pool ---

    def worker_up(self, worker: int) -> None:
        """See `PoolListener`."""
        self.handle(WorkerUp(worker))

    def worker_gone(self, worker: int, sentence: str) -> None:
        """See `PoolListener`."""
        self.loading.pop(worker, None)
        self.handle(WorkerGone(worker, sentence))

    def worker_said(self, message: FromWorker) -> None:
        """See `PoolListener`."""
        if isinstance(message, LoadProgress):
            self.loading[message.worker] = (message.done_bytes, message.total_bytes)
        if self._watch is not None:
            self._watch.said(message)
        self.handle(WorkerSaid(message))

    # --- carrying out ---

    def handle(self, event: Event) -> None:
        """Apply an event. What it brings about at once is applied after it, in order."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                for instruction in self.machine.handle(self._events.popleft()):
                    self._perform(instruction)
        finally:
            self._busy = False
            self._handled.unpark_all()

    def _perform(self, instruction: Instruction) -> None:
        assert self._nursery is not None
        match instruction:
            case SpawnWorker(placement):
                self._pool.spawn(placement)
            case TellWorker(worker, message):
                self._pool.tell(worker, message)
            case RetireWorker(worker, kill, reason):
                self._log.emit("worker_retired", worker=worker, at_once=kill, reason=reason)
                self._pool.retire(worker, kill=kill, reason=reason)
            case WriteJournal(record):
                self._records.send_nowait(record)
            case AskStages():
                self._ask_stages(instruction)
            case SetTimer():
                self._nursery.start_soon(self._time, instruction)
            case Begun(epoch, strategy, phase):
                self._log.emit("change_phase", epoch=epoch, strategy=strategy, phase=phase)
                if self._watch is not None and self.machine.change is not None:
                    self._watch.entered(self.machine.change, phase)
            case Ended():
                self._ended(instruction)
            case Finish(failed, sentence):
                if failed:
                    self._log.emit("coordinator_gave_up", sentence=sentence)
                self.finish = instruction
                self._nursery.cancel_scope.cancel()
            case _:
                self._tell_scheduler(instruction)

    def _tell_scheduler(self, instruction: AskRoom | LimitBlocks | BringUp | SwitchOver | Interrupt | TakeDown) -> None:
        scheduler, pool = self._scheduler, self._pool
        match instruction:
            case AskRoom(epoch, blocks):
                self._events.append(RoomKnown(epoch, *scheduler.room(blocks)))
            case LimitBlocks(limit):
                scheduler.limit_blocks(limit)
            case BringUp(route, blocks):
                self._log.emit("pipeline_up", epoch=route.epoch, stages=len(route.stages), kv_blocks=blocks)
                scheduler.pipeline_up(route.epoch, blocks, pool.links(route.workers))
            case SwitchOver(route, leaving, blocks, reprefill):
                links = pool.links(route.workers)
                scheduler.pipeline_switch(route.epoch, blocks, links, pool.links(leaving), reprefill=reprefill)
            case Interrupt(sentence):
                self._log.emit("pipeline_interrupted", sentence=sentence)
                scheduler.pipeline_interrupted(sentence)
            case TakeDown(kind, sentence):
                self._log.emit("pipeline_down", sentence=sentence)
                scheduler.pipeline_down(kind, sentence)

    def _ended(self, ended: Ended) -> None:
        self._log.emit("change_ended", epoch=ended.epoch, outcome=ended.reason or "done", sentence=ended.sentence)
        watch, self._watch = self._watch, None
        if watch is None:
            return
        if ended.reason:
            watch.failed(ended)
        else:
            assert self._nursery is not None
            self._nursery.start_soon(watch.succeeded)

    async def _write_journal(self) -> None:
        async for record in self._unwritten:
            error = ""
            try:
                await self._journal.write(record)
            except JournalError as failure:
                error = str(failure)
                self._log.emit("journal_failed", record=record.kind, epoch=record.epoch, sentence=error)
            self.handle(Journaled(record, error))

    def _ask_stages(self, asked: AskStages) -> None:
        assert self._nursery is not None
        if self._recovery is None:
            self._events.append(StagesKnown(asked.epoch, asked.wanted))
        else:
            self._nursery.start_soon(self._plan_recovery, asked, self._recovery)

    async def _plan_recovery(self, asked: AskStages, planner: RecoveryPlanner) -> None:
        try:
            stages = await planner.recover(asked.wanted, asked.next_worker)
        except RefactorRefusedError as refusal:
            self.handle(StagesKnown(asked.epoch, (), str(refusal)))
        else:
            self.handle(StagesKnown(asked.epoch, stages))

    async def _time(self, timer: SetTimer) -> None:
        await trio.sleep(timer.after_s)
        self.handle(TimerFired(timer.timer, timer.epoch))
