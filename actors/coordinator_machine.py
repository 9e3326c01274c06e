"""Decides which worker holds what, epoch after epoch: start, change, abort, recovery, stop.

Rules:
 1. Every epoch is made the same way: journal the plan → workers load → room is checked → links open, pages are pre-copied → all
    have voted → journal the commit → the scheduler cuts over → all are past the cut → the old is released → journal that.
 2. Before the commit is on disk any failure aborts the change, and the route of before serves on as if nothing had been.
    After it the new route is the one to restore, whatever fails. A vote binds its worker for ever.
 3. A *live* change has a base that serves meanwhile; a *cold* one (start, recovery, restart) begins with nothing serving: the
    scheduler keeps every request and begins it anew.
 4. The loss of a worker that serves interrupts the pipeline at once; a recovery replaces the dead and keeps the others. After
    ``restarts_max`` failures without ``steady_s`` of service in between, the pipeline is given up.
 5. One change at a time; an epoch number is used once; epochs ascend.
 6. A command that is not answered is sent again; answers that come twice, or for another epoch, change nothing.
 7. No clock, no socket, no disk here: events in, instructions out. A refused event raises and changes nothing.

    idle --start--> changing(cold) --cut--> serving <--> changing(live) --a serving worker lost--> waiting --pause--> changing(cold)
                                                                                     any --stop--> stopping --> stopped, failed
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import cast

import msgspec

from ..policies.kv_room import NoRoomError
from ..runtime.interface import BLOCK_TOKENS, StageFacts
from .change import ANSWERS, IRREVOCABLE, Answer, Change, ChangePhase, open_messages, transfers
from .change_room import blocks_of
from .coordinator_events import (
    AskRoom,
    Begun,
    BringUp,
    Ended,
    Event,
    Finish,
    Instruction,
    Interrupt,
    Journaled,
    LimitBlocks,
    Refactor,
    RetireWorker,
    RoomKnown,
    SetTimer,
    SpawnWorker,
    Start,
    Stop,
    SwitchOver,
    TakeDown,
    TellWorker,
    TimerFired,
    ToWorker,
    WorkerGone,
    WorkerSaid,
    WorkerUp,
    WriteJournal,
)
from .journal import Committed, JournalRecord, RecordKind
from .messages import Abort, HandoffFailed, Loaded, Prepared, StageFailed
from .pipeline_spec import CoordinatorLimits, PipelineSpec
from .refactor import Phase, RefactorRefusedError
from .route import STRATEGIES, Route, RouteError, StagePlacement


class PipelineState(enum.Enum):
    """Where the pipeline is in its life."""

    IDLE = "idle"
    STARTING = "starting"
    SERVING = "serving"
    WAITING = "waiting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


_OUTWARD: dict[ChangePhase, Phase] = {
    ChangePhase.PLANNING: "plan",
    ChangePhase.LOADING: "load",
    ChangePhase.OPENING: "copy",
    ChangePhase.COMMITTING: "commit",
    ChangePhase.SWITCHING: "switch",
    ChangePhase.RELEASING: "release",
    ChangePhase.ABORTING: "abort",
}
"""Phases as people see them."""


class CoordinatorError(Exception):
    """An event that cannot come in this state: our bug. Nothing was changed."""


class CoordinatorMachine:
    """See the module's rules. ``link_address`` is a pattern with {epoch} and {link}."""

    def __init__(self, spec: PipelineSpec, limits: CoordinatorLimits, link_address: str) -> None:
        self.spec = spec
        self.limits = limits
        self.state = PipelineState.IDLE
        self.reason = "the pipeline was not started"
        self.route = Route(0, spec.stages)
        self.change: Change | None = None
        self.workers: dict[int, bool] = {}  # those that count, and whether they said hello
        self.facts: dict[int, StageFacts] = {}
        self.kv_bytes: dict[int, int] = {}
        self.kv_blocks = 0
        self.highest_epoch = 0
        self.next_worker = 0
        self._link_address = link_address
        self._failures = 0
        self._wanted = spec.stages  # what a recovery brings up
        self._leaving: set[int] = set()  # told to go, and not gone yet
        self._handlers: dict[type, Callable[..., list[Instruction]]] = {
            Start: self._start,
            Stop: self._stop,
            Refactor: self._refactor,
            WorkerUp: self._worker_up,
            WorkerGone: self._worker_gone,
            WorkerSaid: self._worker_said,
            Journaled: self._journaled,
            RoomKnown: self._room_known,
            TimerFired: self._timer,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event; instructions come in the order to carry them out. Raises `RefactorRefusedError`, `CoordinatorError`."""
        return self._handlers[type(event)](event)

    @property
    def epoch(self) -> int:
        """The epoch that serves, or served last; 0 before the first."""
        return self.route.epoch

    def worker_state(self, worker: int) -> str:
        """One word for people."""
        if worker not in self.workers:
            return "gone"
        if self.state is PipelineState.SERVING:
            return "serving"
        change = self.change
        if not self.workers[worker] or change is None:
            return "starting"
        return {"load": "loading", "copy": "opening"}.get(_OUTWARD.get(change.phase, ""), "loaded")

    # --- beginning a change ---

    def _start(self, event: Start) -> list[Instruction]:
        if self.state is not PipelineState.IDLE:
            raise CoordinatorError(f"start came while the pipeline was {self.state.value}")
        self.reason = "the pipeline is starting"
        self.highest_epoch = event.journal.highest_epoch
        undecided = event.journal.undecided
        aborted: list[Instruction] = []
        if undecided is not None:
            aborted = [_write("aborted", undecided.epoch, reason="the coordinator ended before it decided")]
        if event.alive and event.journal.committed is not None:
            return [*aborted, *self._go_on(event, event.journal.committed)]
        self.workers = dict.fromkeys(event.alive, True)
        self.next_worker = max(event.journal.next_worker, max(event.alive, default=-1) + 1)
        strays = self._retire(event.alive, kill=True, reason="no epoch that was decided needs this worker")
        return [*aborted, *strays, *self._begin_cold("start", self.spec.stages)]

    def _go_on(self, event: Start, committed: Committed) -> list[Instruction]:
        """Take up what a coordinator before this one decided: its workers live, and may serve."""
        self.route, self.kv_blocks = committed.route, committed.kv_blocks
        self._wanted = committed.route.stages
        self.workers = dict.fromkeys(event.alive, True)
        self.next_worker = max(event.journal.next_worker, max(event.alive) + 1)
        others = tuple(worker for worker in event.alive if worker not in self.route.workers)
        undecided = event.journal.undecided
        aborts: list[Instruction] = []
        if undecided is not None:
            reason = "the coordinator ended before it decided"
            aborts = [TellWorker(worker, Abort(undecided.epoch, reason)) for worker in self.route.workers]
            newcomers = tuple(worker for worker in others if worker in undecided.workers)
            aborts.extend(self._retire(newcomers, kill=True, reason=reason))
        is_live = committed.strategy in STRATEGIES and committed.strategy != "restart"
        broken = any(worker not in self.workers for worker in self.route.workers)
        idle = event.scheduler_epoch < 0 and (is_live or event.journal.released)
        if broken or idle:
            return [*aborts, *self._recover("the coordinator ended while the pipeline was broken")]
        self.state = PipelineState.SERVING
        self.reason = ""
        # The workers tell their facts again, which the journal does not hold.
        asks = [TellWorker(w, self.spec.prepare_message(self.route, s)) for s, w in enumerate(self.route.workers)]
        return [*aborts, *asks, *([] if event.journal.released else self._finish_switch(event, committed, is_live))]

    def _finish_switch(self, event: Start, committed: Committed, is_live: bool) -> list[Instruction]:
        """Drive a decided epoch to its end. Everything told here may have been told before."""
        base = None
        if is_live:
            base = event.journal.before.route if event.journal.before is not None else None
        change = self.change = Change(self.route, committed.strategy, base, kv_blocks=committed.kv_blocks)
        # Whoever lacks pages of a worker that is gone will say so.
        change.gone.update(worker for worker in change.leaving if worker not in self.workers)
        tell: Instruction = BringUp(self.route, committed.kv_blocks)
        if is_live:
            reprefill = committed.strategy == "recompute"
            tell = SwitchOver(self.route, change.leaving, committed.kv_blocks, reprefill)
        timers = [
            SetTimer("resend", change.epoch, self.limits.resend_s),
            SetTimer("switch", change.epoch, self.limits.switch_s_max),
        ]
        return [tell, *timers, *self._enter(change, ChangePhase.SWITCHING)]

    def check_changeable(self) -> None:
        """Raise `RefactorRefusedError` unless a change may begin now."""
        if self.state is not PipelineState.SERVING:
            raise RefactorRefusedError(f"the pipeline cannot be changed now: {self.reason or self.state.value}")
        if self.change is not None:
            raise RefactorRefusedError(
                f"the change to epoch {self.change.epoch} is still under way; try again when it is done"
            )

    def _refactor(self, event: Refactor) -> list[Instruction]:
        self.check_changeable()
        if event.based_on != self.epoch:
            raise RefactorRefusedError(
                f"the plan was made for epoch {event.based_on}; epoch {self.epoch} serves now: plan anew"
            )
        if event.strategy not in STRATEGIES:
            raise RefactorRefusedError(f"{event.strategy!r} is no strategy; choose one of {', '.join(STRATEGIES)}")
        route = Route(self.highest_epoch + 1, event.stages)
        try:
            route.check(self.spec.atoms)
        except RouteError as error:
            raise RefactorRefusedError(str(error)) from None
        if event.strategy == "restart":
            self.reason = "the pipeline is being restarted in another shape"
            kills = self._retire(tuple(self.workers), kill=True, reason=self.reason)
            return [Interrupt(self.reason), *kills, *self._begin_cold("restart", event.stages)]
        return self._begin(Change(route, event.strategy, self.route, event.allow_preempt))

    def _begin_cold(self, strategy: str, stages: Iterable[StagePlacement]) -> list[Instruction]:
        """Bring ``stages`` up with nothing serving; workers of theirs that do not live are replaced by new ones."""
        self.state = PipelineState.STARTING
        placements: list[StagePlacement] = []
        for stage in stages:
            worker = stage.worker
            if worker not in self.workers and worker < self.next_worker:
                worker = self.next_worker
            self.next_worker = max(self.next_worker, worker + 1)
            placements.append(msgspec.structs.replace(stage, worker=worker))
        if strategy != "restart":
            self._wanted = tuple(placements)
        return self._begin(Change(Route(self.highest_epoch + 1, tuple(placements)), strategy, None))

    def _begin(self, change: Change) -> list[Instruction]:
        self.change = change
        self.highest_epoch = change.epoch
        self.next_worker = max(self.next_worker, *(worker + 1 for worker in change.route.workers))
        return [
            self._told(change),
            _write("planned", change.epoch, route=change.route, strategy=change.strategy),
            SetTimer("prepare", change.epoch, self.limits.prepare_s_max),
            SetTimer("resend", change.epoch, self.limits.resend_s),
        ]

    # --- going forward ---

    def _journaled(self, event: Journaled) -> list[Instruction]:
        change = self.change
        if change is None or change.epoch != event.record.epoch:
            return []
        match event.record.kind, change.phase:
            case "planned", ChangePhase.PLANNING if event.error:
                return self._fail(change, f"the plan could not be written down: {event.error}")
            case "planned", ChangePhase.PLANNING:
                return self._load(change)
            case "commit", ChangePhase.COMMITTING if event.error:
                return self._fail(change, f"the decision could not be written down: {event.error}")
            case "commit", ChangePhase.COMMITTING:
                return self._committed(change)
            case "released", ChangePhase.CLOSING if not event.error:
                return self._done(change)
            case _:
                return []  # an unwritten "released" or "aborted" is written again by the resend timer

    def _load(self, change: Change) -> list[Instruction]:
        spawns: list[Instruction] = []
        for stage in change.route.stages:
            if stage.worker not in self.workers:
                self.workers[stage.worker] = False
                spawns.append(SpawnWorker(stage))
        return [*spawns, *self._enter(change, ChangePhase.LOADING)]

    def _worker_up(self, event: WorkerUp) -> list[Instruction]:
        if event.worker not in self.workers:
            return []
        self.workers[event.worker] = True
        change = self.change
        return self._command(change, event.worker) if change is not None else []

    def _enter(self, change: Change, phase: ChangePhase) -> list[Instruction]:
        """Go on to a phase in which workers have to answer, and tell them what to do."""
        change.phase = phase
        commands = [command for worker in change.unanswered() for command in self._command(change, worker)]
        return [self._told(change), *commands]

    def _command(self, change: Change, worker: int) -> list[Instruction]:
        if not self.workers.get(worker) or worker not in change.unanswered():
            return []
        message = change.command(worker, self.spec)
        return [] if message is None else [TellWorker(worker, cast("ToWorker", message))]

    def _told(self, change: Change) -> Begun:
        return Begun(change.epoch, change.strategy, _OUTWARD[change.phase])

    def _worker_said(self, event: WorkerSaid) -> list[Instruction]:
        message, change = event.message, self.change
        if isinstance(message, StageFailed):
            return self._stage_failed(message)
        if isinstance(message, Loaded) and message.epoch == self.epoch and message.worker in self.route.workers:
            self.facts[message.worker] = message.facts  # told again to a coordinator that started anew
        if change is None or message.epoch != change.epoch:
            return []
        if isinstance(message, HandoffFailed):
            return self._handoff_failed(change, message)
        if not isinstance(message, tuple(ANSWERS.values())):
            return []  # progress, for whoever watches
        return self._answered(change, cast("Answer", message))

    def _answered(self, change: Change, answer: Answer) -> list[Instruction]:
        if isinstance(answer, Prepared):
            self.kv_bytes[answer.worker] = answer.kv_bytes
        if not change.note(answer):
            return []
        match change.phase:
            case ChangePhase.LOADING:
                return self._ask_room(change)
            case ChangePhase.OPENING:
                change.phase = ChangePhase.COMMITTING
                return [self._told(change), _write("commit", change.epoch, kv_blocks=change.kv_blocks)]
            case ChangePhase.SWITCHING:
                return self._release(change)
            case ChangePhase.RELEASING:
                change.phase = ChangePhase.CLOSING
                return [_write("released", change.epoch)]
            case _:
                return self._aborted(change)

    def _ask_room(self, change: Change) -> list[Instruction]:
        try:
            change.kv_blocks = blocks_of(change, self.facts, self.kv_blocks, self.spec.kv_blocks_max)
        except NoRoomError as error:
            return self._fail(change, str(error), hopeless=True)
        change.phase = ChangePhase.ROOM
        return [AskRoom(change.epoch, change.kv_blocks)]

    def _room_known(self, event: RoomKnown) -> list[Instruction]:
        change = self.change
        if change is None or change.epoch != event.epoch or change.phase is not ChangePhase.ROOM:
            return []
        refusal = _refusal(change, event)
        if refusal:
            return self._fail(change, refusal)
        try:
            moves = transfers(change, self.spec, self.facts, self._link_address)
        except RouteError as error:
            return self._fail(change, str(error))
        change.opens = open_messages(
            change, moves, event.live, self._link_address, precopy=change.strategy == "precopy"
        )
        change.preempted = event.beyond
        limit: list[Instruction] = [LimitBlocks(change.kv_blocks)] if event.beyond and change.base else []
        return [*limit, *self._enter(change, ChangePhase.OPENING)]

    def _committed(self, change: Change) -> list[Instruction]:
        """The point of no return: the new route is the one that counts."""
        leaving = change.leaving
        self.route = change.route
        self._wanted = change.route.stages
        self.kv_blocks = change.kv_blocks
        self.facts |= {worker: facts for worker in change.route.workers if (facts := change.facts(worker)) is not None}
        if change.doomed:
            change.phase = ChangePhase.SWITCHING
            return self._fail(change, change.doomed)
        if change.base is None:
            self.state = PipelineState.SERVING
            self.reason = ""
            tell: Instruction = BringUp(change.route, change.kv_blocks)
        else:
            reprefill = change.strategy == "recompute"
            tell = SwitchOver(change.route, leaving, change.kv_blocks, reprefill)
        change.phase = ChangePhase.SWITCHING
        # Nobody is told to confirm yet: each says so by itself, and the resend timer asks those who did not.
        return [tell, self._told(change), SetTimer("switch", change.epoch, self.limits.switch_s_max)]

    def _release(self, change: Change) -> list[Instruction]:
        retired = self._retire(change.leaving, kill=False, reason=f"epoch {change.epoch} does not need this worker")
        change.gone.update(change.leaving)
        return [*retired, *self._enter(change, ChangePhase.RELEASING)]

    def _done(self, change: Change) -> list[Instruction]:
        self.change = None
        steady = SetTimer("steady", change.epoch, self.limits.steady_s)
        return [Ended(change.epoch, "", "", change.preempted), steady]

    # --- going back, and recovery ---

    def _fail(self, change: Change, sentence: str, *, hopeless: bool = False) -> list[Instruction]:
        """The change cannot go on: abort it where it can be taken back, restore its route where not, try again if it was cold."""
        if change.phase is ChangePhase.ABORTING:
            return []
        broken = any(worker not in self.workers for worker in self.route.workers)
        if change.phase in IRREVOCABLE or change.base is None or broken:
            first_try = change.strategy == "start" and change.phase not in IRREVOCABLE
            return self._recover(sentence, hopeless=hopeless and first_try)
        return self._abort(change, sentence)

    def _abort(self, change: Change, sentence: str) -> list[Instruction]:
        change.reason = sentence
        newcomers = [worker for worker in change.route.workers if worker not in self.route.workers]
        retired = self._retire(newcomers, kill=True, reason=f"epoch {change.epoch} was aborted")
        change.gone.update(newcomers)
        record = _write("aborted", change.epoch, reason=sentence)
        lifted: list[Instruction] = [LimitBlocks(None)] if change.preempted else []
        return [*retired, record, *lifted, *self._enter(change, ChangePhase.ABORTING)]

    def _aborted(self, change: Change) -> list[Instruction]:
        self.change = None
        return [Ended(change.epoch, "aborted", change.reason, change.preempted)]

    def _recover(self, sentence: str, *, hopeless: bool = False) -> list[Instruction]:
        """The pipeline is broken: keep the requests, and bring its route up again after a pause."""
        change, self.change = self.change, None
        ended: list[Instruction] = []
        if change is not None:
            ended = self._give_way(change, sentence)
        self._failures += 1
        self.reason = sentence
        if hopeless or self._failures > self.limits.restarts_max:
            return [*ended, *self._give_up(sentence)]
        self.state = PipelineState.WAITING
        pause = self.limits.restart_pause_s * 2 ** (self._failures - 1)
        return [Interrupt(sentence), *ended, SetTimer("recover", self.highest_epoch, pause)]

    def _give_way(self, change: Change, sentence: str) -> list[Instruction]:
        """End a change that a recovery overtakes. Workers discard what they made for it when they hear of a newer epoch."""
        wanted = {stage.worker for stage in self._wanted}
        strays = [worker for worker in self.workers if worker not in wanted]
        retired = self._retire(strays, kill=True, reason=f"epoch {change.epoch} will not be")
        if change.phase in IRREVOCABLE:
            return [*retired, Ended(change.epoch, "recovered", sentence, change.preempted)]
        aborts = [TellWorker(w, Abort(change.epoch, sentence)) for w, is_up in self.workers.items() if is_up]
        record = _write("aborted", change.epoch, reason=sentence)
        return [*retired, record, *aborts, Ended(change.epoch, "aborted", sentence, change.preempted)]

    def _give_up(self, sentence: str) -> list[Instruction]:
        self.state = PipelineState.FAILED
        kills = self._retire(tuple(self.workers), kill=True, reason=sentence)
        return [TakeDown("stage_lost", sentence), *kills, *self._finish_if_all_gone()]

    def _handoff_failed(self, change: Change, message: HandoffFailed) -> list[Instruction]:
        return self._fail(change, f"worker {message.worker}: {message.sentence}", hopeless=True)

    def _stage_failed(self, message: StageFailed) -> list[Instruction]:
        """A worker that ends itself; its process goes in a moment, and who counted on it learns why from here."""
        if message.worker not in self.workers:
            return []
        sentence = f"worker {message.worker} failed: {message.sentence}"
        kills = self._retire((message.worker,), kill=True, reason=sentence)
        return [*kills, *self._lost(message.worker, sentence, hopeless=True)]

    def _worker_gone(self, event: WorkerGone) -> list[Instruction]:
        self._leaving.discard(event.worker)
        if event.worker not in self.workers:
            return self._finish_if_all_gone()
        del self.workers[event.worker]
        return self._lost(event.worker, f"worker {event.worker} was lost: {event.sentence}")

    def _lost(self, worker: int, sentence: str, *, hopeless: bool = False) -> list[Instruction]:
        """A worker counts no more; what that means for the pipeline."""
        self.facts.pop(worker, None)
        self.kv_bytes.pop(worker, None)
        change = self.change
        serves = self.state is PipelineState.SERVING and worker in self.route.workers
        if change is None:
            return self._recover(sentence) if serves else []
        if change.phase is ChangePhase.COMMITTING:
            # Nobody knows yet whether the decision is on disk.
            change.doomed = change.doomed or sentence
            return []
        if worker in change.leaving and change.phase in IRREVOCABLE:
            return self._donor_lost(change, worker, sentence)
        if serves:
            return self._recover(sentence)
        if worker not in change.route.workers or worker in change.gone:
            return []
        return self._fail(change, sentence, hopeless=hopeless)

    def _donor_lost(self, change: Change, worker: int, sentence: str) -> list[Instruction]:
        """A worker that only gives pages away: no loss once it gave all of them. Who lacks pages will say so."""
        if change.phase is ChangePhase.SWITCHING and worker in change.unanswered():
            return self._recover(sentence)
        change.gone.add(worker)
        return []

    # --- time ---

    def _timer(self, event: TimerFired) -> list[Instruction]:
        change = self.change
        match event.timer:
            case "recover" if self.state is PipelineState.WAITING and event.epoch == self.highest_epoch:
                return self._begin_cold("recover", self.route.stages)
            case "steady" if self.state is PipelineState.SERVING and event.epoch == self.epoch:
                self._failures = 0
                return []
            case _ if change is None or change.epoch != event.epoch:
                return []
            case "resend":
                return [*self._resend(change), SetTimer("resend", change.epoch, self.limits.resend_s)]
            case "prepare" if change.phase not in IRREVOCABLE | {ChangePhase.COMMITTING, ChangePhase.ABORTING}:
                return self._too_slow(change, f"within {self.limits.prepare_s_max:g} s")
            case "switch" if change.phase is ChangePhase.SWITCHING:
                return self._too_slow(change, f"{self.limits.switch_s_max:g} s after the cut")
            case _:
                return []

    def _resend(self, change: Change) -> list[Instruction]:
        if change.phase is ChangePhase.CLOSING:
            return [_write("released", change.epoch)]
        return [command for worker in change.unanswered() for command in self._command(change, worker)]

    def _too_slow(self, change: Change, when: str) -> list[Instruction]:
        slow = change.unanswered()
        sentence = f"workers {', '.join(map(str, slow))} were not ready {when}"
        failed = self._fail(change, sentence)
        if self.state is PipelineState.WAITING:
            failed.extend(self._retire(slow, kill=True, reason=sentence))
        return failed

    # --- the end ---

    def _retire(self, workers: Iterable[int], *, kill: bool, reason: str) -> list[Instruction]:
        """Let workers go; they count no more."""
        retired: list[Instruction] = []
        for worker in workers:
            if self.workers.pop(worker, None) is not None:
                self._leaving.add(worker)
                retired.append(RetireWorker(worker, kill, reason))
        return retired

    def _stop(self, _event: Stop) -> list[Instruction]:
        if self.state in (PipelineState.STOPPING, PipelineState.STOPPED, PipelineState.FAILED):
            return []
        serving = self.state is PipelineState.SERVING
        self.state = PipelineState.STOPPING
        self.reason = "the server is shutting down"
        change, self.change = self.change, None
        ended: list[Instruction] = [Ended(change.epoch, "aborted", self.reason)] if change is not None else []
        retired = self._retire(tuple(self.workers), kill=not serving, reason=self.reason)
        return [*ended, TakeDown("shutting_down", self.reason), *retired, *self._finish_if_all_gone()]

    def _finish_if_all_gone(self) -> list[Instruction]:
        if self.workers or self._leaving:
            return []
        if self.state is PipelineState.FAILED:
            return [Finish(True, self.reason)]
        if self.state is PipelineState.STOPPING:
            self.state = PipelineState.STOPPED
            return [Finish(False, "every worker left")]
        return []


def _refusal(change: Change, room: RoomKnown) -> str:
    """Why the requests that are here do not let the change be, "" where they do."""
    if room.largest_blocks > change.kv_blocks:
        return (
            f"the new stages have room for {change.kv_blocks} KV blocks of {BLOCK_TOKENS} tokens and a request that is "
            f"here may need {room.largest_blocks}; use more stages, or wait for it to end"
        )
    if room.beyond and change.base is not None and not change.allow_preempt:
        return (
            f"the new stages have room for {change.kv_blocks} KV blocks, so {room.beyond} running requests would have to be "
            "prefilled again; allow that (allow-preempt), use more stages, or try again later"
        )
    return ""


def _write(
    kind: RecordKind,
    epoch: int,
    *,
    route: Route | None = None,
    strategy: str = "",
    kv_blocks: int = 0,
    reason: str = "",
) -> WriteJournal:
    return WriteJournal(JournalRecord(kind, epoch, route, strategy, kv_blocks, reason))
