"""A whole pipeline in one trio loop: real scheduler, supervisor and stages over an in-memory network with modelled engines."""

import io
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import trio
from flexpipe.actors.event_log import EventLog
from flexpipe.actors.pipeline import Pipeline
from flexpipe.actors.pipeline_spec import PipelineSpec, StagePlan, SupervisorLimits
from flexpipe.actors.scheduler import Scheduler
from flexpipe.actors.scheduler_machine import SchedulerLimits
from flexpipe.actors.supervisor import Supervisor
from flexpipe.actors.supervisor_machine import SupervisorMachine
from flexpipe.sim.modelled_engine import ModelledEngine, ModelledModel
from flexpipe.sim.task_launcher import TaskLauncher
from flexpipe.transport.memory import MemoryNetwork, Weather

MODEL = ModelledModel(layers=6, vocabulary=1000)
CONTEXT_TOKENS = 512


@dataclass
class ModelledPipeline:
    pipeline: Pipeline
    scheduler: Scheduler
    supervisor: Supervisor
    network: MemoryNetwork
    launcher: TaskLauncher
    log: io.StringIO

    async def wait_ready(self):
        while not self.pipeline.status().ready:
            await trio.sleep(0.01)

    async def wait_not_ready(self):
        while self.pipeline.status().ready:
            await trio.sleep(0.01)


@asynccontextmanager
async def modelled_pipeline(
    *, cuts=(2, 4), seed=1, weather=Weather(), blocks=64, limits=None, step_s=0.01, supervisor_limits=None, engine=None
):
    """Yield a started `ModelledPipeline`; stop it gracefully on leaving."""
    edges = [0, *cuts, MODEL.layers]
    stages = tuple(
        StagePlan(first, end, f"layers.{first}", f"layers.{end - 1}", "cpu", 1) for first, end in pairwise(edges)
    )
    spec = PipelineSpec("", "", stages, "float32", False, 512, kv_blocks_max=blocks, context_tokens=CONTEXT_TOKENS)
    log_text = io.StringIO()
    log = EventLog(log_text, process="daemon")
    network = MemoryNetwork(seed, weather)
    machine = SupervisorMachine(spec, supervisor_limits or SupervisorLimits(), "memory://activations-{epoch}-{stage}")
    scheduler = Scheduler(limits or SchedulerLimits(), log, context_tokens=CONTEXT_TOKENS)
    async with trio.open_nursery() as nursery, network.open("daemon") as transport:
        launcher = TaskLauncher(network, nursery, engine or (lambda: ModelledEngine(MODEL, step_s=step_s)), log_text)
        supervisor = Supervisor(machine, launcher, transport, scheduler, log, "memory://control-{epoch}-{stage}")
        await nursery.start(scheduler.run)
        ended = trio.Event()

        async def supervise():
            await supervisor.run()
            ended.set()

        nursery.start_soon(supervise)
        pipeline = Pipeline("modelled", "ModelledLM", MODEL.layers, scheduler, supervisor)
        yield ModelledPipeline(pipeline, scheduler, supervisor, network, launcher, log_text)
        supervisor.stop()
        await ended.wait()
        nursery.cancel_scope.cancel()
