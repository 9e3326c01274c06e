"""Protocol bugs planted on purpose, each one rule replaced, to show that the checks find them.

A mutation names the classes that the world is built of; all but one are the real ones. None of them is imported by anything but
the simulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from ...actors.change import IRREVOCABLE, Change, ChangePhase
from ...actors.change_machine import ChangeMachine, Milestone, Step
from ...actors.coordinator_events import Instruction as CoordinatorInstruction
from ...actors.coordinator_events import Start, TimerFired, WorkerSaid
from ...actors.coordinator_machine import CoordinatorMachine
from ...actors.engine_port import LoadProgressed
from ...actors.event_log import EventLog
from ...actors.layer_pages import LayerPages
from ...actors.messages import Abort, Confirm, CopyTotals, Loaded, Open, Prepare, Prepared, Released, StepPlan, Switched
from ...actors.page_ledger import PageLedger
from ...actors.scheduler_events import (
    Cancel,
    LimitBlocks,
    PipelineUp,
    SendCut,
    SendStep,
)
from ...actors.scheduler_events import Instruction as SchedulerInstruction
from ...actors.scheduler_machine import SchedulerLimits, SchedulerMachine
from ...actors.stage_events import CutHandoff, EpochInstruction, KeepOnly, Tell
from ...actors.stage_events import Instruction as StageInstruction
from ...actors.stage_machine import StageMachine
from ...actors.step_plan import Sequence as PlannedSequence
from ...actors.worker_epoch import Phase
from ...runtime.interface import BLOCK_TOKENS, EngineSpec, StageFacts
from ...runtime.page_checksum import page_checksum
from .actors import WorldEngine, WorldScheduler, WorldStage

# --- the coordinator -------------------------------------------------------------------------------------------------


class _CommitsUnwritten(ChangeMachine):
    def _phase_over(self) -> Step:
        step = super()._phase_over()
        return Step(step.instructions, Milestone.COMMITTED) if self.change.phase is ChangePhase.COMMITTING else step


class _ReleasesEarly(ChangeMachine):
    def answered(self, message: object) -> Step:
        step = super().answered(message)
        first = isinstance(message, Switched) and self.change.phase is ChangePhase.SWITCHING and step.outcome is None
        return Step(step.instructions, Milestone.CROSSED) if first else step


class CommitBeforeJournal(CoordinatorMachine):
    """Lets the scheduler cut over before the decision is on disk."""

    def _make(self, change: Change) -> ChangeMachine:
        self._making = _CommitsUnwritten(change, self.spec, self.roster, self._places)
        return self._making


class ReleaseEarly(CoordinatorMachine):
    """Releases the old epoch when the first worker is past the cut."""

    def _make(self, change: Change) -> ChangeMachine:
        self._making = _ReleasesEarly(change, self.spec, self.roster, self._places)
        return self._making


class AskOnce(CoordinatorMachine):
    """Never sends a command again."""

    def _timer(self, event: TimerFired) -> list[CoordinatorInstruction]:
        return [] if event.timer == "resend" else super()._timer(event)


class AbortAfterCommit(CoordinatorMachine):
    """Goes back to the old route when a worker is lost after the decision."""

    def _recover(self, sentence: str, *, hopeless: bool = False) -> list[CoordinatorInstruction]:
        making = self._making
        if making is not None and making.change.base is not None and making.change.phase in IRREVOCABLE:
            self.route = making.change.base
            return self._abort(making, sentence)
        return super()._recover(sentence, hopeless=hopeless)


class TakeStaleVotes(CoordinatorMachine):
    """Takes an answer about an earlier epoch for one about the epoch that is being made."""

    def _worker_said(self, event: WorkerSaid) -> list[CoordinatorInstruction]:
        message, change = event.message, self.change
        if isinstance(message, Loaded | Prepared | Switched | Released) and change is not None:
            message = msgspec.structs.replace(message, epoch=change.epoch)
        return super()._worker_said(WorkerSaid(message))


class ForgetCommit(CoordinatorMachine):
    """Takes a decision whose release was not written down for one that was never made."""

    def _start(self, event: Start) -> list[CoordinatorInstruction]:
        state = event.journal
        if state.committed is not None and not state.released and state.before is not None:
            state = msgspec.structs.replace(state, committed=state.before, before=None, released=True)
        return super()._start(Start(state, event.alive, event.scheduler_epoch))


# --- the scheduler ---------------------------------------------------------------------------------------------------


class _ForgetsAbandon(SchedulerMachine):
    def _pipeline_up(self, event: PipelineUp) -> Iterator[SchedulerInstruction]:
        for instruction in super()._pipeline_up(event):
            assert isinstance(instruction, SendCut)
            yield SendCut(msgspec.structs.replace(instruction.cut, abandon=False))


class _ForgetsSampling(SchedulerMachine):
    def _begin(self, up: PipelineUp, *, live: bytes, abandon: bool) -> SendCut:
        admitted = [request for request in self._running.values() if request.sampling_admitted]
        cut = super()._begin(up, live=live, abandon=abandon)
        for request in admitted:
            request.sampling_admitted = True
        return cut


class _DeliversTwice(SchedulerMachine):
    def _requeue(self, request: PlannedSequence, cause: str) -> None:
        super()._requeue(request, cause)
        if request.outputs > 0:
            request.tokens.pop()


class _TakesTheTooLarge(SchedulerMachine):
    def _limit_blocks(self, event: LimitBlocks) -> Iterator[SchedulerInstruction]:
        yield from super()._limit_blocks(event)
        self._admission.promise(None)


class _LeaksBlocks(SchedulerMachine):
    def _end(self, request: PlannedSequence) -> None:
        del self._running[request.id]
        self._retire(request)


class _ReusesBlocks(SchedulerMachine):
    def _cancel(self, event: Cancel) -> Iterator[SchedulerInstruction]:
        self._ledger.release(event.request)
        yield from super()._cancel(event)


class _MutatedScheduler(WorldScheduler):
    """A scheduler with another machine."""

    machine_type: type[SchedulerMachine] = SchedulerMachine

    def __init__(self, limits: SchedulerLimits, log: EventLog, *, context_tokens: int) -> None:
        super().__init__(limits, log, context_tokens=context_tokens)
        self._machine = self.machine_type(limits)


class ForgetAbandon(_MutatedScheduler):
    """Begins a recovered epoch without abandoning the steps of the broken one."""

    machine_type = _ForgetsAbandon


class ForgetSampling(_MutatedScheduler):
    """Does not tell the new last stage of the sampling of running requests."""

    machine_type = _ForgetsSampling


class DeliverTwice(_MutatedScheduler):
    """Delivers the last token of a request that is begun anew a second time."""

    machine_type = _DeliversTwice


class LeakBlocks(_MutatedScheduler):
    """Does not take the blocks of a request back at its end."""

    machine_type = _LeaksBlocks


class TakeTooLarge(_MutatedScheduler):
    """Takes requests that the epoch in the making, whose blocks were counted, cannot hold."""

    machine_type = _TakesTheTooLarge


class ReuseTooSoon(_MutatedScheduler):
    """Frees the blocks of a cancelled request while a step that writes to them is under way."""

    machine_type = _ReusesBlocks


class AdmitWithoutHistory(WorldScheduler):
    """Admits a request to sampling in a new epoch without the tokens that it has."""

    def _perform(self, instruction: SchedulerInstruction) -> None:
        if isinstance(instruction, SendStep):
            admit = tuple(
                msgspec.structs.replace(one, tokens=one.tokens[: 4 * one.prompt_tokens])
                for one in instruction.plan.admit
            )
            instruction = SendStep(msgspec.structs.replace(instruction.plan, admit=admit))
        super()._perform(instruction)


# --- the workers -----------------------------------------------------------------------------------------------------


class SkipDelta(WorldStage):
    """Sends nothing after the cut but the end."""

    async def _change_epochs(self, instruction: EpochInstruction) -> None:
        if isinstance(instruction, CutHandoff):
            instruction = CutHandoff(msgspec.structs.replace(instruction.cut, live=b""))
        await super()._change_epochs(instruction)


class DropTooMuch(WorldStage):
    """Lets go of the last atom that it is to keep."""

    async def _keep_only(self, atoms: range, blocks: int) -> None:
        await super()._keep_only(atoms[:-1], blocks)


class RunBeforePages(StageMachine):
    """Runs steps of an epoch before the pages that it is given for it are here."""

    def _next_step(self) -> list[StageInstruction]:
        serving = self._serving
        if serving is None or serving.phase is not Phase.SWITCHING:
            return super()._next_step()
        serving.phase = Phase.SWITCHED
        instructions = super()._next_step()
        serving.phase = Phase.SWITCHING
        return instructions


class ReviveEpoch(StageMachine):
    """Takes a late command of an epoch that was given up for a new one."""

    def _prepare(self, event: Prepare) -> list[StageInstruction]:
        if self._known(event.epoch) is None:
            self._highest_epoch = min(self._highest_epoch, event.epoch - 1)
        return super()._prepare(event)


class ConfirmEarly(StageMachine):
    """Says that it is past a cut that has not come."""

    def _confirm(self, event: Confirm) -> list[StageInstruction]:
        return [Tell(Switched(event.epoch, self.worker, 0, CopyTotals()))]


class ShrinkAtAbort(StageMachine):
    """Lets go of the blocks that an epoch which comes to nothing would not have had."""

    def _abort(self, event: Abort) -> list[StageInstruction]:
        known = self._known(event.epoch)
        blocks = known.kv_blocks if known is not None and known.prepared is not None else None
        return [
            KeepOnly(each.atoms, min(each.blocks, blocks)) if isinstance(each, KeepOnly) and blocks else each
            for each in super()._abort(event)
        ]


class VoteEarly(StageMachine):
    """Votes before it has room and links."""

    def _open(self, event: Open) -> list[StageInstruction]:
        return [*super()._open(event), Tell(Prepared(event.epoch, self.worker, 0))]


class LoseDirtyBit(PageLedger):
    """Takes a block that was written to once for full, and does not notice when it is written to again."""

    def end_step(self, plan: StepPlan) -> None:
        """See `PageLedger`."""
        before = self.version.copy()
        super().end_step(plan)
        self.filled[self.filled > 0] = BLOCK_TOKENS
        rewritten = np.flatnonzero(before > 0)
        self.version[rewritten] = before[rewritten]


class MiscountPages(WorldEngine):
    """Says of every layer that has pages that it has as many as the one with the most."""

    async def load(self, spec: EngineSpec, atoms: range, progress: LoadProgressed) -> StageFacts:
        """See `EnginePort`."""
        facts = await super().load(spec, atoms, progress)
        most = max(facts.blocks_held, default=0)
        return msgspec.structs.replace(facts, blocks_held=tuple(held and most for held in facts.blocks_held))


class IgnoreChecksum(WorldEngine):
    """Takes pages whatever their checksum."""

    async def scatter_pages(self, pages: Sequence[LayerPages], data: memoryview, checksum: int) -> bool:  # noqa: ARG002
        """See `EnginePort`."""
        return await super().scatter_pages(pages, data, page_checksum(data))


class ForgetWhenReserving(WorldEngine):
    """Loses what pages held when it makes room for another epoch."""

    async def reserve(self, atoms: range, blocks: int) -> int:
        """See `EnginePort`."""
        self._pages.clear()
        return await super().reserve(atoms, blocks)


# --- the list --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mutation:
    """A name, and the classes to build the world of."""

    name: str
    coordinator_machine: type[CoordinatorMachine] = CoordinatorMachine
    scheduler: type[WorldScheduler] = WorldScheduler
    stage: type[WorldStage] = WorldStage
    stage_machine: type[StageMachine] = StageMachine
    pages: type[PageLedger] = PageLedger
    engine: type[WorldEngine] = WorldEngine

    @property
    def rule(self) -> str:
        """What is wrong with it, in a sentence."""
        parts: tuple[type, ...] = (
            self.coordinator_machine,
            self.scheduler,
            self.stage,
            self.stage_machine,
            self.pages,
            self.engine,
        )
        return next((part.__doc__ or "" for part in parts if part.__module__ == __name__), "")


NOTHING_PLANTED = Mutation("")
MUTATIONS = {
    mutation.name: mutation
    for mutation in (
        Mutation("commit-before-journal", coordinator_machine=CommitBeforeJournal),
        Mutation("release-early", coordinator_machine=ReleaseEarly),
        Mutation("ask-once", coordinator_machine=AskOnce),
        Mutation("abort-after-commit", coordinator_machine=AbortAfterCommit),
        Mutation("take-stale-votes", coordinator_machine=TakeStaleVotes),
        Mutation("forget-commit", coordinator_machine=ForgetCommit),
        Mutation("forget-abandon", scheduler=ForgetAbandon),
        Mutation("forget-sampling", scheduler=ForgetSampling),
        Mutation("deliver-twice", scheduler=DeliverTwice),
        Mutation("leak-blocks", scheduler=LeakBlocks),
        Mutation("reuse-too-soon", scheduler=ReuseTooSoon),
        Mutation("take-too-large", scheduler=TakeTooLarge),
        Mutation("admit-without-history", scheduler=AdmitWithoutHistory),
        Mutation("skip-delta", stage=SkipDelta),
        Mutation("drop-too-much", stage=DropTooMuch),
        Mutation("run-before-pages", stage_machine=RunBeforePages),
        Mutation("revive-epoch", stage_machine=ReviveEpoch),
        Mutation("confirm-early", stage_machine=ConfirmEarly),
        Mutation("shrink-at-abort", stage_machine=ShrinkAtAbort),
        Mutation("vote-early", stage_machine=VoteEarly),
        Mutation("lose-dirty-bit", pages=LoseDirtyBit),
        Mutation("miscount-pages", engine=MiscountPages),
        Mutation("ignore-checksum", engine=IgnoreChecksum),
        Mutation("forget-when-reserving", engine=ForgetWhenReserving),
    )
}
