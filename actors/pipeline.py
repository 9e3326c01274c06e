"""One pipeline, a replica of those that serve a model: its scheduler, coordinator and workers, and what is true of the three."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import msgspec
import trio

from .change_machine import OUTWARD
from .change_watch import ChangeWatch
from .coordinator import Coordinator
from .coordinator_events import Finish, PipelineState, Refactor
from .coordinator_machine import CoordinatorMachine
from .generation import GenerationRequest, ModelFacts, PipelineStatus, ReplicaStatus, StageStatus, TokenEvent
from .route import Route
from .scheduler import Scheduler
from .scheduler_machine import SchedulerCounts
from .token_times import TokenTimes
from .worker_pool import WorkerPool

_TAKES_NO_REQUESTS = frozenset({PipelineState.FAILED, PipelineState.STOPPING, PipelineState.STOPPED})


class Pipeline:
    """See the module. A `TokenSource` by itself where it has no company."""

    def __init__(
        self, replica: int, facts: ModelFacts, scheduler: Scheduler, coordinator: Coordinator, pool: WorkerPool
    ) -> None:
        self.replica = replica
        self._facts = facts
        self._scheduler = scheduler
        self._coordinator = coordinator
        self._pool = pool
        self._is_coordinating = False
        self._is_stopped = False

    # --- its life ---

    async def run(self) -> Finish:
        """Start it and keep it alive until it was stopped, or given up; then no process of it is left."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._scheduler.run)
            await nursery.start(self._pool.run)
            if self._is_stopped:
                finish = Finish(False, "it was stopped before it started")
            else:
                self._is_coordinating = True
                finish = await self._coordinator.run()
            nursery.cancel_scope.cancel()
        return finish

    def stop(self) -> None:
        """Ask for a graceful end; requests that are still here fail with "shutting_down"."""
        self._is_stopped = True
        if self._is_coordinating:
            self._coordinator.stop()

    def watch_start(self, beside: Pipeline | None) -> ChangeWatch:
        """Watch it come up, and what that does to the requests of the one ``beside``. To be called before `run`."""
        return self._coordinator.watch_start((beside or self).times)

    def check_changeable(self) -> None:
        """Raise `RefactorRefusedError` unless a change may begin now."""
        self._coordinator.machine.check_changeable()

    async def changeable(self) -> None:
        """Wait a moment until a change may begin. Raises `RefactorRefusedError` where none may."""
        await self._coordinator.changeable()

    def refactor(self, change: Refactor) -> ChangeWatch:
        """Begin a change. Raises `RefactorRefusedError`, and then nothing was changed."""
        return self._coordinator.refactor(change)

    # --- its requests ---

    def open(
        self, request: GenerationRequest, outputs: tuple[int, ...] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[TokenEvent]]:
        """See `generation.TokenSource.open`; ``outputs`` are the tokens that another replica delivered already."""
        return self._scheduler.open(request, outputs)

    async def wait_idle(self) -> None:
        """Wait until no request is here."""
        await self._scheduler.wait_idle()

    # --- what is true of it ---

    @property
    def is_serving(self) -> bool:
        """Whether requests make progress."""
        return self._coordinator.machine.state is PipelineState.SERVING

    @property
    def takes_requests(self) -> bool:
        """Whether it serves, or will."""
        return not self._is_stopped and self._coordinator.machine.state not in _TAKES_NO_REQUESTS

    @property
    def work_tokens(self) -> int:
        """See `Scheduler.work_tokens`."""
        return self._scheduler.work_tokens

    @property
    def times(self) -> TokenTimes:
        """When its requests' tokens left."""
        return self._scheduler.times

    @property
    def counts(self) -> SchedulerCounts:
        """Of its scheduler."""
        return self._scheduler.counts()

    @property
    def route(self) -> Route:
        """The stages that serve, or served last, or are to serve first."""
        return self._coordinator.machine.route

    @property
    def next_worker(self) -> int:
        """The number of its next worker."""
        return self._coordinator.machine.roster.next_worker

    def devices(self) -> frozenset[str]:
        """Those that it uses or is about to: of its stages, of stages in the making, and of processes that have not ended."""
        change = self._coordinator.machine.change
        stages = (*self.route.stages, *(change.route.stages if change is not None else ()))
        return frozenset((*(stage.device for stage in stages), *self._pool.devices().values()))

    def leaving_devices(self) -> frozenset[str]:
        """Those of processes that serve no more and have not ended."""
        return frozenset(device for worker, device in self._pool.devices().items() if worker not in self.route.workers)

    def status(self) -> PipelineStatus:
        """What is true at this moment."""
        machine, counts = self._coordinator.machine, self.counts
        mine = ReplicaStatus(
            self.replica, self.is_serving, machine.reason, machine.epoch, counts.running, counts.waiting
        )
        return PipelineStatus(
            ready=mine.ready,
            reason=mine.reason,
            epoch=mine.epoch,
            model=msgspec.structs.replace(self._facts, context_tokens=self._scheduler.context_tokens),
            stages=tuple(self._stage(stage) for stage in range(len(machine.route.stages))),
            running=mine.running,
            waiting=mine.waiting,
            replicas=(mine,),
        )

    def _stage(self, stage: int) -> StageStatus:
        machine, counts = self._coordinator.machine, self.counts
        placement = machine.route.stages[stage]
        worker = placement.worker
        facts, report = machine.roster.facts.get(worker), self._pool.report(worker)
        return StageStatus(
            replica=self.replica,
            stage=stage,
            worker=worker,
            state=_worker_state(machine, worker),
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


def _worker_state(machine: CoordinatorMachine, worker: int) -> str:
    """One word for people."""
    if worker not in machine.roster:
        return "gone"
    if machine.state is PipelineState.SERVING:
        return "serving"
    if not machine.roster.is_up[worker] or machine.change is None:
        return "starting"
    return {"load": "loading", "copy": "opening"}.get(OUTWARD[machine.change.phase], "loaded")
