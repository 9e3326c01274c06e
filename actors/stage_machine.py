"""One worker's part in epoch after epoch, and the order in which it runs steps.

Rules:
 1. A worker runs plans in the order in which they come, one at a time, each exactly once; a `Cut` among them ends one epoch and
    begins the next, so every plan runs through the atoms of its own epoch.
 2. Behind the first stage a step starts when both its plan and its activation are here; they must name the same
    (epoch, step), and both arrive in step order, so anything else is a peer's mistake and ends the worker.
 3. No step of an epoch starts before every page that this worker is given for it has arrived. Who only gives pages away goes on
    at once: steps of the new epoch write to none of them.
 4. A command of the coordinator means the same the second time: what was done is answered again, not done again. One of a past
    epoch is dropped by name; preparing a newer epoch discards an older one that was never cut to.
 5. What an epoch needs is kept until a later epoch is released, or this one is aborted; an epoch that was cut to is never aborted.
 6. A cut that abandons drops the plans and activations of earlier epochs, finished or not: their pipeline is broken.
 7. Nothing is loaded while something is let go of: it might be what the next epoch needs, and is not free yet.
 8. Drain lets the plans that are here finish; then the worker is retired and accepts nothing.
 9. No clock, no socket, no thread here: events in, instructions out. An illegal event raises and changes nothing.

Phases of one epoch at one worker (the table is `worker_epoch.EPOCH_TRANSITIONS`; who only gives pages away skips the first two):

    loading --weights--> loaded --open--> opening --handoff ready--> prepared --cut comes--> cut --last old step--> switching
       '--------------------------------------------------------------'             switching --pages here--> switched
          abort, a newer epoch, a failure: discarded                                  switched --release--> released
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .messages import (
    Abort,
    Aborted,
    Activation,
    Confirm,
    CopyTotals,
    Cut,
    Drain,
    FromStage,
    HandoffFailed,
    Loaded,
    Open,
    Prepare,
    Prepared,
    Release,
    Released,
    StepPlan,
    Switched,
)
from .stage_events import (
    ActivationArrived,
    CloseEpochs,
    CutHandoff,
    Dropped,
    DropStale,
    Emit,
    EpochFailed,
    EpochOpened,
    Event,
    ForgetPages,
    Instruction,
    KeepOnly,
    Leave,
    OpenEpoch,
    PagesCrossed,
    RunStep,
    StartLoading,
    StepRan,
    Tell,
    WeightsLoaded,
)
from .transitions import IllegalTransitionError
from .worker_epoch import EPOCH_TRANSITIONS, Phase, WorkerEpoch


class StageProtocolError(Exception):
    """A peer sent what it must not send now; the sentence says what. The worker cannot go on; nothing was changed."""


Answer = Callable[[int], FromStage | None]
"""What to say when so many bytes were let go of; None for nothing."""


class StageMachine:
    """See the module's rules."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.retired = False
        self._serving: WorkerEpoch | None = None
        self._next: WorkerEpoch | None = None
        self._highest_epoch = -1
        self._queue: deque[StepPlan | Cut] = deque()
        self._running: StepPlan | None = None
        self._abandoned_below = -1
        self._droppings: deque[Answer] = deque()
        self._to_load: Prepare | None = None
        self._failed: HandoffFailed | None = None
        self._drain: Drain | None = None
        self._handlers: dict[type, Callable[..., list[Instruction]]] = {
            Prepare: self._prepare,
            WeightsLoaded: self._weights_loaded,
            Open: self._open,
            EpochOpened: self._opened,
            Cut: self._cut_arrived,
            PagesCrossed: self._pages_crossed,
            EpochFailed: self._epoch_failed,
            Confirm: self._confirm,
            Release: self._release,
            Abort: self._abort,
            Dropped: self._dropped,
            StepPlan: self._planned,
            ActivationArrived: self._arrived,
            StepRan: self._ran,
            Drain: self._drain_asked,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event; raises `StageProtocolError`, with nothing changed, where it may not come now."""
        if self.retired:
            return []  # what was under way when this worker left
        return self._handlers[type(event)](event)

    @property
    def epoch(self) -> int:
        """The epoch whose steps run now; -1 before the first cut."""
        return self._serving.epoch if self._serving is not None else -1

    @property
    def atoms(self) -> range:
        """The atoms of that epoch."""
        return self._serving.atoms if self._serving is not None else range(0)

    @property
    def running(self) -> StepPlan | None:
        """The plan that is being computed."""
        return self._running

    # --- the coordinator's commands and what follows from them ---

    def _prepare(self, event: Prepare) -> list[Instruction]:
        if (known := self._known(event.epoch)) is not None:
            return [Tell(known.loaded)] if known.loaded is not None else []
        if event.epoch <= self._highest_epoch:
            return self._too_late("Prepare", event.epoch)
        discarded = self._discard_next()
        atoms = range(event.first_atom, event.end_atom)
        self._next = WorkerEpoch(event.epoch, Phase.LOADING, atoms, event.stage)
        self._highest_epoch = event.epoch
        if self._droppings:
            self._to_load = event
            return discarded
        return [*discarded, StartLoading(event)]

    def _weights_loaded(self, event: WeightsLoaded) -> list[Instruction]:
        following = self._next
        if following is None or following.epoch != event.epoch:
            return self._keep_only(_silence)  # discarded meanwhile
        following.phase = self._after(event, following)
        following.loaded = Loaded(event.epoch, self.worker, event.facts)
        return [Tell(following.loaded)]

    def _open(self, event: Open) -> list[Instruction]:
        known = self._known(event.epoch)
        if known is not None and known.phase not in (Phase.LOADING, Phase.LOADED):
            return [Tell(known.prepared)] if known.prepared is not None else []
        if known is None and event.epoch <= self._highest_epoch:
            return self._too_late("Open", event.epoch)
        discarded: list[Instruction] = []
        if known is None:
            discarded = self._discard_next()
            known = self._next = WorkerEpoch(event.epoch, Phase.OPENING)
            self._highest_epoch = event.epoch
        else:
            known.phase = self._after(event, known)
        known.kv_blocks = event.kv_blocks
        known.has_upstream = bool(event.upstream)
        known.has_transfers = bool(event.transfers)
        known.takes_pages = any(transfer.acquirer == self.worker for transfer in event.transfers)
        return [*discarded, OpenEpoch(event, known.stage, known.atoms)]

    def _opened(self, event: EpochOpened) -> list[Instruction]:
        following = self._next
        if following is None or following.epoch != event.epoch:
            return []
        following.phase = self._after(event, following)
        following.prepared = Prepared(event.epoch, self.worker, event.kv_bytes)
        return [Tell(following.prepared)]

    def _epoch_failed(self, event: EpochFailed) -> list[Instruction]:
        known = self._known(event.epoch)
        if known is None:
            return []
        self._failed = HandoffFailed(event.epoch, self.worker, event.sentence)
        if known is not self._next or known.phase is Phase.CUT:
            return [Tell(self._failed)]
        return [*self._discard_next(), *self._keep_only(_silence), Tell(self._failed)]

    def _too_late(self, what: str, epoch: int) -> list[Instruction]:
        """A command for an epoch that is over here, perhaps because it failed and the coordinator did not hear of it."""
        if self._failed is not None and self._failed.epoch == epoch:
            return [Tell(self._failed)]
        return [DropStale(what, epoch, -1)]

    def _abort(self, event: Abort) -> list[Instruction]:
        aborted = Aborted(event.epoch, self.worker)
        known = self._known(event.epoch)
        if known is None:
            self._highest_epoch = max(self._highest_epoch, event.epoch)  # a late Prepare of it must not revive it
            return [Tell(aborted)]
        known.phase = self._after(event, known)
        return [*self._discard_next(), *self._keep_only(lambda _freed: aborted)]

    def _confirm(self, event: Confirm) -> list[Instruction]:
        known = self._known(event.epoch)
        if known is None:
            return [DropStale("Confirm", event.epoch, -1)]
        return [Tell(known.switched)] if known.switched is not None else []

    def _release(self, event: Release) -> list[Instruction]:
        known = self._known(event.epoch)
        if known is None and event.epoch < self.epoch:
            return [DropStale("Release", event.epoch, -1)]
        if known is None:
            raise StageProtocolError(f"epoch {event.epoch} was released; this worker never heard of it")
        again = known.phase is Phase.RELEASED
        known.phase = self._after(event, known)
        if again:
            return [Tell(known.released)] if known.released is not None else []

        def answer(freed_bytes: int) -> Released:
            known.released = Released(event.epoch, self.worker, freed_bytes)
            return known.released

        return [CloseEpochs(self._open_epochs()), *self._keep_only(answer)]

    def _keep_only(self, answer: Answer) -> list[Instruction]:
        """Let go of what neither epoch needs. Where a next epoch is being made all stays: its own release tidies up."""
        if self._next is not None:
            message = answer(0)
            return [Tell(message)] if message is not None else []
        self._droppings.append(answer)
        return [KeepOnly(self.atoms, self._serving.kv_blocks if self._serving is not None else 0)]

    def _dropped(self, event: Dropped) -> list[Instruction]:
        message = self._droppings.popleft()(event.freed_bytes)
        told: list[Instruction] = [Tell(message)] if message is not None else []
        if self._to_load is None or self._droppings:
            return told
        prepare, self._to_load = self._to_load, None
        return [*told, StartLoading(prepare)]

    def _discard_next(self) -> list[Instruction]:
        """Give up the epoch that is being made, if any; with its steps, if its cut waits in the queue."""
        if self._next is None:
            return []
        while self._queue and self._queue[-1].epoch >= self._next.epoch:
            self._queue.pop()
        self._next = self._to_load = None
        return [CloseEpochs(self._open_epochs())]

    def _open_epochs(self) -> tuple[int, ...]:
        return tuple(known.epoch for known in (self._serving, self._next) if known is not None)

    def _known(self, epoch: int) -> WorkerEpoch | None:
        return next(
            (known for known in (self._serving, self._next) if known is not None and known.epoch == epoch), None
        )

    def _after(self, event: Event, known: WorkerEpoch) -> Phase:
        """The phase that ``event`` leads to. Raises `StageProtocolError`."""
        try:
            return EPOCH_TRANSITIONS.after(known.phase, type(event).__name__)
        except IllegalTransitionError:
            raise StageProtocolError(
                f"{type(event).__name__} came while epoch {known.epoch} was {known.phase.value}"
            ) from None

    # --- the cut ---

    def _cut_arrived(self, cut: Cut) -> list[Instruction]:
        following = self._next
        if following is None or following.epoch != cut.epoch:
            if cut.epoch <= self._highest_epoch and self._known(cut.epoch) is None:
                return [DropStale("Cut", cut.epoch, cut.step)]
            raise StageProtocolError(f"the cut to epoch {cut.epoch} came; this worker prepared no such epoch")
        following.phase = self._after(cut, following)
        if cut.abandon:
            self._abandoned_below = cut.epoch
            self._queue.clear()
        self._queue.append(cut)
        return self._next_step()

    def _cross(self, cut: Cut) -> list[Instruction]:
        following = self._next
        assert following is not None
        self._serving, self._next = following, None
        following.phase = EPOCH_TRANSITIONS.after(following.phase, "last step before it")
        following.cut_step = cut.step
        closed: list[Instruction] = [CloseEpochs(self._open_epochs()), ForgetPages()] if cut.abandon else []
        if following.has_transfers:
            return [*closed, CutHandoff(cut), *self._next_step()]
        return [*closed, *self._become_switched(following, PagesCrossed(cut.epoch, CopyTotals()))]

    def _pages_crossed(self, event: PagesCrossed) -> list[Instruction]:
        known = self._serving
        if known is None or known.epoch != event.epoch:
            return []
        return self._become_switched(known, event)

    def _become_switched(self, known: WorkerEpoch, event: PagesCrossed) -> list[Instruction]:
        known.phase, copied = self._after(event, known), event.copied
        known.switched = Switched(known.epoch, self.worker, known.cut_step, copied)
        return [Tell(known.switched), *self._next_step()]

    # --- steps ---

    def _planned(self, plan: StepPlan) -> list[Instruction]:
        epoch = self._last_epoch_queued()
        given_up = self._known(plan.epoch) is None and plan.epoch <= self._highest_epoch
        if plan.epoch < epoch or given_up:
            return [DropStale("StepPlan", plan.epoch, plan.step)]
        if plan.epoch > epoch:
            raise StageProtocolError(f"a plan names epoch {plan.epoch}; the steps here are of epoch {epoch}")
        last = next((item for item in reversed(self._queue) if isinstance(item, StepPlan)), self._running)
        if last is not None and plan.step <= last.step:
            raise StageProtocolError(f"step {plan.step} was planned after step {last.step}")
        self._queue.append(plan)
        return self._next_step()

    def _last_epoch_queued(self) -> int:
        return self._queue[-1].epoch if self._queue else self.epoch

    def _arrived(self, event: ActivationArrived) -> list[Instruction]:
        header = event.header
        known = self._known(header.epoch)
        if known is None and header.epoch <= self._highest_epoch:
            return [DropStale("Activation", header.epoch, header.step)]
        if known is None or not known.has_upstream:
            raise StageProtocolError(
                f"an activation names epoch {header.epoch}, step {header.step}: nobody announced it"
            )
        known.activations.append(event)
        return self._next_step()

    def _ran(self, event: StepRan) -> list[Instruction]:
        plan, self._running = self._running, None
        if plan is None:
            raise StageProtocolError("a step ended that was not running")
        emit = [Emit(plan, event.output)] if plan.epoch >= self._abandoned_below else []
        return [*emit, *self._next_step()]

    def _next_step(self) -> list[Instruction]:
        """Begin what is first in the queue, if it can begin."""
        if self._running is not None:
            return []
        if not self._queue:
            return self._retire() if self._drain is not None else []
        head = self._queue[0]
        if isinstance(head, Cut):
            self._queue.popleft()
            return self._cross(head)
        serving = self._serving
        assert serving is not None
        awaits_pages = serving.takes_pages and serving.phase is Phase.SWITCHING
        if awaits_pages or (serving.has_upstream and not serving.activations):
            return []
        hidden = None
        if serving.has_upstream:
            _check_pair(head, serving.activations[0].header)
            hidden = serving.activations.popleft().hidden
        self._queue.popleft()
        self._running = head
        return [RunStep(head, serving.atoms, hidden)]

    def _drain_asked(self, event: Drain) -> list[Instruction]:
        self._drain = event
        return self._next_step()

    def _retire(self) -> list[Instruction]:
        assert self._drain is not None
        self.retired = True
        return [Leave(self._drain.reason)]


def _silence(_freed_bytes: int) -> None:
    return None


def _check_pair(plan: StepPlan, header: Activation) -> None:
    """Both queues are in step order, so their heads must be the same step."""
    if (plan.epoch, plan.step) != (header.epoch, header.step):
        raise StageProtocolError(
            f"the next plan is epoch {plan.epoch} step {plan.step}, the next activation epoch {header.epoch} step {header.step}"
        )
