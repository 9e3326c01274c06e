"""Where the simulated processes live: the workers, and one daemon after another with its scheduler, pool and coordinators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Protocol

import trio

from ...actors.handoff_machine import HandoffLimits
from ...actors.link_place import NamedPlaces
from ...actors.pipeline_spec import CoordinatorLimits, PipelineSpec
from ...actors.route import Route, StagePlacement
from ...actors.scheduler_machine import SchedulerLimits
from ...actors.stage import StageActor
from ...actors.worker_machine import WorkerLimits
from ...actors.worker_pool import BoundDoors, ControlPlace
from ...runtime.interface import EngineSpec
from ...transport.interface import Link, Transport
from ...transport.memory import MemoryNetwork
from ..modelled_engine import PAGE_BYTES
from ..task_launcher import TaskLauncher, TaskProcess
from .actors import Hand, LogLines, WorldCoordinator, WorldEngine, WorldJournal, WorldLog, WorldPool, WorldScheduler
from .checks import Checks
from .mutations import Mutation
from .scenario import CONTEXT_TOKENS, Scenario

COORDINATOR_LIMITS = CoordinatorLimits(
    prepare_s_max=20.0, switch_s_max=20.0, resend_s=0.1, restarts_max=8, restart_pause_s=0.02
)
"""Patient where a benign fault must do no harm, quick where waiting only costs time."""
WORKER_LIMITS = WorkerLimits(drain_s_max=5.0, terminate_s_max=1.0)


class Outside(Protocol):
    """What a house needs of the world that it stands in."""

    scenario: Scenario
    network: MemoryNetwork
    journal: WorldJournal
    checks: Checks

    @property
    def faults(self) -> Hand:
        """The hand that does harm."""
        ...

    def follow(self) -> None:
        """Something happened at the coordinator."""
        ...

    def log(self, process: str) -> WorldLog:
        """The log of a process."""
        ...


class Guest(Protocol):
    """Whoever has a connection to the daemon."""

    def cut_off(self) -> None:
        """It is gone."""
        ...


class WorkerHouse(TaskLauncher):
    """The worker processes of all daemons. ``engines`` are those of workers that live."""

    def __init__(self, outside: Outside, nursery: trio.Nursery, mutation: Mutation) -> None:
        super().__init__(outside.network, nursery, self._make_world_engine, LogLines())
        self.engines: dict[int, WorldEngine] = {}
        self._outside = outside
        self._mutation = mutation

    def make_actor(self, worker: int, link: Link, transport: Transport, process: TaskProcess) -> StageActor:
        """See `TaskLauncher`."""
        outside, scenario = self._outside, self._outside.scenario
        engine = self.engines[worker] = self._make_world_engine()
        engine.worker, engine.hand, engine.checks = worker, outside.faults, outside.checks
        limits = HandoffLimits(
            run_bytes_max=scenario.run_pages_max * PAGE_BYTES,
            remaining_bytes_max=scenario.remaining_pages_max * PAGE_BYTES,
            copy_share_max=0.5,
        )
        actor = self._mutation.stage(worker, link, transport, engine, outside.log(process.name), limits)
        actor.checks = outside.checks
        actor.machine = self._mutation.stage_machine(worker)
        actor.pages = self._mutation.pages()
        return actor

    def end_all(self) -> None:
        """The daemon died: each worker of its host ends itself."""
        for process in list(self.processes.values()):
            process.signal(kill=True)

    def _make_world_engine(self) -> WorldEngine:
        return self._mutation.engine(self._outside.scenario.model, self._outside.scenario.speed)

    def untidy(self, route: Route, kv_blocks: int) -> str:
        """What is not as it should be, "" where all is.

        Only the workers of ``route`` live, and each holds its atoms and ``kv_blocks`` pages of each of their layers.
        """
        if sorted(self.actors) != sorted(route.workers):
            return f"workers {sorted(self.actors)} live, the route has {sorted(route.workers)}"
        for stage in route.stages:
            engine = self.engines[stage.worker]
            if engine.resident != set(stage.atoms):
                return f"worker {stage.worker} holds atoms {sorted(engine.resident)}, the route gives it {stage.atoms}"
            pages = {atom // 2: kv_blocks for atom in stage.atoms if atom % 2 == 0}
            if engine.pages_held != pages:
                return f"worker {stage.worker} has so many pages of its layers: {engine.pages_held}, not {pages}"
        return ""


class _Leash:
    """A daemon's hold on a worker process: it ends with the daemon."""

    def __init__(self, process: TaskProcess, holds: Callable[[], bool]) -> None:
        self.pid = process.pid
        self.wait = process.wait
        self._process = process
        self._holds = holds

    def signal(self, *, kill: bool) -> None:
        """See `WorkerProcess`."""
        if self._holds():
            self._process.signal(kill=kill)


class Daemon:
    """One daemon process, from its start until it crashes. A coordinator that crashes in it is replaced by another."""

    def __init__(self, outside: Outside, house: WorkerHouse, mutation: Mutation) -> None:
        self.coordinator: WorldCoordinator | None = None
        self.is_open = False
        self.scheduler: WorldScheduler = mutation.scheduler(
            SchedulerLimits(), outside.log("daemon"), context_tokens=CONTEXT_TOKENS
        )
        self.scheduler.checks = outside.checks
        self._outside = outside
        self._house = house
        self._mutation = mutation
        self._alive = True
        self._scope = trio.CancelScope()
        self._coordinator_scope = trio.CancelScope()
        self._guests: dict[Guest, None] = {}

    async def live(self) -> None:
        """Until it crashes."""
        outside, log = self._outside, self._outside.log("daemon")
        with self._scope:
            async with outside.network.open("daemon") as transport, trio.open_nursery() as nursery:
                doors = BoundDoors(transport, "memory://control-{worker}")
                pool = WorldPool(self, doors, self.scheduler, WORKER_LIMITS, log)
                pool.hand = outside.faults
                await nursery.start(self.scheduler.run)
                await nursery.start(pool.run)
                self.is_open = True
                while True:
                    with trio.CancelScope() as self._coordinator_scope:
                        await self._coordinate(pool, log)
                    pool.listener = None
                    self.coordinator = None
                    await trio.sleep(outside.scenario.restart_s)

    async def _coordinate(self, pool: WorldPool, log: WorldLog) -> None:
        outside = self._outside
        machine = self._mutation.coordinator_machine(
            _spec(outside.scenario), COORDINATOR_LIMITS, NamedPlaces("memory://{epoch}-{link}")
        )
        coordinator = WorldCoordinator(machine, pool, self.scheduler, outside.journal, log)
        coordinator.checks, coordinator.follow = outside.checks, outside.follow
        self.coordinator = coordinator
        await coordinator.run()
        await trio.sleep_forever()  # the pipeline was given up

    async def launch(self, placement: StagePlacement, control: ControlPlace) -> _Leash:
        """See `WorkerLauncher`."""
        if not self._alive:
            await trio.sleep_forever()  # the dead start nobody, though their tasks take a moment to end
        return _Leash(await self._house.launch(placement, control), lambda: self._alive)

    @contextmanager
    def visit(self, guest: Guest) -> Iterator[None]:
        """Have a connection to this daemon."""
        self._guests[guest] = None
        try:
            yield
        finally:
            del self._guests[guest]

    def crash_coordinator(self) -> None:
        """End the coordinator as if it had raised."""
        self._coordinator_scope.cancel()

    def crash(self) -> None:
        """End the process as kill -9 would: its clients' connections end, and its workers, which watch over it, with it."""
        self._alive = self.is_open = False
        for guest in list(self._guests):
            guest.cut_off()
        self._outside.network.crash("daemon")
        self._house.end_all()
        self._scope.cancel()


def _spec(scenario: Scenario) -> PipelineSpec:
    edges = (0, *scenario.cuts, scenario.model.atoms)
    stages = tuple(
        StagePlacement(worker, first, end, f"device:{worker}", 1) for worker, (first, end) in enumerate(pairwise(edges))
    )
    return PipelineSpec(EngineSpec(), stages, scenario.model.layers_of, scenario.kv_blocks_max, CONTEXT_TOKENS)
