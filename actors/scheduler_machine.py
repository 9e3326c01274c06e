"""The scheduler's decisions: admission, continuous batching, block tables, preemption, and the end of each request.

Rules:
 1. Steps are numbered in one total order and planned once; every stage runs exactly the planned batch.
 2. A request is in at most one step under way; about ``depth`` steps are under way at once.
 3. A request holds blocks for every token whose KV is written or under way, and for no other; it gives all of them back
    at its end, which waits for the result of a step it is in.
 4. A token is delivered once, with its output index; the next one is planned only after that.
 5. A request that was preempted keeps its tokens and is prefilled again from prompt + tokens (oldest first).
 6. Nothing here reads a clock, a socket or a random number: events in, instructions out.

A request's state is where it is: in ``_waiting`` (no blocks) or in ``_running`` (blocks held); both keep arrival order.

    absent --submit--> waiting --planned--> running --last token, stop, cancel--> absent
                          ^-----preempted------'        either --pipeline lost--> absent, failed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..policies.batching import BatchLimits, Candidate, Share, choose_batch
from ..runtime.interface import BLOCK_TOKENS
from .block_ledger import BlockLedger
from .generation import FailureKind, Finish, GenerationRequest, TokenEvent
from .messages import StepPlan, StepResult
from .step_plan import PlannedRow, Sequence, plan_step


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of one pipeline's scheduler. ``queue_requests_max`` counts waiting requests, ``running`` those with blocks."""

    queue_requests_max: int = 256
    running_requests_max: int = 128
    batch: BatchLimits = field(default_factory=BatchLimits)


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submit:
    """A gateway asks for a generation. ``request`` is a new id of ours."""

    request: int
    spec: GenerationRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """A gateway no longer wants a request. Of an unknown one: nothing (it ended in the meantime)."""

    request: int


@dataclass(frozen=True, slots=True)
class PipelineUp:
    """The stages of ``epoch`` serve: ``depth`` of them, with ``kv_blocks`` blocks each."""

    epoch: int
    depth: int
    kv_blocks: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class PipelineDown:
    """The pipeline is gone, for the reason in ``sentence``."""

    kind: FailureKind
    sentence: str


@dataclass(frozen=True, slots=True)
class StepDone:
    """The last stage's answer to a plan."""

    result: StepResult


Event = Submit | Cancel | PipelineUp | PipelineDown | StepDone

# --- instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendStep:
    """Send the plan to every stage. Answered by `StepDone`, or by `PipelineDown` for all plans under way."""

    plan: StepPlan


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give a token to the request's gateway."""

    request: int
    event: TokenEvent


@dataclass(frozen=True, slots=True)
class Fail:
    """End the request with one explicit error."""

    request: int
    kind: FailureKind
    sentence: str


Instruction = SendStep | Deliver | Fail


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
    epoch: int


class SchedulerMachine:
    """See the module's rules. ``handle(event)`` returns the instructions to carry out, in order."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self._waiting: dict[int, Sequence] = {}
        self._running: dict[int, Sequence] = {}
        self._steps: dict[int, tuple[StepPlan, tuple[Share, ...]]] = {}
        self._pipeline: PipelineUp | None = None
        self._down = PipelineDown("not_ready", "the pipeline is starting")
        self._ledger = BlockLedger(0)
        self._retired: list[int] = []
        self._next_step = 0
        self._preemptions = 0
        self._handlers: dict[type, Callable[..., Iterator[Instruction]]] = {
            Submit: self._submit,
            Cancel: self._cancel,
            PipelineUp: self._pipeline_up,
            PipelineDown: self._pipeline_down,
            StepDone: self._step_done,
        }

    def handle(self, event: Event) -> list[Instruction]:
        """Apply one event. Raises `SchedulerError` where it is illegal, before anything changed."""
        return [*self._handlers[type(event)](event), *self._plan_steps()]

    def counts(self) -> SchedulerCounts:
        """How much there is of everything."""
        return SchedulerCounts(
            waiting=len(self._waiting),
            running=len(self._running),
            steps_under_way=len(self._steps),
            kv_blocks=self._ledger.capacity,
            kv_blocks_used=self._ledger.used,
            preemptions=self._preemptions,
            epoch=self._pipeline.epoch if self._pipeline else -1,
        )

    @property
    def context_tokens(self) -> int:
        """Longest prompt + output that one request may have: the model's context, or what fits all KV blocks."""
        if self._pipeline is None:
            return 0
        return min(self._pipeline.context_tokens, self._ledger.capacity * BLOCK_TOKENS)

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
        refusal = self._refusal(event.spec)
        if refusal is None:
            self._waiting[event.request] = Sequence(event.request, event.spec, list(event.spec.prompt))
        else:
            yield Fail(event.request, *refusal)

    def _refusal(self, spec: GenerationRequest) -> tuple[FailureKind, str] | None:
        """Why ``spec`` cannot be taken now, or None."""
        if self._pipeline is None:
            kind: FailureKind = "shutting_down" if self._down.kind == "shutting_down" else "not_ready"
            return kind, self._down.sentence
        total = len(spec.prompt) + spec.max_tokens
        if total > self.context_tokens:
            return "too_long", (
                f"prompt ({len(spec.prompt)} tokens) and max_tokens ({spec.max_tokens}) come to {total} tokens; "
                f"this server holds {self.context_tokens}"
            )
        if len(self._waiting) >= self.limits.queue_requests_max:
            return "overloaded", f"{len(self._waiting)} requests are waiting already; try again in a moment"
        return None

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
            raise SchedulerError(f"epoch {event.epoch} came up while epoch {self._pipeline.epoch} serves")
        self._pipeline = event
        self._ledger = BlockLedger(event.kv_blocks)
        yield from ()

    def _pipeline_down(self, event: PipelineDown) -> Iterator[Instruction]:
        lost = [*self._running.values(), *self._waiting.values()]
        self._pipeline = None
        self._down = event
        self._ledger = BlockLedger(0)
        self._steps.clear()
        self._running.clear()
        self._waiting.clear()
        self._retired.clear()
        for request in lost:
            if not request.cancelled:
                yield Fail(request.id, event.kind, event.sentence)

    def _step_done(self, event: StepDone) -> Iterator[Instruction]:
        result = event.result
        if self._pipeline is None or result.epoch != self._pipeline.epoch:
            return  # a step of a pipeline that is gone; its requests were failed with it
        if result.step not in self._steps:
            raise SchedulerError(f"step {result.step} was answered but is not under way")
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

    # --- planning ---

    def _plan_steps(self) -> Iterator[SendStep]:
        """Plan steps until ``depth`` are under way or nothing is left to run."""
        while self._pipeline is not None and len(self._steps) < self._pipeline.depth:
            shares = self._granted(self._chosen())
            if not shares:
                return
            plan = self._plan(shares)
            self._steps[plan.step] = (plan, tuple(shares))
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
        candidates = [Candidate(r.id, r.missing) for r in (*ready, *newcomers)]
        return choose_batch(candidates, len(self._running) + len(newcomers), self._pipeline.depth, self.limits.batch)

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
        blocks = _blocks(runner.computed + tokens)
        while not self._ledger.grow(runner.id, blocks):
            victim = self._victim(runner, granted)
            if victim is None:
                return False
            self._preempt(victim)
        return True

    def _let_in(self, newcomer: Sequence) -> bool:
        """Admit where the whole prompt fits and each runner could still grow by a block: else it would soon be preempted."""
        blocks = _blocks(len(newcomer.tokens))
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
        del self._running[victim.id]
        self._ledger.release(victim.id)
        victim.computed = 0
        self._preemptions += 1
        self._waiting = dict(sorted([(victim.id, victim), *self._waiting.items()]))


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
