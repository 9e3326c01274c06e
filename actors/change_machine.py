"""The making of one epoch, from its plan to the release of the epoch before: what comes after what.

Rules:
 1. journal the plan → workers load → room is checked → links open, pages are pre-copied → all have voted → journal the commit →
    (the coordinator lets the scheduler cut over) → all are past the cut → the old is released → journal that.
 2. A command that is not answered is sent again; answers that come twice, or for another epoch, change nothing.
 3. It does not decide what a failure means: it says that it failed, and `coordinator_machine` aborts it or restores its route.
 4. Where others serve meanwhile new workers are started one after another, the next once the last said hello.
 5. No clock, no socket, no disk here: events in, a step out.

`change.ChangePhase` names the phases, `change.ANSWERS` who has to answer what in which.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import cast

from ..policies.kv_room import NoRoomError
from .change import ANSWERS, Answer, Change, ChangePhase, open_messages, transfers
from .change_room import blocks_of, refusal
from .coordinator_events import (
    AskRoom,
    Begun,
    BringUp,
    Instruction,
    Journaled,
    LimitBlocks,
    RoomKnown,
    SwitchOver,
    TellWorker,
    ToWorker,
    WriteJournal,
)
from .journal import JournalRecord
from .link_place import LinkPlaces
from .messages import HandoffFailed, Prepared
from .pipeline_spec import PipelineSpec
from .refactor import Phase
from .roster import Roster
from .route import RouteError

OUTWARD: dict[ChangePhase, Phase] = {
    ChangePhase.PLANNING: "plan",
    ChangePhase.LOADING: "load",
    ChangePhase.ROOM: "load",
    ChangePhase.OPENING: "copy",
    ChangePhase.COMMITTING: "commit",
    ChangePhase.SWITCHING: "switch",
    ChangePhase.RELEASING: "release",
    ChangePhase.CLOSING: "release",
    ChangePhase.DONE: "release",
    ChangePhase.ABORTING: "abort",
    ChangePhase.ABORTED: "abort",
}
"""Phases as people see them."""


class Milestone(enum.Enum):
    """What only the coordinator can answer."""

    COMMITTED = "committed"
    CROSSED = "crossed"
    DONE = "done"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Failure:
    """It cannot go on. ``hopeless``: another try would only repeat it (bad weights, no room)."""

    sentence: str
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What an event brought about."""

    instructions: list[Instruction]
    outcome: Milestone | Failure | None = None


_NOTHING = Step([])


class ChangeMachine:
    """See the module's rules."""

    def __init__(self, change: Change, spec: PipelineSpec, roster: Roster, places: LinkPlaces) -> None:
        self.change = change
        self._spec = spec
        self._roster = roster
        self._places = places

    def begin(self) -> list[Instruction]:
        """Write the plan down."""
        change = self.change
        plan = JournalRecord("planned", change.epoch, route=change.route, strategy=change.strategy)
        return [self._told(), WriteJournal(plan)]

    def journaled(self, event: Journaled) -> Step:
        """A record is on disk, or cannot be."""
        change = self.change
        if event.record.epoch != change.epoch:
            return _NOTHING
        match event.record.kind, change.phase:
            case "planned", ChangePhase.PLANNING if event.error:
                return Step([], Failure(f"the plan could not be written down: {event.error}"))
            case "planned", ChangePhase.PLANNING:
                entered = self.enter("plan on disk")
                return Step([*self._spawn(), *entered])
            case "commit", ChangePhase.COMMITTING if event.error:
                return Step([], Failure(f"the decision could not be written down: {event.error}"))
            case "commit", ChangePhase.COMMITTING:
                return Step([], Milestone.COMMITTED)
            case "released", ChangePhase.CLOSING if not event.error:
                change.go_on("release on disk")
                return Step([], Milestone.DONE)
            case _:
                return _NOTHING  # an unwritten "released" is written again by the resend timer

    def worker_up(self, worker: int) -> list[Instruction]:
        """A worker said hello: what it is to do."""
        return [*self._command(worker), *self._spawn()]

    def answered(self, message: object) -> Step:
        """A worker spoke of this epoch."""
        if isinstance(message, HandoffFailed):
            return self._handoff_failed(f"worker {message.worker}: {message.sentence}")
        if not isinstance(message, tuple(ANSWERS.values())):
            return _NOTHING  # progress, for whoever watches
        answer = cast("Answer", message)
        if isinstance(answer, Prepared):
            self._roster.kv_bytes[answer.worker] = answer.kv_bytes
        return self._phase_over() if self.change.note(answer) else _NOTHING

    def _handoff_failed(self, sentence: str) -> Step:
        if self.change.phase is not ChangePhase.COMMITTING:
            return Step([], Failure(sentence, hopeless=True))
        # It broke after its vote, and nobody knows yet whether the decision is on disk.
        self.change.doomed = self.change.doomed or sentence
        return _NOTHING

    def room_known(self, event: RoomKnown) -> Step:
        """The scheduler said what its requests need."""
        change = self.change
        if event.epoch != change.epoch or change.phase is not ChangePhase.ROOM:
            return _NOTHING
        refused = refusal(change, event)
        if refused:
            return Step([], Failure(refused))
        try:
            self._places.begin(change.epoch, {change.base.epoch} if change.base is not None else ())
            moves = transfers(change, self._spec, self._roster.facts, self._places)
            precopy = change.strategy == "precopy"
            change.opens = open_messages(change, moves, event.live, self._places, precopy=precopy)
        except RouteError as error:
            return Step([], Failure(str(error)))
        change.preempted = event.beyond
        # At once: a request that comes now is to fit too.
        return Step([LimitBlocks(change.kv_blocks), *self.enter("requests fit")])

    def resend(self) -> list[Instruction]:
        """Ask those again who have not answered."""
        if self.change.phase is ChangePhase.CLOSING:
            return [self._write_released()]
        return [command for worker in self.change.unanswered() for command in self._command(worker)]

    def enter(self, cause: str) -> list[Instruction]:
        """Go on to a phase in which workers have to answer, and tell them what to do."""
        self.change.go_on(cause)
        return [self._told(), *self.resend()]

    def cut_over(self) -> Instruction:
        """What the scheduler is to be told once the commit is on disk."""
        change = self.change
        if change.base is None:
            return BringUp(change.route, change.kv_blocks)
        return SwitchOver(change.route, change.leaving, change.kv_blocks, change.strategy == "recompute")

    def resume(self) -> list[Instruction]:
        """Go on in the place of a coordinator that ended: ask who is past the cut, or who gave the plan up."""
        return [self._told(), *self.resend()]

    def cross(self) -> list[Instruction]:
        """The scheduler was told to cut over. Each worker says so by itself when it is past the cut: nobody is asked yet."""
        self.change.go_on("commit on disk")
        return [self._told()]

    def _phase_over(self) -> Step:
        change = self.change
        match change.phase:
            case ChangePhase.LOADING:
                return self._ask_room()
            case ChangePhase.OPENING:
                change.go_on("all Prepared")
                decision = JournalRecord("commit", change.epoch, kv_blocks=change.kv_blocks)
                return Step([self._told(), WriteJournal(decision)])
            case ChangePhase.SWITCHING:
                return Step([], Milestone.CROSSED)
            case ChangePhase.RELEASING:
                change.go_on("all Released")
                return Step([self._write_released()])
            case _:
                change.go_on("all Aborted")
                return Step([], Milestone.ABORTED)

    def _ask_room(self) -> Step:
        change = self.change
        try:
            change.kv_blocks = blocks_of(change, self._spec.kv_blocks_max, self._spec.stated_bytes)
        except NoRoomError as error:
            return Step([], Failure(str(error), hopeless=True))
        change.go_on("all Loaded")
        return Step([AskRoom(change.epoch, change.kv_blocks)])

    def _spawn(self) -> list[Instruction]:
        """Start new workers: all at once where nothing serves, else one after another, so that those who serve feel one start."""
        stages = self.change.route.stages
        if self.change.phase is not ChangePhase.LOADING:
            return []
        if self.change.base is None:
            return self._roster.spawn(stages)
        if not all(self._roster.is_up.get(stage.worker, True) for stage in stages):
            return []
        return self._roster.spawn([stage for stage in stages if stage.worker not in self._roster][:1])

    def _command(self, worker: int) -> list[Instruction]:
        change = self.change
        if not self._roster.is_up.get(worker) or worker not in change.unanswered():
            return []
        message = change.command(worker, self._spec)
        return [] if message is None else [TellWorker(worker, cast("ToWorker", message))]

    def _told(self) -> Begun:
        return Begun(self.change.epoch, self.change.strategy, OUTWARD[self.change.phase])

    def _write_released(self) -> WriteJournal:
        return WriteJournal(JournalRecord("released", self.change.epoch))
