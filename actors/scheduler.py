"""The scheduler actor: turns the machine's instructions into step plans on the stages' links and tokens for the gateway.

It is the `TokenSource` that the gateway sees, and what the coordinator tells of epochs. All decisions are
`scheduler_machine`'s. It never waits for a reader of tokens, and waits for a stage only in the dispatch task.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from ..transport.interface import Link, LinkClosedError, PeerLostError
from .event_log import EventLog
from .generation import FailureKind, GenerationFailedError, GenerationRequest, TokenEvent
from .messages import TO_STAGE, Cut, StepPlan, StepResult
from .request_times import RequestTimes
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
from .scheduler_machine import SchedulerCounts, SchedulerLimits, SchedulerMachine
from .token_times import TokenTimes

RETRY_AFTER_S: dict[FailureKind, float] = {"overloaded": 1.0, "not_ready": 2.0, "stage_lost": 2.0}
"""What a client may be told to wait, by the kind of refusal: a queue moves within a second, a pipeline restarts in a few."""


class _Stream:
    """One request's way back to its gateway. The channel is unbounded by type but holds at most ``max_tokens`` events."""

    def __init__(self, request: int, context_tokens: int) -> None:
        self.request = request
        self.context_tokens = context_tokens  # at first; `outputs` come to it
        self.opened_s = trio.current_time()
        self.times = RequestTimes(self.opened_s)
        self.first_token_s: float | None = None
        self.outputs = 0
        self.ended = False
        self.failure: GenerationFailedError | None = None
        self.sender, self._receiver = trio.open_memory_channel[TokenEvent](math.inf)

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        return self

    async def __anext__(self) -> TokenEvent:
        try:
            return await self._receiver.receive()
        except trio.EndOfChannel:
            raise (self.failure or StopAsyncIteration) from None


@dataclass(frozen=True, slots=True)
class _Crossing:
    """A cut on its way to the workers: to ``cut_links``; the plans after it go to ``plan_links``."""

    cut: Cut
    cut_links: tuple[Link, ...]
    plan_links: tuple[Link, ...]


@dataclass(slots=True)
class _Dispatch:
    """The one task that sends plans and cuts, from when a pipeline comes up until it breaks."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    items: trio.MemorySendChannel[StepPlan | _Crossing] | None = None


class Scheduler:
    """See the module. ``run`` must be running before the first epoch comes up.

    ``steps_under_way_max``: as many stages as can compute at once, None where each has a device to itself. More steps than
    that compute nothing sooner and make batches smaller: on two cores, six stages took twice as long for a token.
    """

    def __init__(
        self, limits: SchedulerLimits, log: EventLog, *, context_tokens: int, steps_under_way_max: int | None = None
    ) -> None:
        self._machine = SchedulerMachine(limits)
        self._log = log
        self._context_tokens = context_tokens
        self._steps_under_way_max = steps_under_way_max
        self._streams: dict[int, _Stream] = {}
        self._ids = itertools.count()
        self.times = TokenTimes()
        self._dispatch = _Dispatch()
        self._next_links: tuple[tuple[Link, ...], tuple[Link, ...]] = (
            (),
            (),
        )  # for the cut: all concerned, the new route
        self._nursery: trio.Nursery | None = None
        self._ends = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the dispatch tasks until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    # --- towards the gateway ---

    @asynccontextmanager
    async def open(
        self, request: GenerationRequest, outputs: tuple[int, ...] | None = None
    ) -> AsyncIterator[AsyncIterator[TokenEvent]]:
        """Submit; see `generation.TokenSource.open`. ``outputs`` are the tokens that another scheduler delivered already."""
        stream = _Stream(next(self._ids), len(request.prompt) + len(outputs or ()))
        self._streams[stream.request] = stream
        self._log.emit(
            "request_queued",
            trace=request.trace,
            request=stream.request,
            prompt_tokens=len(request.prompt),
            max_tokens=request.max_tokens,
        )
        self._handle(Submit(stream.request, request, outputs))
        if stream.failure is not None:
            raise stream.failure
        try:
            yield stream
        finally:
            if not stream.ended:
                self._forget(stream)
                spent = stream.times.ended(trio.current_time())
                self._log.emit("request_cancelled", request=stream.request, output_tokens=stream.outputs, **spent)
                self._handle(Cancel(stream.request))

    def counts(self) -> SchedulerCounts:
        """A snapshot of queues and blocks."""
        return self._machine.counts()

    @property
    def work_tokens(self) -> int:
        """Tokens of context of all requests that are here, waiting or running: what each costs in prefill, attention and room."""
        return sum(stream.context_tokens + stream.outputs for stream in self._streams.values())

    async def wait_idle(self) -> None:
        """Wait until no request is here."""
        while self._streams:
            await self._ends.park()

    @property
    def context_tokens(self) -> int:
        """Longest prompt + output that is served now."""
        return self._machine.context_tokens or self._context_tokens

    # --- towards the coordinator ---

    @property
    def epoch(self) -> int:
        """The epoch that steps are planned for; -1 while none is up."""
        return self._machine.counts().epoch

    def pipeline_up(self, epoch: int, kv_blocks: int, links: Sequence[Link]) -> None:
        """The stages behind ``links`` (in order) wait for steps, with empty pages."""
        if epoch == self.epoch:
            return  # told twice, by a coordinator that started anew
        assert self._nursery is not None
        items, receiver = trio.open_memory_channel[StepPlan | _Crossing](
            math.inf
        )  # the machine bounds what is under way
        self._dispatch = _Dispatch(items=items)
        self._nursery.start_soon(self._send_in_order, self._dispatch, receiver)
        self._next_links = (tuple(links), tuple(links))
        self._handle(PipelineUp(epoch, self._depth(links), kv_blocks, self._context_tokens))

    def pipeline_switch(
        self, epoch: int, kv_blocks: int, links: Sequence[Link], leaving: Sequence[Link], *, reprefill: bool
    ) -> None:
        """Cut over to the stages behind ``links``; those behind ``leaving`` serve no more from then on."""
        if epoch <= self.epoch:
            return  # told twice
        self._next_links = ((*links, *leaving), tuple(links))
        self._handle(PipelineSwitch(epoch, self._depth(links), kv_blocks, reprefill))

    def _depth(self, links: Sequence[Link]) -> int:
        """How many steps are to be under way in the stages behind ``links``."""
        return min(len(links), self._steps_under_way_max or len(links))

    def pipeline_interrupted(self, sentence: str) -> None:
        """The pipeline is broken and will be up again; requests wait."""
        self._dispatch.scope.cancel()
        self._handle(PipelineInterrupted(sentence))

    def pipeline_down(self, kind: FailureKind, sentence: str) -> None:
        """The pipeline is gone for good; every request under way ends with this failure."""
        self._dispatch.scope.cancel()
        self._handle(PipelineDown(kind, sentence))

    def limit_blocks(self, blocks: int | None) -> None:
        """Count on no block from ``blocks`` on, and take no request that needs more; None lifts the limit."""
        self._handle(LimitBlocks(blocks))

    def room(self, blocks: int) -> tuple[bytes, int, int]:
        """Blocks held now (a bit each), requests that hold one beyond ``blocks``, blocks the largest request may need."""
        return self._machine.held_blocks(), self._machine.beyond(blocks), self._machine.largest_blocks()

    def step_done(self, result: StepResult) -> None:
        """The last stage finished a step."""
        self._handle(StepDone(result))

    # --- carrying out ---

    def _handle(self, event: Event) -> None:
        for instruction in self._machine.handle(event):
            self._perform(instruction)

    def _perform(self, instruction: Instruction) -> None:
        match instruction:
            case SendStep(plan):
                assert self._dispatch.items is not None
                self._dispatch.items.send_nowait(plan)
                self._planned(plan)
            case SendCut(cut):
                assert self._dispatch.items is not None
                self._dispatch.items.send_nowait(_Crossing(cut, *self._next_links))
            case Deliver(request, token):
                self._deliver(self._streams[request], token)
            case Fail(request, kind, sentence):
                self._fail(self._streams[request], kind, sentence)
            case Requeued(request, cause):
                if (stream := self._streams.get(request)) is not None:  # else its client has left
                    stream.times.requeued(trio.current_time())
                    self._log.emit("request_requeued", request=request, cause=cause, output_tokens=stream.outputs)

    async def _send_in_order(self, dispatch: _Dispatch, items: trio.MemoryReceiveChannel[StepPlan | _Crossing]) -> None:
        """Send each plan to every stage of its epoch, and each cut to all whom it concerns: the one total order of steps."""
        links: tuple[Link, ...] = ()
        with dispatch.scope:
            async for item in items:
                if isinstance(item, _Crossing):
                    links = item.plan_links
                    self._log.emit("cut_sent", epoch=item.cut.epoch, step=item.cut.step, abandon=item.cut.abandon)
                    sent = await _send_all(TO_STAGE.encode(item.cut), item.cut_links)
                else:
                    rows, tokens = len(item.requests), len(item.token_ids) // 4
                    self._log.emit("step_sent", epoch=item.epoch, step=item.step, rows=rows, tokens=tokens)
                    sent = await _send_all(TO_STAGE.encode(item), links)
                if not sent:
                    return  # the pool reads the same link and hears of it too; the coordinator will interrupt us

    def _planned(self, plan: StepPlan) -> None:
        now = trio.current_time()
        for request in plan.requests:
            stream = self._streams.get(request)
            if stream is not None and stream.times.planned(plan.step, now):
                self._log.emit("request_admitted", request=request, epoch=plan.epoch, step=plan.step)

    def _deliver(self, stream: _Stream, event: TokenEvent) -> None:
        now = trio.current_time()
        if stream.first_token_s is None:
            stream.first_token_s = now
        stream.outputs += 1
        self.times.token(stream.request, now)
        is_prefilled, gap_s = stream.times.token(now)
        if is_prefilled:
            self._log.emit("request_decoding", request=stream.request, output_tokens=stream.outputs)
        if gap_s:
            self._log.emit(
                "request_stalled", request=stream.request, output_tokens=stream.outputs, gap_s=round(gap_s, 6)
            )
        stream.sender.send_nowait(event)
        if event.finish is not None:
            self._forget(stream)
            self._log.emit(
                "request_ended",
                request=stream.request,
                finish=event.finish,
                output_tokens=stream.outputs,
                ttft_s=round(stream.first_token_s - stream.opened_s, 6),
                duration_s=round(now - stream.opened_s, 6),
                **stream.times.ended(now),
            )

    def _fail(self, stream: _Stream, kind: FailureKind, sentence: str) -> None:
        stream.failure = GenerationFailedError(kind, sentence, RETRY_AFTER_S.get(kind))
        self._forget(stream)
        self._log.emit(
            "request_failed",
            request=stream.request,
            reason=kind,
            sentence=sentence,
            output_tokens=stream.outputs,
            **stream.times.ended(trio.current_time()),
        )

    def _forget(self, stream: _Stream) -> None:
        stream.ended = True
        self.times.ended(stream.request)
        stream.sender.close()
        del self._streams[stream.request]
        self._ends.unpark_all()


async def _send_all(message: bytes, links: Sequence[Link]) -> bool:
    """Send to every link; False where one was lost (the others got it all the same)."""
    sent = True
    for link in links:
        try:
            await link.send([message])
        except (PeerLostError, LinkClosedError):  # the worker is gone, or the pool closed the link of one that is
            sent = False
    return sent
