"""Decides which worker holds what, epoch after epoch: start, change, abort, recovery, stop.

Rules:
 1. Every epoch is made the same way: journal the plan → workers load → room is checked → links open, pages are pre-copied → all
    have voted → journal the commit → the scheduler cuts over → all are past the cut → the old is released → journal that.
 2. Before the commit is on disk any failure aborts the change, and the route of before serves on as if nothing had been.
    After it the new route is the one to restore, whatever fails. A vote binds its worker for ever.
 3. A *live* change has a base that serves meanwhile; a *cold* one (start, recovery, restart) begins with nothing serving: the
    scheduler keeps every request and begins it anew.
 4. The loss of a worker that serves interrupts the pipeline at once; a recovery replaces the dead and keeps the others, on devices
    that are there, or waits for some. ``restarts_max`` failures without ``steady_s`` of service between them are its end.
 5. One change at a time; an epoch number is used once; epochs ascend.
 6. A command that is not answered is sent again; answers that come twice, or for another epoch, change nothing.
 7. No clock, no socket, no disk here: events in, instructions out. A refused event raises and changes nothing.

    idle --start--> changing(cold) --cut--> serving <--> changing(live) --a serving worker lost--> waiting --pause--> changing(cold)
                                                                                     any --stop--> stopping --> stopped, failed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .change import IRREVOCABLE, Change, ChangePhase, wanted_route
from .change_machine import ChangeMachine, Failure, Milestone, Step
from .coordinator_events import (
    PIPELINE_TRANSITIONS,
    AskStages,
    CoordinatorError,
    Ended,
    Event,
    Finish,
    Instruction,
    Interrupt,
    Journaled,
    LimitBlocks,
    PipelineState,
    Refactor,
    RoomKnown,
    SetTimer,
    StagesKnown,
    Start,
    Stop,
    TakeDown,
    TellWorker,
    TimerFired,
    WorkerGone,
    WorkerSaid,
    WorkerUp,
    WriteJournal,
)
from .journal import Committed, JournalRecord
from .link_place import LinkPlaces
from .messages import Abort, HandoffFailed, Loaded, StageFailed
from .pipeline_spec import CoordinatorLimits, PipelineSpec
from .refactor import BusyRefusedError, RefactorRefusedError
from .roster import Roster
from .route import Route, StagePlacement
from .takeover import ask_facts, forget_undecided, take_over


class CoordinatorMachine:
    """See the module's rules. ``places`` finds where the workers of an epoch meet."""

    def __init__(self, spec: PipelineSpec, limits: CoordinatorLimits, places: LinkPlaces) -> None:
        self.spec = spec
        self.limits = limits
        self.state = PipelineState.IDLE
        self.reason = "the pipeline was not started"
        self.route = Route(0, spec.stages)
        self.roster = Roster()
        self.highest_epoch = 0
        self._places = places
        self._failures = 0
        self._wanted = spec.stages  # what a recovery brings up
        self._making: ChangeMachine | None = None
        self._handlers: dict[type, Callable[..., list[Instruction]]] = {
            Start: self._start,
            Stop: self._stop,
            Refactor: self._refactor,
            WorkerUp: self._worker_up,
            WorkerGone: self._worker_gone,
            WorkerSaid: self._worker_said,
            Journaled: lambda event: self._advance(lambda making: making.journaled(event)),
            RoomKnown: lambda event: self._advance(lambda making: making.room_known(event)),
            StagesKnown: self._stages_known,
            TimerFired: self._timer,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event; instructions come in the order to carry them out. Raises `RefactorRefusedError`, `CoordinatorError`."""
        return self._handlers[type(event)](event)

    @property
    def epoch(self) -> int:
        """The epoch that serves, or served last; 0 before the first."""
        return self.route.epoch

    @property
    def change(self) -> Change | None:
        """The epoch that is being made."""
        return self._making.change if self._making is not None else None

    def check_changeable(self) -> None:
        """Raise `RefactorRefusedError` unless a change may begin now, `BusyRefusedError` where it may soon."""
        if self.state is not PipelineState.SERVING:
            raise RefactorRefusedError(f"the pipeline cannot be changed now: {self.reason or self.state.value}")
        if self.change is not None:
            raise BusyRefusedError.under_way(f"the change to epoch {self.change.epoch}")
        if any(worker not in self.roster.facts for worker in self.route.workers):
            raise BusyRefusedError("the coordinator has just started and asks the workers what they hold; try again")

    # --- start, and taking over from a coordinator that ended ---

    def _start(self, event: Start) -> list[Instruction]:
        if self.state is not PipelineState.IDLE:
            raise CoordinatorError(f"start came while the pipeline was {self.state.value}")
        self.reason = "the pipeline is starting"
        self.highest_epoch = event.journal.highest_epoch
        self.roster.inherit(event.alive, event.leaving, event.journal.next_worker)
        if event.alive and event.journal.committed is not None:
            return [*forget_undecided(event), *self._take_over(event, event.journal.committed)]
        strays = self.roster.retire(event.alive, kill=True, reason="no epoch that was decided needs this worker")
        return [*forget_undecided(event), *strays, *self._begin_cold("start", self.spec.stages)]

    def _take_over(self, event: Start, committed: Committed) -> list[Instruction]:
        """Go on with what was decided."""
        self.route = committed.route
        self._wanted = committed.route.stages
        found = take_over(event, committed, self.roster, self.spec)
        if found.is_broken:
            return [*found.instructions, *self._recover("the coordinator ended while the pipeline was broken")]
        self._go("took over")
        self.reason = ""
        asking = [*found.instructions, SetTimer("ask", self.epoch, self.limits.resend_s)]
        if found.unfinished is None:
            return asking
        making = self._make(found.unfinished)
        asking.append(self._after("resend", self.limits.resend_s))
        if making.change.phase is ChangePhase.SWITCHING:
            asking += [making.cut_over(), self._after("switch", self.limits.switch_s_max)]
        return [*asking, *making.resume()]

    def _refactor(self, event: Refactor) -> list[Instruction]:
        self.check_changeable()
        route = wanted_route(event, self.epoch, self.highest_epoch + 1, self.spec.atoms)
        if event.strategy == "restart":
            self.reason = "the pipeline is being restarted in another shape"
            kills = self.roster.retire(tuple(self.roster.is_up), kill=True, reason=self.reason)
            return [Interrupt(self.reason), *kills, *self._begin_cold("restart", event.stages)]
        return self._begin(Change(route, event.strategy, self.route, event.allow_preempt))

    def _begin_cold(self, strategy: str, stages: Iterable[StagePlacement]) -> list[Instruction]:
        """Bring ``stages`` up with nothing serving; workers of theirs that do not live are replaced by new ones."""
        self._go("restart" if strategy == "restart" else "begin")
        placements = self.roster.replace_dead(stages)
        if strategy != "restart":
            self._wanted = placements
        return self._begin(Change(Route(self.highest_epoch + 1, placements), strategy, None))

    def _stages_known(self, event: StagesKnown) -> list[Instruction]:
        """To wait for devices is no failure of the pipeline's own."""
        if self.state is not PipelineState.WAITING or event.epoch != self.highest_epoch:
            return []
        if not event.stages:
            self.reason = event.sentence
            return [SetTimer("recover", self.highest_epoch, self.limits.devices_pause_s)]
        spare = self.roster.keep_only(event.stages, "the pipeline comes up again without this worker")
        return [*spare, *self._begin_cold("recover", event.stages)]

    def _begin(self, change: Change) -> list[Instruction]:
        self.highest_epoch = change.epoch
        making = self._make(change)
        timers = [self._after("prepare", self.limits.prepare_s_max), self._after("resend", self.limits.resend_s)]
        return [*making.begin(), *timers]

    def _make(self, change: Change) -> ChangeMachine:
        self._making = ChangeMachine(change, self.spec, self.roster, self._places)
        return self._making

    def _advance(self, step_of: Callable[[ChangeMachine], Step]) -> list[Instruction]:
        """Let the change that is being made take a step, and answer what only the coordinator can."""
        making = self._making
        if making is None:
            return []
        step = step_of(making)
        match step.outcome:
            case Failure(sentence, hopeless):
                return [*step.instructions, *self._fail(making, sentence, hopeless=hopeless)]
            case Milestone.COMMITTED:
                return [*step.instructions, *self._committed(making)]
            case Milestone.CROSSED:
                return [*step.instructions, *self._release(making)]
            case Milestone.DONE:
                self._making = None
                ended = Ended(making.change.epoch, "", "", making.change.preempted)
                return [*step.instructions, ended, SetTimer("steady", ended.epoch, self.limits.steady_s)]
            case Milestone.ABORTED:
                self._making = None
                change = making.change
                return [*step.instructions, Ended(change.epoch, "aborted", change.reason, change.preempted)]
            case None:
                return step.instructions

    def _worker_up(self, event: WorkerUp) -> list[Instruction]:
        if event.worker in self.roster:
            self.roster.is_up[event.worker] = True
            return self._making.worker_up(event.worker) if self._making is not None else []
        return []

    def _worker_said(self, event: WorkerSaid) -> list[Instruction]:
        message = event.message
        if isinstance(message, StageFailed):
            return self._stage_failed(message)
        if isinstance(message, Loaded) and message.epoch == self.epoch and message.worker in self.route.workers:
            self.roster.facts[message.worker] = message.facts  # told again to a coordinator that took over
        if self.change is not None and message.epoch == self.change.epoch:
            return self._advance(lambda making: making.answered(message))
        if isinstance(message, HandoffFailed) and message.epoch == self.epoch:
            return self._base_failed(f"worker {message.worker}: {message.sentence}")
        return []

    def _base_failed(self, sentence: str) -> list[Instruction]:
        """Two neighbours of the epoch that serves do not hear each other."""
        if self.state is not PipelineState.SERVING:
            return []
        if self.change is not None and self.change.phase is ChangePhase.COMMITTING:
            self.change.doomed = self.change.doomed or sentence
            return []
        return self._recover(sentence)

    def _committed(self, making: ChangeMachine) -> list[Instruction]:
        """The point of no return: the new route is the one that counts."""
        change = making.change
        cut_over = making.cut_over()
        self.route = change.route
        self._wanted = change.route.stages
        told = {worker: facts for worker in change.route.workers if (facts := change.facts(worker)) is not None}
        self.roster.facts |= told
        if change.doomed:
            change.go_on("commit on disk")
            return self._fail(making, change.doomed)
        if change.base is None:
            self._go("cut")
            self.reason = ""
        return [cut_over, *making.cross(), self._after("switch", self.limits.switch_s_max)]

    def _release(self, making: ChangeMachine) -> list[Instruction]:
        leaving = making.change.leaving
        retired = self.roster.retire(leaving, kill=False, reason=f"epoch {self.epoch} does not need this worker")
        making.change.gone.update(leaving)
        return [*retired, *making.enter("all Switched")]

    # --- going back, and recovery ---

    def _fail(self, making: ChangeMachine, sentence: str, *, hopeless: bool = False) -> list[Instruction]:
        """The change cannot go on: abort it where it can be taken back, restore its route where not, try again if it was cold."""
        change = making.change
        if change.phase is ChangePhase.ABORTING:
            return []
        if change.phase in IRREVOCABLE or change.base is None or self._is_broken():
            first_try = change.strategy == "start" and change.phase not in IRREVOCABLE
            return self._recover(sentence, hopeless=hopeless and first_try)
        return self._abort(making, sentence)

    def _is_broken(self) -> bool:
        return any(worker not in self.roster for worker in self.route.workers)

    def _abort(self, making: ChangeMachine, sentence: str) -> list[Instruction]:
        change = making.change
        change.reason = sentence
        newcomers = [worker for worker in change.route.workers if worker not in self.route.workers]
        retired = self.roster.retire(newcomers, kill=True, reason=f"epoch {change.epoch} was aborted")
        change.gone.update(newcomers)
        record = WriteJournal(JournalRecord("aborted", change.epoch, reason=sentence))
        return [*retired, record, LimitBlocks(None), *making.enter("failure")]

    def _recover(self, sentence: str, *, hopeless: bool = False) -> list[Instruction]:
        """The pipeline is broken: keep the requests, and bring its route up again after a pause."""
        change, self._making = self.change, None
        ended = self._give_way(change, sentence) if change is not None else []
        self._failures += 1
        self.reason = sentence
        if hopeless or self._failures > self.limits.restarts_max:
            return [*ended, *self._give_up(sentence)]
        self._go("broken")
        pause = self.limits.restart_pause_s * 2 ** (self._failures - 1)
        return [Interrupt(sentence), *ended, SetTimer("recover", self.highest_epoch, pause)]

    def _give_way(self, change: Change, sentence: str) -> list[Instruction]:
        """End a change that a recovery overtakes. Workers discard what they made for it when they hear of a newer epoch."""
        retired = self.roster.keep_only(self._wanted, f"epoch {change.epoch} will not be")
        if change.phase in IRREVOCABLE:
            return [*retired, Ended(change.epoch, "recovered", sentence, change.preempted)]
        abort = Abort(change.epoch, sentence)
        aborts = [TellWorker(worker, abort) for worker, is_up in self.roster.is_up.items() if is_up]
        record = WriteJournal(JournalRecord("aborted", change.epoch, reason=sentence))
        return [*retired, record, *aborts, Ended(change.epoch, "aborted", sentence, change.preempted)]

    def _give_up(self, sentence: str) -> list[Instruction]:
        self._go("given up")
        kills = self.roster.retire(tuple(self.roster.is_up), kill=True, reason=sentence)
        return [TakeDown("stage_lost", sentence), *kills, *self._finish_if_all_gone()]

    def _stage_failed(self, message: StageFailed) -> list[Instruction]:
        """A worker that ends itself; its process goes in a moment, and who counted on it learns why from here."""
        if message.worker not in self.roster:
            return []
        sentence = f"worker {message.worker} failed: {message.sentence}"
        kills = self.roster.retire((message.worker,), kill=True, reason=sentence)
        return [*kills, *self._lost(message.worker, sentence, hopeless=True)]

    def _worker_gone(self, event: WorkerGone) -> list[Instruction]:
        self.roster.leaving.discard(event.worker)
        if not self.roster.forget(event.worker):
            return self._finish_if_all_gone()
        return self._lost(event.worker, f"worker {event.worker} was lost: {event.sentence}")

    def _lost(self, worker: int, sentence: str, *, hopeless: bool = False) -> list[Instruction]:
        """A worker counts no more; what that means for the pipeline."""
        if self.state in (PipelineState.STOPPING, PipelineState.FAILED):
            return self._finish_if_all_gone()
        making = self._making
        serves = self.state is PipelineState.SERVING and worker in self.route.workers
        if making is None:
            return self._recover(sentence) if serves else []
        change = making.change
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
        return self._fail(making, sentence, hopeless=hopeless)

    def _donor_lost(self, change: Change, worker: int, sentence: str) -> list[Instruction]:
        """A worker that only gives pages away: no loss once it gave all of them. Who lacks pages will say so."""
        if change.phase is ChangePhase.SWITCHING and worker in change.unanswered():
            return self._recover(sentence)
        change.gone.add(worker)
        return []

    def _after(self, timer: str, after_s: float) -> SetTimer:
        """A timer of the change that is being made."""
        assert self.change is not None
        return SetTimer(timer, self.change.epoch, after_s)

    def _timer(self, event: TimerFired) -> list[Instruction]:
        making = self._making
        match event.timer:
            case "recover" if self.state is PipelineState.WAITING and event.epoch == self.highest_epoch:
                return [AskStages(event.epoch, self._wanted, self.roster.next_worker)]
            case "steady" if self.state is PipelineState.SERVING and event.epoch == self.epoch:
                self._failures = 0
                return []
            case "ask" if event.epoch == self.epoch and (asks := ask_facts(self.route, self.roster, self.spec)):
                return [*asks, SetTimer("ask", self.epoch, self.limits.resend_s)]
            case _ if making is None or making.change.epoch != event.epoch:
                return []
            case "resend":
                return [*making.resend(), self._after("resend", self.limits.resend_s)]
            case "prepare" if making.change.phase not in IRREVOCABLE | {ChangePhase.COMMITTING, ChangePhase.ABORTING}:
                return self._too_slow(making, f"within {self.limits.prepare_s_max:g} s")
            case "switch" if making.change.phase is ChangePhase.SWITCHING:
                return self._too_slow(making, f"{self.limits.switch_s_max:g} s after the cut")
            case _:
                return []

    def _too_slow(self, making: ChangeMachine, when: str) -> list[Instruction]:
        slow = making.change.unanswered()
        sentence = f"workers {', '.join(map(str, slow))} were not ready {when}"
        failed = self._fail(making, sentence)
        waiting = self.state is PipelineState.WAITING
        return [*failed, *(self.roster.retire(slow, kill=True, reason=sentence) if waiting else [])]

    def _go(self, cause: str) -> None:
        self.state = PIPELINE_TRANSITIONS.after(self.state, cause)

    def _stop(self, _event: Stop) -> list[Instruction]:
        if self.state in (PipelineState.STOPPING, PipelineState.STOPPED, PipelineState.FAILED):
            return []
        serving = self.state is PipelineState.SERVING
        self._go("stop")
        self.reason = "the server is shutting down"
        change, self._making = self.change, None
        ended = [Ended(change.epoch, "aborted", self.reason)] if change is not None else []
        retired = self.roster.retire(tuple(self.roster.is_up), kill=not serving, reason=self.reason)
        return [*ended, TakeDown("shutting_down", self.reason), *retired, *self._finish_if_all_gone()]

    def _finish_if_all_gone(self) -> list[Instruction]:
        if self.roster.is_empty and self.state is PipelineState.FAILED:
            return [Finish(True, self.reason)]
        if self.roster.is_empty and self.state is PipelineState.STOPPING:
            self._go("all gone")
            return [Finish(False, "every worker left")]
        return []
