"""One epoch in the making: what it is to be, how far it has come, and who has not answered yet.

Pure bookkeeping of `coordinator_machine`; it decides nothing. Owns the rule which command stands for which phase, so that an
unanswered one can be sent again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ..runtime.interface import StageFacts
from .coordinator_events import Refactor
from .link_place import LinkPlaces
from .messages import (
    Abort,
    Aborted,
    Confirm,
    CopyTotals,
    Loaded,
    Open,
    Prepared,
    Release,
    Released,
    Switched,
    Transfer,
)
from .pipeline_spec import PipelineSpec
from .refactor import RefactorRefusedError
from .route import STRATEGIES, Route, RouteError, moved_layers
from .transitions import Transitions


class ChangePhase(enum.Enum):
    """How far a change has come. From COMMITTED on there is no way back."""

    PLANNING = "planning"
    LOADING = "loading"
    ROOM = "room"
    OPENING = "opening"
    COMMITTING = "committing"
    SWITCHING = "switching"
    RELEASING = "releasing"
    CLOSING = "closing"
    DONE = "done"
    ABORTING = "aborting"
    ABORTED = "aborted"


CHANGE_TRANSITIONS = Transitions(
    "the making of one epoch",
    ChangePhase.PLANNING,
    {
        (ChangePhase.PLANNING, "plan on disk"): ChangePhase.LOADING,
        (ChangePhase.LOADING, "all Loaded"): ChangePhase.ROOM,
        (ChangePhase.ROOM, "requests fit"): ChangePhase.OPENING,
        (ChangePhase.OPENING, "all Prepared"): ChangePhase.COMMITTING,
        (ChangePhase.COMMITTING, "commit on disk"): ChangePhase.SWITCHING,
        (ChangePhase.SWITCHING, "all Switched"): ChangePhase.RELEASING,
        (ChangePhase.RELEASING, "all Released"): ChangePhase.CLOSING,
        (ChangePhase.CLOSING, "release on disk"): ChangePhase.DONE,
        **{
            (phase, "failure"): ChangePhase.ABORTING
            for phase in (
                ChangePhase.PLANNING,
                ChangePhase.LOADING,
                ChangePhase.ROOM,
                ChangePhase.OPENING,
                ChangePhase.COMMITTING,
            )
        },
        (ChangePhase.ABORTING, "all Aborted"): ChangePhase.ABORTED,
    },
)
"""A failure from SWITCHING on, or of a change with no base, ends the making; `coordinator_machine` recovers."""


Answer = Loaded | Prepared | Switched | Released | Aborted

ANSWERS: dict[ChangePhase, type[Answer]] = {
    ChangePhase.LOADING: Loaded,
    ChangePhase.OPENING: Prepared,
    ChangePhase.SWITCHING: Switched,
    ChangePhase.RELEASING: Released,
    ChangePhase.ABORTING: Aborted,
}
"""What every worker concerned has to say before the phase is over."""

IRREVOCABLE = frozenset({ChangePhase.SWITCHING, ChangePhase.RELEASING, ChangePhase.CLOSING})
"""The decision is on disk: whatever fails now, the new route is the one to restore."""


@dataclass(slots=True)
class Change:
    """``base`` is the route that serves meanwhile, None for a *cold* change: nothing serves, and no KV survives."""

    route: Route
    strategy: str
    base: Route | None
    allow_preempt: bool = False
    phase: ChangePhase = ChangePhase.PLANNING
    kv_blocks: int = 0
    preempted: int = 0
    opens: dict[int, Open] = field(default_factory=dict)
    answers: dict[type[Answer], dict[int, Answer]] = field(default_factory=lambda: {t: {} for t in ANSWERS.values()})
    gone: set[int] = field(default_factory=set)
    reason: str = ""
    doomed: str = ""

    @property
    def epoch(self) -> int:
        """The epoch that is being made."""
        return self.route.epoch

    @property
    def leaving(self) -> tuple[int, ...]:
        """Workers of the base that the route lacks."""
        return tuple(worker for worker in self.base.workers if worker not in self.route.workers) if self.base else ()

    def go_on(self, cause: str) -> None:
        """Enter the phase that ``cause`` leads to. Raises `IllegalTransitionError`."""
        self.phase = CHANGE_TRANSITIONS.after(self.phase, cause)

    def concerned(self) -> tuple[int, ...]:
        """The workers that have to answer in the present phase."""
        if self.phase is ChangePhase.LOADING or self.phase is ChangePhase.RELEASING:
            workers: tuple[int, ...] = self.route.workers
        else:
            workers = (*self.route.workers, *self.leaving)
        return tuple(worker for worker in workers if worker not in self.gone)

    def unanswered(self) -> tuple[int, ...]:
        """Those of them that have not."""
        answer = ANSWERS.get(self.phase)
        return () if answer is None else tuple(w for w in self.concerned() if w not in self.answers[answer])

    def note(self, answer: Answer) -> bool:
        """Take an answer in; whether the phase is over for it."""
        if type(answer) is not ANSWERS.get(self.phase) or answer.worker not in self.concerned():
            return False  # of a phase that is over: told twice
        self.answers[type(answer)][answer.worker] = answer
        return not self.unanswered()

    def facts(self, worker: int) -> StageFacts | None:
        """What the worker said of its atoms of this epoch."""
        loaded = self.answers[Loaded].get(worker)
        return loaded.facts if isinstance(loaded, Loaded) else None

    def command(self, worker: int, spec: PipelineSpec) -> object | None:
        """What ``worker`` is to be told in the present phase."""
        match self.phase:
            case ChangePhase.LOADING:
                stage = self.route.stage_of(worker)
                return None if stage is None else spec.prepare_message(self.route, stage)
            case ChangePhase.OPENING:
                return self.opens.get(worker)
            case ChangePhase.SWITCHING:
                return Confirm(self.epoch)
            case ChangePhase.RELEASING:
                return Release(self.epoch)
            case ChangePhase.ABORTING:
                return Abort(self.epoch, self.reason)
            case _:
                return None

    def cut_step(self) -> int:
        """The first step of the epoch, as the workers say; -1 before they do."""
        return max((a.step for a in self.answers[Switched].values() if isinstance(a, Switched)), default=-1)

    def copied(self) -> CopyTotals:
        """What all donors sent together; rounds and residual tokens are the most of any."""
        totals = [answer.copied for answer in self.answers[Switched].values() if isinstance(answer, Switched)]
        return CopyTotals(
            sent_bytes=sum(total.sent_bytes for total in totals),
            resent_bytes=sum(total.resent_bytes for total in totals),
            final_bytes=sum(total.final_bytes for total in totals),
            rounds=max((total.rounds for total in totals), default=0),
            residual_tokens=max((total.residual_tokens for total in totals), default=0),
        )


def wanted_route(event: Refactor, serving: int, epoch: int, atoms: int) -> Route:
    """The route of ``epoch`` that a refactoring asks for while ``serving`` serves. Raises `RefactorRefusedError`."""
    if event.based_on != serving:
        raise RefactorRefusedError(
            f"the plan was made for epoch {event.based_on}; epoch {serving} serves now: plan anew"
        )
    if event.strategy not in STRATEGIES:
        raise RefactorRefusedError(f"{event.strategy!r} is no strategy; choose one of {', '.join(STRATEGIES)}")
    route = Route(epoch, event.stages)
    try:
        route.check(atoms)
    except RouteError as error:
        raise RefactorRefusedError(str(error)) from None
    return route


def transfers(change: Change, spec: PipelineSpec, held: dict[int, StageFacts], places: LinkPlaces) -> list[Transfer]:
    """The page transfers of a live change that copies.

    ``held`` says what each worker holds now. Raises `RouteError` where donor and acquirer keep their pages differently, or
    have no place to meet.
    """
    if change.base is None or change.strategy not in ("precopy", "stop-copy"):
        return []
    result = []
    device = {stage.worker: stage.device for stage in (*change.base.stages, *change.route.stages)}
    moves = moved_layers(change.base, change.route, dict(enumerate(spec.layers_of)))
    for (donor, acquirer), layers in moves.items():
        given, taken = held[donor], change.facts(acquirer)
        assert taken is not None
        if given.page_layout != taken.page_layout:
            raise RouteError(
                f"worker {donor} keeps its pages as {given.page_layout}, worker {acquirer} as {taken.page_layout}: KV cannot "
                "move between them; use the strategy recompute"
            )
        sizes = dict(zip(taken.layers, taken.page_bytes, strict=True))
        place = places.place(change.epoch, f"pages-{donor}-{acquirer}", device[acquirer], device[donor])
        result.append(Transfer(donor, acquirer, place, layers, tuple(sizes[layer] for layer in layers)))
    return result


def open_messages(
    change: Change, moves: list[Transfer], live: bytes, places: LinkPlaces, *, precopy: bool
) -> dict[int, Open]:
    """What each worker of a change is told to open. Raises `RouteError` where two neighbours have no place to meet."""
    opens = {}
    stages = change.route.stages
    hops = {
        stage: places.place(change.epoch, f"activations-{stage}", stages[stage].device, stages[stage - 1].device)
        for stage in range(1, len(stages))
    }
    for worker in (*change.route.workers, *change.leaving):
        stage = change.route.stage_of(worker)
        opens[worker] = Open(
            epoch=change.epoch,
            kv_blocks=change.kv_blocks,
            upstream=hops.get(stage) if stage is not None else None,
            downstream=hops.get(stage + 1) if stage is not None else None,
            transfers=tuple(move for move in moves if worker in (move.donor, move.acquirer)),
            precopy=precopy,
            live=live,
            donors=len({move.donor for move in moves}),
        )
    return opens
