"""What a coordinator that starts anew makes of the journal and of the workers that live: what to undo, what to drive to its end.

Pure. A plan without a decision is taken back; a decision is carried through, and everything told may have been told before.
"""

from __future__ import annotations

from dataclasses import dataclass

from .change import Change, ChangePhase
from .coordinator_events import Instruction, LimitBlocks, Start, TellWorker, WriteJournal
from .journal import Committed, JournalRecord, Planned
from .pipeline_spec import PipelineSpec
from .roster import Roster
from .route import STRATEGIES, Route

_ORPHANED = "the coordinator ended before it decided"


@dataclass(frozen=True, slots=True)
class Takeover:
    """``unfinished`` is a decided epoch whose old one was not let go of, or a plan that its workers are to be told is taken back.

    ``is_broken``: no steps can run as things are.
    """

    instructions: list[Instruction]
    unfinished: Change | None
    is_broken: bool


def forget_undecided(event: Start) -> list[Instruction]:
    """The record that an undecided plan will not be."""
    undecided = event.journal.undecided
    return [] if undecided is None else [WriteJournal(JournalRecord("aborted", undecided.epoch, reason=_ORPHANED))]


def take_over(event: Start, committed: Committed, roster: Roster, spec: PipelineSpec) -> Takeover:
    """How to go on with ``committed``, whose workers are those in ``roster``."""
    route = committed.route
    is_live = committed.strategy in STRATEGIES and committed.strategy != "restart"
    idle = event.scheduler_epoch < 0 and (is_live or event.journal.released)
    broken = any(worker not in roster for worker in route.workers)
    instructions: list[Instruction] = []
    before = event.journal.before if is_live and not event.journal.released and not (idle or broken) else None
    needed = {*route.workers, *(before.workers if before else ())}
    strays = [worker for worker in roster.is_up if worker not in needed]
    instructions.extend(roster.retire(strays, kill=True, reason="no epoch that was decided needs this worker"))
    if idle or broken:
        return Takeover(instructions, None, is_broken=True)
    instructions.extend(ask_facts(route, roster, spec))
    undecided = event.journal.undecided
    if not event.journal.released:
        change = Change(route, committed.strategy, before.route if before else None, kv_blocks=committed.kv_blocks)
        change.phase = ChangePhase.SWITCHING
        # Whoever lacks pages of a worker that is gone will say so.
        change.gone.update(worker for worker in change.leaving if worker not in roster)
        return Takeover(instructions, change, is_broken=False)
    if undecided is not None:
        return Takeover([*instructions, LimitBlocks(None)], _taken_back(undecided, route, roster), is_broken=False)
    return Takeover(instructions, None, is_broken=False)


def ask_facts(route: Route, roster: Roster, spec: PipelineSpec) -> list[Instruction]:
    """Let workers tell their facts again, which the journal does not hold: those that did not yet."""
    lacking = [(stage, worker) for stage, worker in enumerate(route.workers) if worker not in roster.facts]
    return [TellWorker(worker, spec.prepare_message(route, stage)) for stage, worker in lacking]


def _taken_back(plan: Planned, route: Route, roster: Roster) -> Change:
    """The abort of ``plan``; its newcomers are gone with the other strays."""
    change = Change(plan.route, plan.strategy, route, reason=_ORPHANED)
    change.phase = ChangePhase.ABORTING
    change.gone.update(worker for worker in plan.workers if worker not in roster)
    return change
