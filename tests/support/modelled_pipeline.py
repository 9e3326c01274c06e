"""Whole pipelines in one trio loop: real schedulers, coordinators and workers over an in-memory network with modelled engines.

`modelled_pipeline` has one by itself; `modelled_replicas` has those that serve a model together, and a reshaper.
"""

import io
import itertools
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import trio
from flexpipe.actors.coordinator import Coordinator
from flexpipe.actors.coordinator_events import PipelineState, Refactor
from flexpipe.actors.coordinator_machine import CoordinatorMachine
from flexpipe.actors.event_log import EventLog
from flexpipe.actors.generation import ModelFacts
from flexpipe.actors.link_place import NamedPlaces
from flexpipe.actors.pipeline import Pipeline
from flexpipe.actors.pipeline_spec import CoordinatorLimits, PipelineSpec
from flexpipe.actors.refactor import RefactorReport
from flexpipe.actors.replicas import ReplicaLimits, Replicas
from flexpipe.actors.reshaper import Reshaper
from flexpipe.actors.route import StagePlacement
from flexpipe.actors.scheduler import Scheduler
from flexpipe.actors.scheduler_machine import SchedulerLimits
from flexpipe.actors.worker_machine import WorkerLimits
from flexpipe.actors.worker_pool import BoundDoors, WorkerPool
from flexpipe.device_supply import HostDevices
from flexpipe.policies.types import AtomCost
from flexpipe.refactor_planning import RefactorPlanner
from flexpipe.runtime.interface import EngineSpec
from flexpipe.sim.memory_journal import MemoryJournal
from flexpipe.sim.modelled_engine import ModelledEngine, ModelledModel, ModelledSpeed
from flexpipe.sim.task_launcher import TaskLauncher
from flexpipe.transport.memory import MemoryNetwork, Weather

MODEL = ModelledModel(layers=6, vocabulary=1000)
CONTEXT_TOKENS = 512
FACTS = ModelFacts("modelled", "ModelledLM", MODEL.layers, CONTEXT_TOKENS)


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
        return tuple(itertools.islice(itertools.count(self.machine.roster.next_worker), count))


class _OneHost:
    """Where the workers of a pipeline live and meet: here, all of them."""

    def __init__(self, factory):
        self._factory = factory

    def places(self, replica):
        return NamedPlaces(f"memory://{replica}-{{epoch}}-{{link}}")

    def recovery(self, _replica):
        return None

    def doors(self, replica):
        return BoundDoors(self._factory.transport, f"memory://{replica}-control-{{worker}}")

    def launcher(self, replica):
        factory = self._factory
        prefix = "worker" if replica == 0 else f"replica-{replica}-worker"
        return TaskLauncher(factory.network, factory.nursery, factory.engine, factory.log_text, prefix)


class ModelledFactory:
    """Makes modelled pipelines in a loop; a `ReplicaFactory`. ``made`` has the latest of each number."""

    def __init__(
        self,
        nursery,
        network,
        transport,
        *,
        blocks=64,
        limits=None,
        speed=ModelledSpeed(step_s=0.01),
        coordinator_limits=None,
        worker_limits=None,
        engine=None,
        steps_under_way_max=None,
        ground=None,
    ):
        self.made = {}
        self.journals = {}
        self.log_text = io.StringIO()
        self.engine = engine or (lambda: ModelledEngine(MODEL, speed))
        self._refusal = None
        self.nursery = nursery
        self.network = network
        self.transport = transport
        self._blocks = blocks
        self._limits = limits or SchedulerLimits()
        self._steps_under_way_max = steps_under_way_max
        self._coordinator_limits = coordinator_limits or CoordinatorLimits()
        self._worker_limits = worker_limits or WorkerLimits()
        self._ground = ground or _OneHost(self)

    def refuse(self, error):
        """Let the next one not be made."""
        self._refusal = error

    @asynccontextmanager
    async def open(self, replica, stages):
        if self._refusal is not None:
            raise self._refusal
        spec = PipelineSpec(EngineSpec(), stages, MODEL.layers_of, self._blocks, CONTEXT_TOKENS)
        log = EventLog(self.log_text, process="daemon", replica=replica)
        machine = CoordinatorMachine(spec, self._coordinator_limits, self._ground.places(replica))
        scheduler = Scheduler(
            self._limits, log, context_tokens=CONTEXT_TOKENS, steps_under_way_max=self._steps_under_way_max
        )
        journal = self.journals.setdefault(replica, MemoryJournal(write_s=0.002))
        launcher = self._ground.launcher(replica)
        pool = WorkerPool(launcher, self._ground.doors(replica), scheduler, self._worker_limits, log)
        coordinator = Coordinator(machine, pool, scheduler, journal, log, self._ground.recovery(replica))
        pipeline = Pipeline(replica, FACTS, scheduler, coordinator, pool)
        self.made[replica] = ModelledPipeline(
            pipeline, scheduler, coordinator, pool, self.network, launcher, journal, self.log_text
        )
        yield pipeline


@asynccontextmanager
async def modelled_pipeline(*, cuts=(4, 8), seed=1, weather=Weather(), **options):
    """Yield a started `ModelledPipeline`; stop it gracefully on leaving. ``options`` are `ModelledFactory`'s."""
    network = MemoryNetwork(seed, weather)
    async with trio.open_nursery() as nursery, network.open("daemon") as transport:
        factory = ModelledFactory(nursery, network, transport, **options)
        async with factory.open(0, placements(cuts, range(len(cuts) + 1))) as pipeline:
            ended = trio.Event()

            async def live():
                await pipeline.run()
                ended.set()

            nursery.start_soon(live)
            made = factory.made[0]
            yield made
            pipeline.stop()
            await ended.wait()
        assert made.machine.state in (PipelineState.STOPPED, PipelineState.FAILED)
        nursery.cancel_scope.cancel()


class ModelledPlanner:
    """The real planner, without its thread: virtual time would run on meanwhile."""

    def __init__(self, devices, threads=None, cores=8, atom_ns=1_000_000):
        self.atoms = tuple(
            AtomCost(f"layers.{atom // 2}.{'mlp' if atom % 2 else 'attention'}", atom_ns, 100, 4, 8, layers)
            for atom, layers in enumerate(MODEL.layers_of)
        )
        self.planner = RefactorPlanner(self.atoms, HostDevices(devices, threads, cores))

    async def plan(self, request, route, **facts):
        await trio.lowlevel.checkpoint()
        return self.planner.plan(request, route, **facts)

    async def copy(self, route, **facts):
        await trio.lowlevel.checkpoint()
        return self.planner.copy(route, **facts)


@dataclass
class ModelledReplicas:
    replicas: Replicas
    reshaper: Reshaper
    factory: ModelledFactory
    network: MemoryNetwork
    ended: trio.Event

    @property
    def made(self):
        """The `ModelledPipeline` of each replica, by number."""
        return self.factory.made

    def numbers(self):
        return [replica.number for replica in self.replicas.present]

    def events(self, name):
        """What was logged under this name."""
        lines = map(json.loads, self.factory.log_text.getvalue().splitlines())
        return [line for line in lines if line["event"] == name]

    async def until(self, condition):
        while not condition():
            await trio.sleep(0.001)

    async def wait_ready(self):
        """Until replica 0 serves, and its first epoch is over and done."""
        await self.until(lambda: self.replicas.present and self.replicas.present[0].watch.is_over)

    async def told(self, request):
        """Carry a request out; everything that was told of it."""
        return [event async for event in self.reshaper.refactor(request)]

    async def done(self, request):
        """Carry a request out; its report."""
        events = await self.told(request)
        assert isinstance(events[-1], RefactorReport), events[-1]
        return events[-1]


@asynccontextmanager
async def modelled_replicas(
    *, cuts=(4, 8), seed=1, weather=Weather(), planner=None, replica_limits=ReplicaLimits(), **options
):
    """Yield `ModelledReplicas` of which replica 0 was started; stop them gracefully on leaving."""
    network = MemoryNetwork(seed, weather)
    async with trio.open_nursery() as nursery, network.open("daemon") as transport:
        factory = ModelledFactory(nursery, network, transport, **options)
        replicas = Replicas(FACTS, factory, EventLog(factory.log_text, process="daemon"), replica_limits)
        reshaper = Reshaper(planner or ModelledPlanner("cpu:12"), replicas)
        ended = trio.Event()

        async def live():
            await replicas.run(placements(cuts, range(len(cuts) + 1)))
            ended.set()

        await nursery.start(reshaper.run)
        nursery.start_soon(live)
        yield ModelledReplicas(replicas, reshaper, factory, network, ended)
        replicas.stop()
        await ended.wait()
        nursery.cancel_scope.cancel()
