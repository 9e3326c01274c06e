"""One pipeline as the gateway sees it: a scheduler and a supervisor, and what is true of the two together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from .generation import GenerationRequest, ModelFacts, PipelineStatus, StageStatus, TokenEvent
from .scheduler import Scheduler
from .supervisor import Supervisor
from .supervisor_machine import PipelineState


class Pipeline:
    """The `TokenSource` of one model."""

    def __init__(self, name: str, architecture: str, layers: int, scheduler: Scheduler, supervisor: Supervisor) -> None:
        self._name = name
        self._architecture = architecture
        self._layers = layers
        self._scheduler = scheduler
        self._supervisor = supervisor

    def open(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[TokenEvent]]:
        """See `generation.TokenSource.open`."""
        return self._scheduler.open(request)

    def status(self) -> PipelineStatus:
        """What is true at this moment."""
        machine, counts = self._supervisor.machine, self._scheduler.counts()
        return PipelineStatus(
            ready=machine.state is PipelineState.SERVING,
            reason=machine.reason,
            epoch=machine.epoch,
            model=ModelFacts(self._name, self._architecture, self._layers, self._scheduler.context_tokens),
            stages=tuple(self._stage(stage) for stage in range(len(machine.stages))),
            running=counts.running,
            waiting=counts.waiting,
        )

    def _stage(self, stage: int) -> StageStatus:
        machine, counts = self._supervisor.machine, self._scheduler.counts()
        record, plan = machine.stages[stage], machine.spec.stages[stage]
        report = self._supervisor.reports.get(stage)
        return StageStatus(
            stage=stage,
            state=record.phase.value,
            pid=record.pid,
            device=plan.device,
            epoch=machine.epoch,
            first_atom=plan.first_name,
            last_atom=plan.last_name,
            layers=list(record.loaded.layers) if record.loaded else [],
            backend=record.loaded.backend if record.loaded else "",
            weight_bytes=record.loaded.weight_bytes if record.loaded else 0,
            weight_bytes_loaded=record.done_bytes,
            weight_bytes_expected=record.total_bytes,
            peak_rss_bytes=report.peak_rss_bytes if report else 0,
            busy_s=report.busy_s if report else 0.0,
            steps=report.steps if report else 0,
            kv_bytes=record.kv_bytes,
            kv_pages_used=counts.kv_blocks_used,
            kv_pages_free=counts.kv_blocks - counts.kv_blocks_used,
        )
