"""Makes the replicas of a served model from real parts: forked processes, sockets, a journal on disk.

Part of the composition root (`daemon`). Each replica has a folder of its own for its journal and its workers' logs, and addresses
of its own in the server's folder of sockets; the fork server and the warm copy of the weights serve all of them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from .actors.config import ServeConfig, parse_size
from .actors.coordinator import Coordinator
from .actors.coordinator_machine import CoordinatorMachine
from .actors.event_log import EventLog, LogStream
from .actors.generation import ModelFacts
from .actors.link_place import HERE, NamedPlaces
from .actors.pipeline import Pipeline
from .actors.pipeline_spec import CoordinatorLimits, PipelineSpec
from .actors.route import StagePlacement
from .actors.scheduler import Scheduler
from .actors.scheduler_machine import SchedulerLimits
from .actors.sqlite_journal import SqliteJournal
from .actors.worker_machine import WorkerLimits
from .actors.worker_pool import BoundDoors, WorkerPool
from .policies.batching import BatchLimits
from .preparation import PreparedModel, planned_tokens
from .runtime.interface import BLOCK_TOKENS, EngineSpec
from .transport.zmq_link import ZmqTransport
from .worker_launcher import ForkLauncher

KV_MEMORY_SHARE = 0.1
"""Share of the host's memory that the KV pages of one replica may take by default; they are touched only when used.

Where the first stages' devices have a stated memory, it is the share of that: what is left lets stages load each other's
weights in a refactoring.
"""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the replicas of one server share."""

    log_folder: Path
    log_stream: LogStream
    sockets: Path
    transport: ZmqTransport
    launcher: ForkLauncher


class LocalReplicas:
    """The `ReplicaFactory` of a daemon."""

    def __init__(self, model: PreparedModel, config: ServeConfig, surroundings: Surroundings) -> None:
        self.facts = ModelFacts(
            model.name, model.program.architecture, len(model.program.attention), _context_tokens(model, config)
        )
        self._model = model
        self._config = config
        self._around = surroundings

    @property
    def kv_tokens_max(self) -> int:
        """Tokens of context for which one replica keeps pages at most."""
        return _kv_blocks_max(self._model, self._config) * BLOCK_TOKENS

    @asynccontextmanager
    async def open(self, replica: int, stages: tuple[StagePlacement, ...]) -> AsyncIterator[Pipeline]:
        """See `ReplicaFactory.open`."""
        around, config = self._around, self._config
        folder = around.log_folder / f"replica-{replica}"
        folder.mkdir(parents=True, exist_ok=True)
        log = EventLog(around.log_stream, process="daemon", pid=os.getpid(), replica=replica)
        async with SqliteJournal.open(folder / "journal.sqlite") as journal:
            scheduler = Scheduler(
                _scheduler_limits(config),
                log,
                context_tokens=self.facts.context_tokens,
                steps_under_way_max=_stages_at_once(self._model),
            )
            pool = WorkerPool(
                around.launcher.into(folder, replica),
                BoundDoors(around.transport, f"ipc://{around.sockets}/{replica}-control-{{worker}}"),
                scheduler,
                WorkerLimits(drain_s_max=config.drain),
                log,
            )
            machine = CoordinatorMachine(
                self._spec(stages), CoordinatorLimits(), NamedPlaces(f"{HERE}{replica}-{{epoch}}-{{link}}")
            )
            coordinator = Coordinator(machine, pool, scheduler, journal, log)
            yield Pipeline(replica, self.facts, scheduler, coordinator, pool)

    def first_stages(self) -> tuple[StagePlacement, ...]:
        """The stages that replica 0 begins with."""
        atoms = self._model.program.atoms
        return tuple(
            StagePlacement(
                worker=place,
                first_atom=stage.first_atom,
                end_atom=stage.end_atom,
                device=device.device,
                threads=device.threads,
                first_name=atoms[stage.first_atom].name,
                last_name=atoms[stage.end_atom - 1].name,
            )
            for place, (stage, device) in enumerate(zip(self._model.plan.stages, self._model.devices, strict=True))
        )

    def _spec(self, stages: tuple[StagePlacement, ...]) -> PipelineSpec:
        model, config = self._model, self._config
        return PipelineSpec(
            engine=EngineSpec(
                model=model.files.digest,
                dtype=config.dtype,
                deterministic=config.deterministic,
                step_tokens_max=config.step_tokens,
            ),
            stages=stages,
            layers_of=tuple(atom.layers for atom in model.program.atoms),
            kv_blocks_max=_kv_blocks_max(model, config),
            context_tokens=self.facts.context_tokens,
            stated_bytes=model.stated_bytes,
        )


def _scheduler_limits(config: ServeConfig) -> SchedulerLimits:
    batch = BatchLimits(step_tokens_max=config.step_tokens, step_rows_max=min(config.running, config.step_tokens))
    return SchedulerLimits(queue_requests_max=config.queue, running_requests_max=config.running, batch=batch)


def _context_tokens(model: PreparedModel, config: ServeConfig) -> int:
    return min(model.program.context_tokens, config.context or model.program.context_tokens)


def _kv_blocks_max(model: PreparedModel, config: ServeConfig) -> int:
    """Blocks that the KV memory holds over all stages, and no more than all running requests could ever use."""
    per_token = sum(stage.kv_bytes_per_token for stage in model.plan.stages)
    memory = parse_size(config.kv_memory) if config.kv_memory else _kv_memory_bytes(model, per_token)
    useful = config.running * -(-_context_tokens(model, config) // BLOCK_TOKENS)
    return max(1, min(useful, memory // max(1, per_token * BLOCK_TOKENS)))


def _stages_at_once(model: PreparedModel) -> int | None:
    """How many stages can compute at once: CPU workers share the cores, others have a device each (None)."""
    on_cpu = all(device.device.startswith("cpu") for device in model.devices)
    return len(os.sched_getaffinity(0)) if on_cpu else None


def _kv_memory_bytes(model: PreparedModel, bytes_per_token: int) -> int:
    """A share of the host's memory; or of what was stated for the first stages' devices, and what the plan kept at least."""
    stated = [model.stated_bytes.get(device.device, 0) for device in model.devices]
    if all(stated):
        return max(int(sum(stated) * KV_MEMORY_SHARE), planned_tokens(model.program) * bytes_per_token)
    return int(_host_memory_bytes() * KV_MEMORY_SHARE)


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
