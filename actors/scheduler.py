"""The scheduler actor: turns the machine's instructions into step plans on the stages' links and tokens for the gateway.

It is the `TokenSource` that the gateway sees and the `PipelineListener` that the supervisor calls. All decisions are
`scheduler_machine`'s. It never waits for a reader of tokens, and waits for a stage only in the dispatch task of an epoch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from ..transport.interface import Link, PeerLostError
from .event_log import EventLog
from .generation import FailureKind, GenerationFailedError, GenerationRequest, TokenEvent
from .messages import TO_STAGE, StepPlan, StepResult
from .scheduler_machine import (
    Cancel,
    Deliver,
    Event,
    Fail,
    Instruction,
    PipelineDown,
    PipelineUp,
    SchedulerCounts,
    SchedulerLimits,
    SchedulerMachine,
    SendStep,
    StepDone,
    Submit,
)

RETRY_AFTER_S: dict[FailureKind, float] = {"overloaded": 1.0, "not_ready": 2.0, "stage_lost": 2.0}
"""What a client may be told to wait, by the kind of refusal: a queue moves within a second, a pipeline restarts in a few."""


class _Stream:
    """One request's way back to its gateway. The channel is unbounded by type but holds at most ``max_tokens`` events."""

    def __init__(self, request: int) -> None:
        self.request = request
        self.opened_s = trio.current_time()
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


@dataclass(slots=True)
class _Epoch:
    """The dispatch side of one serving epoch."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    plans: trio.MemorySendChannel[StepPlan] | None = None


class Scheduler:
    """See the module. ``run`` must be running before the first epoch comes up."""

    def __init__(self, limits: SchedulerLimits, log: EventLog, *, context_tokens: int) -> None:
        self._machine = SchedulerMachine(limits)
        self._log = log
        self._context_tokens = context_tokens
        self._streams: dict[int, _Stream] = {}
        self._ids = itertools.count()
        self._epoch = _Epoch()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the dispatch tasks until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    # --- towards the gateway ---

    @asynccontextmanager
    async def open(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[TokenEvent]]:
        """Submit; see `generation.TokenSource.open`."""
        stream = _Stream(next(self._ids))
        self._streams[stream.request] = stream
        self._log.emit(
            "request_queued", request=stream.request, prompt_tokens=len(request.prompt), max_tokens=request.max_tokens
        )
        self._handle(Submit(stream.request, request))
        if stream.failure is not None:
            raise stream.failure
        try:
            yield stream
        finally:
            if not stream.ended:
                self._forget(stream)
                self._log.emit("request_cancelled", request=stream.request, output_tokens=stream.outputs)
                self._handle(Cancel(stream.request))

    def counts(self) -> SchedulerCounts:
        """A snapshot of queues and blocks."""
        return self._machine.counts()

    @property
    def context_tokens(self) -> int:
        """Longest prompt + output that is served now."""
        return self._machine.context_tokens or self._context_tokens

    # --- towards the supervisor ---

    def pipeline_up(self, epoch: int, kv_blocks: int, links: Sequence[Link]) -> None:
        """The stages behind ``links`` (in order) serve ``epoch``."""
        assert self._nursery is not None
        plans, receiver = trio.open_memory_channel[StepPlan](math.inf)  # the machine bounds the steps under way
        self._epoch = _Epoch(plans=plans)
        self._nursery.start_soon(self._dispatch, self._epoch, receiver, tuple(links))
        self._handle(PipelineUp(epoch, len(links), kv_blocks, self._context_tokens))

    def pipeline_down(self, kind: FailureKind, sentence: str) -> None:
        """The pipeline no longer serves; every request under way ends with this failure."""
        self._epoch.scope.cancel()
        self._handle(PipelineDown(kind, sentence))

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
                assert self._epoch.plans is not None
                self._epoch.plans.send_nowait(plan)
            case Deliver(request, token):
                self._deliver(self._streams[request], token)
            case Fail(request, kind, sentence):
                self._fail(self._streams[request], kind, sentence)

    async def _dispatch(
        self, epoch: _Epoch, plans: trio.MemoryReceiveChannel[StepPlan], links: tuple[Link, ...]
    ) -> None:
        """Send each plan to every stage, in order: the one total order of steps."""
        with epoch.scope:
            async for plan in plans:
                rows, tokens = len(plan.requests), len(plan.token_ids) // 4
                self._log.emit("step_sent", epoch=plan.epoch, step=plan.step, rows=rows, tokens=tokens)
                encoded = TO_STAGE.encode(plan)
                try:
                    for link in links:
                        await link.send([encoded])
                except PeerLostError:
                    return  # the supervisor reads the same link, hears it too, and takes the epoch down

    def _deliver(self, stream: _Stream, event: TokenEvent) -> None:
        now = trio.current_time()
        if stream.first_token_s is None:
            stream.first_token_s = now
        stream.outputs += 1
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
            )

    def _fail(self, stream: _Stream, kind: FailureKind, sentence: str) -> None:
        stream.failure = GenerationFailedError(kind, sentence, RETRY_AFTER_S.get(kind))
        self._forget(stream)
        self._log.emit(
            "request_failed", request=stream.request, reason=kind, sentence=sentence, output_tokens=stream.outputs
        )

    def _forget(self, stream: _Stream) -> None:
        stream.ended = True
        stream.sender.close()
        del self._streams[stream.request]
