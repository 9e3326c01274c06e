"""The scheduler's decisions: admission, continuous batching, block tables, preemption, and the end of each request.

Rules:
 1. Steps are numbered in one total order and planned once; every stage runs exactly the planned batch.
 2. A request is in at most one step under way; about ``depth`` steps are under way at once.
 3. A request holds blocks for every token whose KV is written or under way, and for no other; it gives all of them back
    at its end, which waits for the result of a step it is in.
 4. A token is delivered once, with its output index; the next one is planned only after that.
 5. A request that was preempted keeps its tokens and is prefilled again from prompt + tokens (oldest first).
 6. An epoch begins with a cut among the plans: every step before it is of earlier epochs, every one after it of this one.
    Requests cross a cut with their blocks; where KV does not cross (a broken pipeline, a change that says so), they are
    prefilled again. Either way the last stage is told of their sampling anew.
 7. A cut to fewer blocks waits until no request holds one that will not be there; their holders are preempted. From when its
    blocks are counted no request is taken that would not fit them.
 8. Nothing here reads a clock, a socket or a random number: events in, instructions out.

A request's state is where it is: in ``_waiting`` (no blocks) or in ``_running`` (blocks held); both keep arrival order.

    absent --submit--> waiting --planned--> running --last token, stop, cancel--> absent
                          ^-preempted, broken--'        either --pipeline gone for good--> absent, failed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..policies.batching import BatchLimits, Candidate, Share, choose_batch
from .admission import Admission, outgrown
from .block_ledger import BlockLedger
from .generation import Finish, TokenEvent
from .messages import Cut, StepPlan
from .scheduler_events import (
    Cancel,
    Deliver,
    Event,
    Fail,
    Instruction,
    LimitBlocks,
    PipelineDown,
    PipelineInterrupted,
    PipelineSwitch,
    PipelineUp,
    Requeued,
    SendCut,
    SendStep,
    StepDone,
    Submit,
)
from .step_plan import PlannedRow, Sequence, blocks_for, plan_step


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of one pipeline's scheduler. ``queue_requests_max`` counts waiting requests, ``running`` those with blocks."""

    queue_requests_max: int = 256
    running_requests_max: int = 128
    batch: BatchLimits = field(default_factory=BatchLimits)


class SchedulerError(Exception):
    """An event that cannot happen in this state: a bug of ours or of a stage. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class SchedulerCounts:
    """A snapshot for `flexpipe ps` and metrics."""

    waiting: int
    running: int
    steps_under_way: int
    kv_blocks: int
    kv_blocks_used: int
    preemptions: int
    reprefills: int
    lost: int
    epoch: int


class SchedulerMachine:
    """See the module's rules. ``handle(event)`` returns the instructions to carry out, in order."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self._waiting: dict[int, Sequence] = {}
        self._running: dict[int, Sequence] = {}
        self._steps: dict[int, tuple[StepPlan, tuple[Share, ...]]] = {}
        self._pipeline: PipelineUp | None = None
        self._down: PipelineDown | PipelineInterrupted = PipelineDown("not_ready", "the pipeline is starting")
        self._switch: PipelineSwitch | None = None  # one that cannot happen yet
        self._ledger = BlockLedger(0)
        self._admission = Admission(limits.queue_requests_max)
        self._retired: list[int] = []
        self._requeued: list[Requeued] = []  # not told yet
        self._next_step = 0
        self._preemptions = 0
        self._reprefills = 0
        self._lost = 0
        self._handlers: dict[type, Callable[..., Iterator[Instruction]]] = {
            Submit: self._submit,
            Cancel: self._cancel,
            PipelineUp: self._pipeline_up,
            PipelineSwitch: self._pipeline_switch,
            LimitBlocks: self._limit_blocks,
            PipelineInterrupted: self._interrupted,
            PipelineDown: self._pipeline_down,
            StepDone: self._step_done,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event. Raises `SchedulerError` where it is illegal, before anything changed."""
        return [*self._handlers[type(event)](event), *self._cross(), *self._plan_steps(), *self._tell_requeued()]

    def counts(self) -> SchedulerCounts:
        """How much there is of everything."""
        return SchedulerCounts(
            waiting=len(self._waiting),
            running=len(self._running),
            steps_under_way=len(self._steps),
            kv_blocks=self._ledger.capacity,
            kv_blocks_used=self._ledger.used,
            preemptions=self._preemptions,
            reprefills=self._reprefills,
            lost=self._lost,
            epoch=self._pipeline.epoch if self._pipeline else -1,
        )

    @property
    def context_tokens(self) -> int:
        """Longest prompt + output that one request may have: the model's context, or what fits all KV blocks."""
        return self._admission.context_tokens

    def held_blocks(self) -> bytes:
        """A bit per block, little-endian: those that requests hold now."""
        return self._ledger.held_bits()

    def beyond(self, blocks: int) -> int:
        """How many requests would have to be prefilled again if there were only ``blocks`` blocks."""
        return len(self._ledger.holders_beyond(blocks))

    def largest_blocks(self) -> int:
        """Blocks that the largest request may come to need: its prompt and all tokens that it may have."""
        return max((r.blocks_max for r in (*self._running.values(), *self._waiting.values())), default=0)

    def check(self) -> None:
        """Raise unless the books balance; cheap enough to run whenever the scheduler is idle."""
        self._ledger.check(self._running)
        if set(self._waiting) & set(self._running):
            raise SchedulerError("a request is waiting and running at once")
        in_steps = [request for plan, _ in self._steps.values() for request in plan.requests]
        flagged = [r.id for r in self._running.values() if r.in_step]
        if sorted(in_steps) != sorted(flagged):
            raise SchedulerError("the steps under way and the requests in them disagree")

    # --- events ---

    def _submit(self, event: Submit) -> Iterator[Instruction]:
        if event.request in self._waiting or event.request in self._running:
            raise SchedulerError(f"request {event.request} was submitted twice")
        is_new = event.outputs is None  # or it waited in another scheduler already
        down = self._down if self._pipeline is None and isinstance(self._down, PipelineDown) else None
        refusal = self._admission.refusal(event.spec, waiting=len(self._waiting) if is_new else 0, down=down)
        if refusal is None:
            self._waiting[event.request] = Sequence(event.request, event.spec, event.tokens)
        else:
            yield Fail(event.request, *refusal)

    def _cancel(self, event: Cancel) -> Iterator[Instruction]:
        if (waiting := self._waiting.pop(event.request, None)) is not None:
            self._retire(waiting)
        elif (request := self._running.get(event.request)) is not None:
            request.cancelled = True
            if not request.in_step:
                self._end(request)
        yield from ()

    def _pipeline_up(self, event: PipelineUp) -> Iterator[Instruction]:
        if self._pipeline is not None:
            if self._pipeline.epoch == event.epoch:
                return  # told twice
            raise SchedulerError(f"epoch {event.epoch} came up while epoch {self._pipeline.epoch} serves")
        self._ledger = BlockLedger(event.kv_blocks)
        for request in [r for r in self._waiting.values() if r.blocks_max > event.kv_blocks]:
            del self._waiting[request.id]
            self._retire(request)
            self._lost += 1
            yield Fail(request.id, "stage_lost", outgrown(request.blocks_max, event.kv_blocks))
        yield self._begin(event, live=b"", abandon=True)

    def _pipeline_switch(self, event: PipelineSwitch) -> Iterator[Instruction]:
        if self._pipeline is None:
            raise SchedulerError(f"a cut to epoch {event.epoch} was asked for while no pipeline serves")
        if event.epoch > self._pipeline.epoch:
            self._switch = event
            self._ledger.limit(min(event.kv_blocks, self._ledger.capacity))
        yield from ()

    def _limit_blocks(self, event: LimitBlocks) -> Iterator[Instruction]:
        capacity = self._ledger.capacity
        self._admission.promise(event.blocks)
        self._ledger.limit(capacity if event.blocks is None else min(event.blocks, capacity))
        yield from ()

    def _cross(self) -> Iterator[Instruction]:
        """Preempt holders of blocks beyond the limit as they come out of their steps; cut as soon as nothing stands against it."""
        if self._pipeline is None:
            return
        for holder in self._ledger.holders_beyond(self._ledger.limit_blocks):
            if not self._running[holder].in_step:
                self._preempt(self._running[holder])
        switch = self._switch
        if switch is None or self._ledger.holders_beyond(switch.kv_blocks):
            return
        if switch.reprefill:
            if self._steps:
                return
            self._begin_anew("recomputed")
        self._ledger.resize(switch.kv_blocks)
        up = PipelineUp(switch.epoch, switch.depth, switch.kv_blocks, self._pipeline.context_tokens)
        yield self._begin(up, live=self._ledger.held_bits(), abandon=False)

    def _begin(self, up: PipelineUp, *, live: bytes, abandon: bool) -> SendCut:
        """The epoch whose steps are planned from now on."""
        self._pipeline = up
        self._switch = None
        self._admission.begin(up.context_tokens, up.kv_blocks)
        self._retired.clear()
        for request in (*self._running.values(), *self._waiting.values()):
            request.sampling_admitted = False
        return SendCut(Cut(up.epoch, self._next_step, live, abandon))

    def _begin_anew(self, cause: str) -> None:
        """Every request waits again, its tokens kept, its KV given up."""
        self._reprefills += len(self._running)
        for request in list(self._running.values()):
            self._requeue(request, cause)

    def _interrupted(self, event: PipelineInterrupted) -> Iterator[Instruction]:
        if isinstance(self._down, PipelineDown) and self._pipeline is None:
            return  # it was never up, or is gone for good
        self._down = event
        self._pipeline = None
        self._switch = None
        self._steps.clear()
        for request in list(self._running.values()):
            request.in_step = False
            if request.cancelled:
                self._end(request)
        self._begin_anew("interrupted")
        self._ledger = BlockLedger(0)
        self._admission.promise(None)
        yield from ()

    def _pipeline_down(self, event: PipelineDown) -> Iterator[Instruction]:
        lost = [*self._running.values(), *self._waiting.values()]
        self._pipeline = None
        self._switch = None
        self._down = event
        self._ledger = BlockLedger(0)
        self._steps.clear()
        self._running.clear()
        self._waiting.clear()
        self._retired.clear()
        for request in lost:
            if not request.cancelled:
                self._lost += 1
                yield Fail(request.id, event.kind, event.sentence)

    def _step_done(self, event: StepDone) -> Iterator[Instruction]:
        result = event.result
        if self._pipeline is None or (result.epoch < self._pipeline.epoch and result.step not in self._steps):
            return  # a step of a pipeline that is gone; its requests were begun anew
        if result.step not in self._steps or self._steps[result.step][0].epoch != result.epoch:
            raise SchedulerError(f"step {result.step} of epoch {result.epoch} was answered but is not under way")
        plan, shares = self._steps[result.step]
        if len(result.tokens) != len(plan.samples):
            raise SchedulerError(
                f"step {result.step} has {len(plan.samples)} samples, {len(result.tokens)} were answered"
            )
        del self._steps[result.step]
        for share in shares:
            request = self._running[share.request]
            request.in_step = False
            request.computed += share.tokens
        for row, token in zip(plan.samples, result.tokens, strict=True):
            request = self._running[plan.requests[row]]
            if not request.cancelled:
                request.tokens.append(token.token_id)
                finish = self._finish_reason(request, token.token_id)
                yield Deliver(request.id, TokenEvent(index=request.outputs - 1, token=token, finish=finish))
                request.cancelled = finish is not None
        for share in shares:
            if self._running[share.request].cancelled:
                self._end(self._running[share.request])

    def _finish_reason(self, request: Sequence, token_id: int) -> Finish | None:
        if token_id in request.spec.stop_token_ids:
            return "stop"
        return "length" if request.outputs >= request.spec.max_tokens else None

    def _end(self, request: Sequence) -> None:
        del self._running[request.id]
        self._ledger.release(request.id)
        self._retire(request)

    def _retire(self, request: Sequence) -> None:
        if request.sampling_admitted:
            self._retired.append(request.id)

    def _tell_requeued(self) -> Iterator[Requeued]:
        requeued, self._requeued = self._requeued, []
        yield from requeued

    # --- planning ---

    def _plan_steps(self) -> Iterator[SendStep | Requeued]:
        """Plan steps until ``depth`` are under way or nothing is left to run."""
        while self._pipeline is not None and len(self._steps) < self._pipeline.depth:
            if self._switch is not None and self._switch.reprefill:
                return  # what runs now would be computed twice
            shares = self._granted(self._chosen())
            if not shares:
                return
            plan = self._plan(shares)
            self._steps[plan.step] = (plan, tuple(shares))
            yield from self._tell_requeued()  # before a step may let them in again
            yield SendStep(plan)

    def _plan(self, shares: list[Share]) -> StepPlan:
        assert self._pipeline is not None
        rows = [
            PlannedRow(self._running[share.request], share.tokens, self._ledger.blocks_of(share.request))
            for share in shares
        ]
        plan = plan_step(self._pipeline.epoch, self._next_step, rows, self._retired)
        self._next_step += 1
        self._retired = []
        return plan

    def _chosen(self) -> list[Share]:
        assert self._pipeline is not None
        room = self.limits.running_requests_max - len(self._running)
        ready = [r for r in self._running.values() if not r.in_step]
        newcomers = list(self._waiting.values())[: max(room, 0)]
        active = (*self._running.values(), *newcomers)
        decoding = sum(request.missing == 1 for request in active)
        candidates = [Candidate(r.id, r.missing) for r in (*ready, *newcomers)]
        return choose_batch(candidates, decoding, len(active) - decoding, self._pipeline.depth, self.limits.batch)

    def _granted(self, shares: list[Share]) -> list[Share]:
        """Those of ``shares`` that get the blocks they need; runners may preempt younger ones, newcomers may not."""
        granted: list[Share] = []
        for share in shares:
            if (runner := self._running.get(share.request)) is not None:
                if self._keep_running(runner, share.tokens, granted):
                    granted.append(share)
            elif (newcomer := self._waiting.get(share.request)) is not None:
                if not self._let_in(newcomer):
                    break  # nobody overtakes: a large prompt would wait for ever behind small ones
                granted.append(share)
        return granted

    def _keep_running(self, runner: Sequence, tokens: int, granted: list[Share]) -> bool:
        blocks = blocks_for(runner.computed + tokens)
        while not self._ledger.grow(runner.id, blocks):
            victim = self._victim(runner, granted)
            if victim is None:
                return False
            self._preempt(victim)
        return True

    def _let_in(self, newcomer: Sequence) -> bool:
        """Admit where the whole prompt fits and each runner could still grow by a block: else it would soon be preempted."""
        blocks = blocks_for(len(newcomer.tokens))
        if blocks + len(self._running) > self._ledger.free or not self._ledger.grow(newcomer.id, blocks):
            return False
        self._running[newcomer.id] = self._waiting.pop(newcomer.id)
        return True

    def _victim(self, request: Sequence, keep: list[Share]) -> Sequence | None:
        """The youngest runner, younger than ``request``, that is in no step."""
        kept = {share.request for share in keep}
        for other in sorted(self._running.values(), key=lambda r: r.id, reverse=True):
            if other.id <= request.id:
                return None
            if not other.in_step and other.id not in kept:
                return other
        return None

    def _preempt(self, victim: Sequence) -> None:
        self._preemptions += 1
        self._requeue(victim, "preempted")

    def _requeue(self, request: Sequence, cause: str) -> None:
        self._requeued.append(Requeued(request.id, cause))
        del self._running[request.id]
        self._ledger.release(request.id)
        request.computed = 0
        self._waiting = dict(sorted([(request.id, request), *self._waiting.items()]))
