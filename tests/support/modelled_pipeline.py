"""A whole pipeline in one trio loop: real scheduler, coordinator and workers over an in-memory network with modelled engines."""

import io
import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import trio
from flexpipe.actors.coordinator import Coordinator
from flexpipe.actors.coordinator_events import PipelineState, Refactor
from flexpipe.actors.coordinator_machine import CoordinatorMachine
from flexpipe.actors.event_log import EventLog
from flexpipe.actors.pipeline import Pipeline
from flexpipe.actors.pipeline_spec import CoordinatorLimits, PipelineSpec
from flexpipe.actors.refactor import RefactorReport
from flexpipe.actors.route import StagePlacement
from flexpipe.actors.scheduler import Scheduler
from flexpipe.actors.scheduler_machine import SchedulerLimits
from flexpipe.actors.worker_machine import WorkerLimits
from flexpipe.actors.worker_pool import WorkerPool
from flexpipe.runtime.interface import EngineSpec
from flexpipe.sim.memory_journal import MemoryJournal
from flexpipe.sim.modelled_engine import ModelledEngine, ModelledModel, ModelledSpeed
from flexpipe.sim.task_launcher import TaskLauncher
from flexpipe.transport.memory import MemoryNetwork, Weather

MODEL = ModelledModel(layers=6, vocabulary=1000)
CONTEXT_TOKENS = 512


def placements(cuts, workers):
    """Stages of the model cut at ``cuts`` (atoms), at ``workers``, each on a device named after it."""
    edges = [0, *cuts, MODEL.atoms]
    return tuple(
        StagePlacement(worker, first, end, f"cpu:{worker}", 1, f"atom {first}", f"atom {end - 1}")
        for worker, (first, end) in zip(workers, pairwise(edges), strict=True)
    )


@dataclass
class ModelledPipeline:
    pipeline: Pipeline
    scheduler: Scheduler
    coordinator: Coordinator
    pool: WorkerPool
    network: MemoryNetwork
    launcher: TaskLauncher
    journal: MemoryJournal
    log: io.StringIO

    async def wait_ready(self):
        while not self.pipeline.status().ready:
            await trio.sleep(0.01)

    async def wait_not_ready(self):
        while self.pipeline.status().ready:
            await trio.sleep(0.01)

    @property
    def machine(self):
        return self.coordinator.machine

    def refactor(self, cuts, workers, strategy="precopy", *, allow_preempt=False):
        """Begin a change to ``cuts`` at ``workers``; the watch."""
        change = Refactor(self.machine.epoch, placements(cuts, workers), strategy, allow_preempt)
        return self.coordinator.refactor(change)

    async def refactored(self, cuts, workers, strategy="precopy", **options):
        """Carry a change out; its report."""
        watch = self.refactor(cuts, workers, strategy, **options)
        events = [event async for event in watch.events()]
        assert isinstance(events[-1], RefactorReport), events[-1]
        return events[-1]

    def fresh_workers(self, count):
        """Ids for new workers."""
        return tuple(itertools.islice(itertools.count(self.machine.next_worker), count))


@asynccontextmanager
async def modelled_pipeline(
    *,
    cuts=(4, 8),
    seed=1,
    weather=Weather(),
    blocks=64,
    limits=None,
    speed=ModelledSpeed(step_s=0.01),
    coordinator_limits=None,
    worker_limits=None,
    engine=None,
):
    """Yield a started `ModelledPipeline`; stop it gracefully on leaving."""
    spec = PipelineSpec(
        EngineSpec("", ""), placements(cuts, range(len(cuts) + 1)), MODEL.layers_of, blocks, CONTEXT_TOKENS
    )
    log_text = io.StringIO()
    log = EventLog(log_text, process="daemon")
    network = MemoryNetwork(seed, weather)
    machine = CoordinatorMachine(spec, coordinator_limits or CoordinatorLimits(), "memory://{epoch}-{link}")
    scheduler = Scheduler(limits or SchedulerLimits(), log, context_tokens=CONTEXT_TOKENS)
    journal = MemoryJournal(write_s=0.002)
    async with trio.open_nursery() as nursery, network.open("daemon") as transport:
        launcher = TaskLauncher(network, nursery, engine or (lambda: ModelledEngine(MODEL, speed)), log_text)
        pool = WorkerPool(
            launcher, transport, scheduler, worker_limits or WorkerLimits(), log, "memory://control-{worker}"
        )
        coordinator = Coordinator(machine, pool, scheduler, journal, log)
        await nursery.start(scheduler.run)
        await nursery.start(pool.run)
        ended = trio.Event()

        async def coordinate():
            await coordinator.run()
            ended.set()

        nursery.start_soon(coordinate)
        pipeline = Pipeline("modelled", "ModelledLM", MODEL.layers, scheduler, coordinator, pool)
        yield ModelledPipeline(pipeline, scheduler, coordinator, pool, network, launcher, journal, log_text)
        coordinator.stop()
        await ended.wait()
        assert machine.state in (PipelineState.STOPPED, PipelineState.FAILED)
        nursery.cancel_scope.cancel()
