"""The stage actor: carries out `stage_machine`'s instructions with an engine, a control link and the links of each epoch.

One process, one `trio.run`; the engine computes in threads of its own behind `EnginePort`. A broken link to a
neighbour is told to the coordinator if its epoch serves, which then makes a new one. A broken control link means that the
daemon is gone: the worker leaves.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import trio

from ..runtime.interface import BufferView, EngineError, RaggedBatch, StageFacts
from ..transport.interface import FrameError, Link, PeerLostError, Transport, TransportError
from .engine_port import EnginePort
from .epoch_links import EpochLinks
from .event_log import EventLog
from .handoff import Handoff
from .handoff_machine import DEFAULT_HANDOFF_LIMITS, HandoffLimits
from .link_place import Surroundings
from .messages import (
    FROM_STAGE,
    PROTOCOL_VERSION,
    TO_STAGE,
    CopyProgress,
    CopyTotals,
    FromStage,
    Hello,
    LoadProgress,
    Open,
    Prepare,
    Released,
    StageFailed,
    StageReport,
    StepPlan,
    Switched,
)
from .page_ledger import PageLedger
from .sampling_ledger import SamplingLedgerError
from .stage_events import (
    CloseEpochs,
    CutHandoff,
    Dropped,
    DropStale,
    Emit,
    EpochFailed,
    EpochInstruction,
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
from .stage_machine import StageMachine, StageProtocolError

REPORT_INTERVAL_S = 1.0
"""How often a worker sends `StageReport`."""
FAREWELL_S_MAX = 1.0
"""How long a failing worker may take to tell its daemon why."""

_FATAL = (EngineError, StageProtocolError, FrameError, SamplingLedgerError)
"""What ends a worker: it cannot compute, or a peer broke the protocol."""


@dataclass(slots=True)
class _Work:
    """What this worker has done since its start, for reports."""

    steps: int = 0
    busy_s: float = 0.0


class StageActor:
    """One worker, whose node's sockets lie in the folder ``sockets``.

    ``run`` returns when it has left; it raises nothing that a peer or the engine can cause.
    """

    def __init__(
        self,
        worker: int,
        control: Link,
        transport: Transport,
        engine: EnginePort,
        log: EventLog,
        handoff_limits: HandoffLimits = DEFAULT_HANDOFF_LIMITS,
        sockets: str = "",
    ) -> None:
        self._worker = worker
        self._control = control
        self._around = Surroundings(transport, sockets)
        self._engine = engine
        self._log = log
        self.machine = StageMachine(worker)
        self.pages = PageLedger()
        self._epochs: dict[int, EpochLinks] = {}
        self._handoff_limits = handoff_limits
        self._step_tokens_max = 0
        self._threads = 0  # that compute now
        self._threads_of: dict[int, int] = {}  # epochs that are not open yet
        self._kv_bytes = 0
        self._nursery: trio.Nursery | None = None
        self._work = _Work()
        self.failed = False

    async def run(self) -> None:
        """Introduce this worker to its pool, then live until told to leave."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._start(self._obey)
                self._start(self._report)
                await self._tell(Hello(self._worker, os.getpid(), PROTOCOL_VERSION))
        finally:
            for links in self._epochs.values():
                links.close()

    # --- tasks ---

    def _start(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._guard, task, *args)

    async def _guard(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run a task of this worker. What a peer or the engine did wrong ends it, with one sentence to the daemon."""
        try:
            await task(*args)
        except _FATAL as error:
            self.failed = True
            kind = type(error).__name__
            self._log.emit("worker_failed", error=kind, sentence=str(error))
            with trio.move_on_after(FAREWELL_S_MAX, shield=True), suppress(TransportError):
                await self._tell(StageFailed(self._worker, kind, str(error)))
            self._leave()

    async def _obey(self) -> None:
        """Read the control link until told to leave, or until its other end is gone."""
        try:
            while True:
                (payload,) = await self._control.receive()
                await self._handle(TO_STAGE.decode(payload))
        except PeerLostError as error:
            self._log.emit("worker_leaving", reason=f"the daemon is gone: {error}")
            self._leave()

    async def _report(self) -> None:
        with suppress(PeerLostError):
            while True:
                await trio.sleep(REPORT_INTERVAL_S)
                rss = self._engine.peak_rss_bytes()
                await self._tell(StageReport(self._worker, self._work.steps, self._work.busy_s, rss))

    # --- carrying out ---

    async def _handle(self, event: Event) -> None:
        for instruction in self.machine.handle(event):
            await self._perform(instruction)

    async def _perform(self, instruction: Instruction) -> None:
        match instruction:
            case RunStep(plan, atoms, hidden):
                self._start(self._run_step, plan, atoms, hidden)
            case Emit(plan):
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # its neighbour or its epoch is gone
                    if (links := self._epochs.get(plan.epoch)) is not None:
                        await links.emit(instruction)
            case Tell(message):
                self._log_told(message)
                await self._tell(message)
            case DropStale(what, epoch, step):
                self._log.emit("stale_dropped", what=what, epoch=epoch, step=step)
            case Leave(reason):
                self._start(self._leave_in_order, reason)
            case _:
                await self._change_epochs(instruction)

    async def _change_epochs(self, instruction: EpochInstruction) -> None:
        """What brings epochs about and ends them."""
        match instruction:
            case StartLoading(prepare):
                self._start(self._load, prepare)
            case OpenEpoch(opened, stage, atoms):
                links = self._epochs[opened.epoch] = EpochLinks(opened.epoch, self._threads_of.pop(opened.epoch, 0))
                if opened.transfers:
                    # Now: what steps write from here on is newer than the blocks that `opened` calls live.
                    links.handoff = Handoff(
                        opened, self._worker, self._engine, self.pages, self, self._log, self._handoff_limits
                    )
                self._start(self._live_epoch, links, opened, stage, atoms)
            case CutHandoff(cut):
                handoff = self._epochs[cut.epoch].handoff
                assert handoff is not None
                await handoff.cut(cut.live)
            case CloseEpochs(keep):
                for epoch in [epoch for epoch in self._epochs if epoch not in keep]:
                    self._epochs.pop(epoch).close()
            case KeepOnly(atoms, blocks):
                self._start(self._keep_only, atoms, blocks)
            case ForgetPages():
                self.pages.forget()

    async def _load(self, prepare: Prepare) -> None:
        self._log.emit(
            "worker_loading",
            epoch=prepare.epoch,
            stage=prepare.stage,
            first_atom=prepare.first_atom,
            end_atom=prepare.end_atom,
            device=prepare.spec.device,
        )
        self._step_tokens_max = prepare.spec.step_tokens_max
        self._threads_of[prepare.epoch] = prepare.spec.threads
        self._threads = self._threads or prepare.spec.threads

        async def progressed(done_bytes: int, total_bytes: int) -> None:
            await self._tell(LoadProgress(prepare.epoch, self._worker, done_bytes, total_bytes))

        try:
            facts = await self._engine.load(prepare.spec, range(prepare.first_atom, prepare.end_atom), progressed)
        except EngineError as error:
            await self._epoch_failed(prepare.epoch, str(error))
        else:
            self._log_loaded(prepare.epoch, facts)
            await self._handle(WeightsLoaded(prepare.epoch, facts))

    async def _live_epoch(self, links: EpochLinks, opened: Open, stage: int, atoms: range) -> None:
        """Open an epoch's links and keep them until they are closed."""
        try:
            with links.scope:
                await self._open_epoch(links, opened, stage, atoms)
        finally:
            await links.aclose()

    async def _open_epoch(self, links: EpochLinks, opened: Open, stage: int, atoms: range) -> None:
        try:
            kv_bytes = await self._engine.reserve(atoms, opened.kv_blocks) if stage >= 0 else 0
        except EngineError as error:
            await self._epoch_failed(opened.epoch, str(error))
            return
        try:
            await links.open_activations(opened, self._around, stage, self._step_tokens_max)
        except TransportError as error:  # a port that somebody else has, an address that is none
            await self._epoch_failed(opened.epoch, str(error))
            return
        transfers = len(opened.transfers)
        self._log.emit(
            "worker_opened", epoch=opened.epoch, stage=stage, kv_blocks=opened.kv_blocks, transfers=transfers
        )
        self._kv_bytes = kv_bytes
        async with trio.open_nursery() as nursery:
            if links.upstream is not None:
                nursery.start_soon(self._guard, links.receive, self._handle, self._neighbour_lost, self._log)
            nursery.start_soon(self._guard, links.send_outputs, self._tell, self._neighbour_lost, self._log)
            if links.handoff is None:
                await self.handoff_voted(opened.epoch)
                return
            await links.handoff.open(self._around)
            await links.handoff.run()

    # --- told by the handoff of an epoch ---

    async def handoff_voted(self, epoch: int) -> None:
        """See `HandoffListener`."""
        await self._handle(EpochOpened(epoch, self._kv_bytes))

    async def handoff_progressed(self, epoch: int, sent_bytes: int, remaining_bytes: int) -> None:
        """See `HandoffListener`."""
        await self._tell(CopyProgress(epoch, self._worker, sent_bytes, remaining_bytes))

    async def handoff_across(self, epoch: int, copied: CopyTotals) -> None:
        """See `HandoffListener`."""
        await self._handle(PagesCrossed(epoch, copied))

    async def handoff_failed(self, epoch: int, sentence: str) -> None:
        """See `HandoffListener`."""
        await self._epoch_failed(epoch, sentence)

    # --- the rest of carrying out ---

    async def _neighbour_lost(self, epoch: int, sentence: str) -> None:
        await self._handle(EpochFailed(epoch, sentence))

    async def _epoch_failed(self, epoch: int, sentence: str) -> None:
        self._log.emit("epoch_discarded", epoch=epoch, sentence=sentence)
        await self._handle(EpochFailed(epoch, sentence))

    async def _keep_only(self, atoms: range, blocks: int) -> None:
        await self._handle(Dropped(await self._engine.drop(atoms, blocks)))

    async def _run_step(self, plan: StepPlan, atoms: range, hidden: BufferView | None) -> None:
        links = self._epochs[plan.epoch]
        rows = links.sampling.rows(plan) if links.sampling is not None else []
        if links.threads != self._threads:  # the first step after a cut
            await self._engine.use_threads(links.threads)
            self._threads = links.threads
        self.pages.begin_step(plan)
        started_s = trio.current_time()
        output = await self._engine.run(atoms, batch_of(plan), hidden, rows)
        compute_s = trio.current_time() - started_s
        self.pages.end_step(plan)
        links.release_slot(plan.step)
        if links.sampling is not None:
            links.sampling.drawn(plan, output.tokens)
        self._work.steps += 1
        self._work.busy_s += compute_s
        tokens = len(plan.token_ids) // 4
        self._log.emit("stage_step", epoch=plan.epoch, step=plan.step, tokens=tokens, compute_s=round(compute_s, 6))
        await self._handle(StepRan(output))
        for other in tuple(self._epochs.values()):
            if other.handoff is not None:
                await other.handoff.stepped()

    async def _tell(self, message: FromStage) -> None:
        with suppress(PeerLostError):  # `_obey` hears of it too
            await self._control.send([FROM_STAGE.encode(message)])

    async def _leave_in_order(self, reason: str) -> None:
        """Let what was computed go out first."""
        self._log.emit("worker_leaving", reason=reason)
        for links in list(self._epochs.values()):
            links.finish_outputs()
            await links.drained.wait()
        self._leave()

    def _leave(self) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()

    # --- logging ---

    def _log_loaded(self, epoch: int, facts: StageFacts) -> None:
        weights = facts.weights
        self._log.emit(
            "worker_loaded",
            epoch=epoch,
            weight_bytes=facts.weight_bytes,
            kept_bytes=weights.kept_bytes,
            warm_bytes=weights.warm_bytes,
            peer_bytes=weights.peer_bytes,
            disk_bytes=weights.disk_bytes,
            backend=facts.backend,
        )

    def _log_told(self, message: FromStage) -> None:
        match message:
            case Switched(epoch=epoch, step=step, copied=copied):
                self._log.emit(
                    "worker_switched",
                    epoch=epoch,
                    step=step,
                    sent_bytes=copied.sent_bytes,
                    final_bytes=copied.final_bytes,
                )
            case Released(epoch=epoch, freed_bytes=freed_bytes):
                self._log.emit("worker_released", epoch=epoch, freed_bytes=freed_bytes)


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
