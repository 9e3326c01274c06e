"""The stage actor: carries out `stage_machine`'s instructions with an engine, a control link and two activation links.

One process, one `trio.run`; the engine computes in a thread of its own behind `EnginePort`. A broken activation link is
only logged: its other end's daemon knows best why, and the supervisor takes the epoch down. A broken control link means
that the daemon is gone: the stage leaves.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import trio

from ..runtime.interface import (
    BufferView,
    EngineError,
    RaggedBatch,
    SampleRow,
    StageFacts,
    StageOutput,
    StageSpec,
)
from ..transport.interface import FrameError, Link, PeerLostError, Transport, TransportError
from .activation_link import ActivationReceiver, ActivationSender
from .event_log import EventLog
from .messages import (
    FROM_STAGE,
    PROTOCOL_VERSION,
    TO_STAGE,
    FromStage,
    Hello,
    Load,
    Loaded,
    LoadProgress,
    Serve,
    Serving,
    StageFailed,
    StageReport,
    StepPlan,
    StepResult,
)
from .sampling_ledger import SamplingLedger, SamplingLedgerError
from .stage_machine import (
    ActivationArrived,
    DropStale,
    Emit,
    Event,
    Instruction,
    Leave,
    OpenPipeline,
    PipelineOpened,
    RunStep,
    StageMachine,
    StageProtocolError,
    StartLoading,
    StepRan,
    TellLoaded,
    TellServing,
    WeightsLoaded,
)

REPORT_INTERVAL_S = 1.0
"""How often a stage sends `StageReport`."""
OUTPUTS_WAITING_MAX = 4
"""Finished steps whose output may wait for the next stage before this one stops computing."""
FAREWELL_S_MAX = 1.0
"""How long a failing stage may take to tell its daemon why."""

_FATAL = (EngineError, StageProtocolError, FrameError, SamplingLedgerError)
"""What ends a stage: it cannot compute, or a peer broke the protocol."""


class EnginePort(Protocol):
    """A `StageEngine` as an actor sees it: the same calls, awaited. In simulation it is a modelled engine."""

    async def load(self, spec: StageSpec, progress: Callable[[int, int], Awaitable[None]]) -> StageFacts:
        """Load the stage's weights."""
        ...

    async def reserve(self, blocks: int) -> int:
        """Make room for KV blocks and warm up; the bytes they take."""
        ...

    async def run(self, batch: RaggedBatch, hidden: BufferView | None, rows: Sequence[SampleRow]) -> StageOutput:
        """Run one step."""
        ...

    def peak_rss_bytes(self) -> int:
        """The most memory this process held so far."""
        ...


@dataclass(slots=True)
class _Work:
    """What this stage has done since its start, for reports."""

    steps: int = 0
    busy_s: float = 0.0


class StageActor:
    """One stage. ``run`` returns when the stage has left; it raises nothing that a peer or the engine can cause."""

    def __init__(
        self,
        stage: int,
        control: Link,
        transport: Transport,
        engine: EnginePort,
        log: EventLog,
    ) -> None:
        self._stage = stage
        self._control = control
        self._transport = transport
        self._engine = engine
        self._log = log
        self._machine = StageMachine()
        self._sampling: SamplingLedger | None = None
        self._upstream: ActivationReceiver | None = None
        self._downstream: ActivationSender | None = None
        self._slots: dict[int, int] = {}  # step -> ring slot that its hidden state lies in
        self._step_tokens_max = 0
        self._outputs, self._outputs_receiver = trio.open_memory_channel[Emit](OUTPUTS_WAITING_MAX)
        self._nursery: trio.Nursery | None = None
        self._kv_bytes = 0
        self._work = _Work()
        self.failed = False

    async def run(self) -> None:
        """Introduce this stage to its supervisor, then live until told to leave."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._start(self._obey)
                self._start(self._send_outputs)
                self._start(self._report)
                await self._tell(Hello(self._stage, os.getpid(), PROTOCOL_VERSION))
        finally:
            for neighbour in (self._upstream, self._downstream):
                if neighbour is not None:
                    neighbour.close()

    # --- tasks ---

    def _start(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._guard, task, *args)

    async def _guard(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run a task of this stage. What a peer or the engine did wrong ends the stage, with one sentence to the daemon."""
        try:
            await task(*args)
        except _FATAL as error:
            self.failed = True
            kind = type(error).__name__
            self._log.emit("stage_failed", error=kind, sentence=str(error))
            with trio.move_on_after(FAREWELL_S_MAX, shield=True), suppress(TransportError):
                await self._tell(StageFailed(self._stage, kind, str(error)))
            self._leave()

    async def _obey(self) -> None:
        """Read the control link until told to leave, or until its other end is gone."""
        try:
            while True:
                (payload,) = await self._control.receive()
                await self._handle(TO_STAGE.decode(payload))
        except PeerLostError as error:
            self._log.emit("stage_leaving", reason=f"the daemon is gone: {error}")
            self._leave()

    async def _receive_activations(self, upstream: ActivationReceiver) -> None:
        try:
            while True:
                arrived = await upstream.receive()
                if arrived.header.slot >= 0:
                    self._slots[arrived.header.step] = arrived.header.slot
                await self._handle(ActivationArrived(arrived.header, arrived.hidden))
        except PeerLostError as error:
            self._log.emit("stage_lost", epoch=self._machine.epoch, stage=self._stage - 1, sentence=str(error))

    async def _send_outputs(self) -> None:
        try:
            async for emit in self._outputs_receiver:
                plan, output = emit.plan, emit.output
                if self._downstream is None:
                    await self._tell(StepResult(plan.epoch, plan.step, tuple(output.tokens)))
                elif output.hidden is not None:
                    await self._downstream.send(plan.epoch, plan.step, output.hidden)
            self._leave()
        except PeerLostError as error:
            self._log.emit("stage_lost", epoch=self._machine.epoch, stage=self._stage + 1, sentence=str(error))

    async def _report(self) -> None:
        with suppress(PeerLostError):
            while True:
                await trio.sleep(REPORT_INTERVAL_S)
                rss = self._engine.peak_rss_bytes()
                await self._tell(StageReport(self._stage, self._work.steps, self._work.busy_s, rss))

    # --- carrying out ---

    async def _handle(self, event: Event) -> None:
        for instruction in self._machine.handle(event):
            await self._perform(instruction)

    async def _perform(self, instruction: Instruction) -> None:
        match instruction:
            case StartLoading(load):
                self._start(self._load, load)
            case TellLoaded(epoch, facts):
                self._log.emit(
                    "stage_loaded",
                    epoch=epoch,
                    stage=self._stage,
                    weight_bytes=facts.weight_bytes,
                    kv_bytes_per_block=facts.kv_bytes_per_block,
                    backend=facts.backend,
                )
                await self._tell(
                    Loaded(
                        epoch,
                        self._stage,
                        facts.weight_bytes,
                        facts.kv_bytes_per_block,
                        facts.memory_free_bytes,
                        facts.layers,
                        facts.backend,
                    )
                )
            case OpenPipeline(serve):
                self._start(self._open, serve)
            case TellServing(epoch):
                await self._tell(Serving(epoch, self._stage, self._kv_bytes))
            case RunStep(plan, hidden):
                self._start(self._run_step, plan, hidden)
            case Emit():
                await self._outputs.send(instruction)
            case DropStale(what, epoch, step):
                self._log.emit("stale_dropped", what=what, epoch=epoch, step=step)
            case Leave(reason):
                self._log.emit("stage_leaving", reason=reason)
                self._outputs.close()  # `_send_outputs` sends what is left, then this stage leaves

    async def _load(self, load: Load) -> None:
        spec = StageSpec(
            model_folder=load.model_folder,
            program_file=load.program_file,
            first_atom=load.first_atom,
            end_atom=load.end_atom,
            device=load.device,
            threads=load.threads,
            dtype=load.dtype,
            deterministic=load.deterministic,
            step_tokens_max=load.step_tokens_max,
        )
        self._log.emit(
            "stage_loading",
            epoch=load.epoch,
            stage=self._stage,
            first_atom=load.first_atom,
            end_atom=load.end_atom,
            device=load.device,
        )
        self._step_tokens_max = load.step_tokens_max
        facts = await self._engine.load(spec, self._tell_progress)
        await self._handle(WeightsLoaded(facts))

    async def _tell_progress(self, done_bytes: int, total_bytes: int) -> None:
        await self._tell(LoadProgress(self._stage, done_bytes, total_bytes))

    async def _open(self, serve: Serve) -> None:
        self._kv_bytes = await self._engine.reserve(serve.kv_blocks)
        if serve.upstream:
            self._upstream = await ActivationReceiver.bind(
                self._transport, serve.upstream, name=f"activations from stage {self._stage - 1}"
            )
            self._start(self._receive_activations, self._upstream)
        if serve.downstream:
            self._downstream = await ActivationSender.connect(
                self._transport,
                serve.downstream,
                name=f"activations to stage {self._stage + 1}",
                step_tokens_max=self._step_tokens_max,
            )
        else:
            self._sampling = SamplingLedger()
        self._log.emit("stage_serving", epoch=serve.epoch, stage=self._stage, kv_blocks=serve.kv_blocks)
        await self._handle(PipelineOpened())

    async def _run_step(self, plan: StepPlan, hidden: BufferView | None) -> None:
        rows = self._sampling.rows(plan) if self._sampling is not None else []
        started_s = trio.current_time()
        output = await self._engine.run(batch_of(plan), hidden, rows)
        compute_s = trio.current_time() - started_s
        if self._upstream is not None and plan.step in self._slots:
            self._upstream.release(self._slots.pop(plan.step))
        if self._sampling is not None:
            self._sampling.drawn(plan, output.tokens)
        self._work.steps += 1
        self._work.busy_s += compute_s
        tokens = len(plan.token_ids) // 4
        self._log.emit("stage_step", epoch=plan.epoch, step=plan.step, tokens=tokens, compute_s=round(compute_s, 6))
        await self._handle(StepRan(output))

    async def _tell(self, message: FromStage) -> None:
        await self._control.send([FROM_STAGE.encode(message)])

    def _leave(self) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()


def batch_of(plan: StepPlan) -> RaggedBatch:
    """The plan's arrays, without copying. Their values are the engine's to check, since it knows the bounds."""
    rows = len(plan.requests)
    try:
        tables = np.frombuffer(plan.block_tables, np.int32).reshape(rows, -1)
        return RaggedBatch(
            token_ids=np.frombuffer(plan.token_ids, np.int32),
            positions=np.frombuffer(plan.positions, np.int32),
            row_starts=np.frombuffer(plan.row_starts, np.int32),
            block_tables=tables,
            sample_tokens=np.frombuffer(plan.sample_tokens, np.int32),
        )
    except ValueError as error:
        raise StageProtocolError(f"step {plan.step} holds arrays that do not fit together: {error}") from error
