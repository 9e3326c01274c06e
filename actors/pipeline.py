"""One pipeline as the gateway sees it: a scheduler and a coordinator, and what is true of the two together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from .coordinator import Coordinator
from .coordinator_events import PipelineState
from .generation import GenerationRequest, ModelFacts, PipelineStatus, StageStatus, TokenEvent
from .scheduler import Scheduler
from .worker_pool import WorkerPool


class Pipeline:
    """The `TokenSource` of one model."""

    def __init__(
        self,
        name: str,
        architecture: str,
        layers: int,
        scheduler: Scheduler,
        coordinator: Coordinator,
        pool: WorkerPool,
    ) -> None:
        self._name = name
        self._architecture = architecture
        self._layers = layers
        self._scheduler = scheduler
        self._coordinator = coordinator
        self._pool = pool

    def open(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[TokenEvent]]:
        """See `generation.TokenSource.open`."""
        return self._scheduler.open(request)

    def status(self) -> PipelineStatus:
        """What is true at this moment."""
        machine, counts = self._coordinator.machine, self._scheduler.counts()
        return PipelineStatus(
            ready=machine.state is PipelineState.SERVING,
            reason=machine.reason,
            epoch=machine.epoch,
            model=ModelFacts(self._name, self._architecture, self._layers, self._scheduler.context_tokens),
            stages=tuple(self._stage(stage) for stage in range(len(machine.route.stages))),
            running=counts.running,
            waiting=counts.waiting,
        )

    def _stage(self, stage: int) -> StageStatus:
        machine, counts = self._coordinator.machine, self._scheduler.counts()
        placement = machine.route.stages[stage]
        worker = placement.worker
        facts, report = machine.roster.facts.get(worker), self._pool.report(worker)
        return StageStatus(
            stage=stage,
            worker=worker,
            state=machine.worker_state(worker),
            pid=self._pool.pid(worker),
            device=placement.device,
            epoch=machine.epoch,
            first_atom=placement.first_name,
            last_atom=placement.last_name,
            layers=list(facts.layers) if facts else [],
            backend=facts.backend if facts else "",
            weight_bytes=facts.weight_bytes if facts else 0,
            weight_bytes_loaded=self._coordinator.loading.get(worker, (0, 0))[0],
            weight_bytes_expected=self._coordinator.loading.get(worker, (0, 0))[1],
            peak_rss_bytes=report.peak_rss_bytes if report else 0,
            busy_s=report.busy_s if report else 0.0,
            steps=report.steps if report else 0,
            kv_bytes=machine.roster.kv_bytes.get(worker, 0),
            kv_pages_used=counts.kv_blocks_used,
            kv_pages_free=counts.kv_blocks - counts.kv_blocks_used,
        )
