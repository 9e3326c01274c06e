"""Makes the replicas of a served model from real parts: worker processes, sockets, a journal.

Part of the composition root. What the replicas of one server share, and where their workers live, is a `Site`: one host
(`HostSite`) or the nodes of a cluster (`cluster_site`). Each replica has a folder of its own for its logs.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .actors.config import ServeConfig, parse_size
from .actors.coordinator import Coordinator, RecoveryPlanner
from .actors.coordinator_machine import CoordinatorMachine
from .actors.event_log import EventLog, LogStream
from .actors.generation import ModelFacts
from .actors.journal import Journal
from .actors.link_place import HERE, LinkPlaces, NamedPlaces
from .actors.pipeline import Pipeline
from .actors.pipeline_spec import CoordinatorLimits, PipelineSpec
from .actors.route import StagePlacement
from .actors.scheduler import Scheduler
from .actors.scheduler_machine import SchedulerLimits
from .actors.sqlite_journal import SqliteJournal
from .actors.worker_machine import WorkerLimits
from .actors.worker_pool import BoundDoors, ControlDoors, WorkerLauncher, WorkerPool
from .policies.batching import BatchLimits
from .preparation import ModelOnDisk, PreparedModel, planned_tokens
from .runtime.interface import BLOCK_TOKENS, EngineSpec
from .transport.zmq_link import ZmqTransport
from .worker_launcher import ForkLauncher

KV_MEMORY_SHARE = 0.1
"""Share of the host's memory that the KV pages of one replica may take by default; they are touched only when used.

Where the first stages' devices have a stated memory, it is the share of that: what is left lets stages load each other's
weights in a refactoring.
"""


class Site(Protocol):
    """Where the workers of a server live and meet, and where its decisions are kept.

    ``stated_bytes`` is what weights and KV may take on a device, for those of which somebody stated it.
    """

    @property
    def log_folder(self) -> Path:
        """Where logs go."""
        ...

    @property
    def log_stream(self) -> LogStream:
        """The daemon's log."""
        ...

    @property
    def stated_bytes(self) -> Mapping[str, int]:
        """See the class."""
        ...

    def launcher(self, folder: Path, replica: int) -> WorkerLauncher:
        """Starts the workers of ``replica``, whose logs go to ``folder``."""
        ...

    def doors(self, replica: int) -> ControlDoors:
        """Lets them reach their pool."""
        ...

    def places(self, replica: int) -> LinkPlaces:
        """Where they meet each other."""
        ...

    def journal(self, folder: Path, replica: int) -> AbstractAsyncContextManager[Journal]:
        """The decisions of ``replica``. Entering raises `JournalError`."""
        ...

    def recovery(self, replica: int) -> RecoveryPlanner | None:
        """Finds it devices in the place of some that are gone; None where none ever go."""
        ...


@dataclass(frozen=True, slots=True)
class HostSite:
    """The `Site` of a server on one host."""

    log_folder: Path
    log_stream: LogStream
    sockets: Path
    transport: ZmqTransport
    fork_launcher: ForkLauncher
    stated_bytes: Mapping[str, int] = field(default_factory=dict)

    def launcher(self, folder: Path, replica: int) -> WorkerLauncher:
        """See `Site.launcher`."""
        return self.fork_launcher.into(folder, replica)

    def doors(self, replica: int) -> ControlDoors:
        """See `Site.doors`."""
        return BoundDoors(self.transport, f"ipc://{self.sockets}/{replica}-control-{{worker}}")

    def places(self, replica: int) -> LinkPlaces:
        """See `Site.places`."""
        return NamedPlaces(f"{HERE}{replica}-{{epoch}}-{{link}}")

    def journal(self, folder: Path, replica: int) -> AbstractAsyncContextManager[Journal]:  # noqa: ARG002 - it has a folder of its own
        """See `Site.journal`."""
        return SqliteJournal.open(folder / "journal.sqlite")

    def recovery(self, replica: int) -> RecoveryPlanner | None:  # noqa: ARG002 - a host keeps its devices
        """See `Site.recovery`."""
        return None


class ModelReplicas:
    """The `ReplicaFactory` of a server. Each replica keeps ``kv_blocks_max`` KV blocks at most."""

    def __init__(
        self, model: ModelOnDisk, config: ServeConfig, site: Site, kv_blocks_max: int, steps_at_once: int | None
    ) -> None:
        self.facts = ModelFacts(
            model.name, model.program.architecture, len(model.program.attention), _context_tokens(model, config)
        )
        self._model = model
        self._config = config
        self._site = site
        self._kv_blocks_max = kv_blocks_max
        self._steps_at_once = steps_at_once

    @property
    def kv_tokens_max(self) -> int:
        """Tokens of context for which one replica keeps pages at most."""
        return self._kv_blocks_max * BLOCK_TOKENS

    @asynccontextmanager
    async def open(self, replica: int, stages: tuple[StagePlacement, ...]) -> AsyncIterator[Pipeline]:
        """See `ReplicaFactory.open`."""
        site, config = self._site, self._config
        folder = site.log_folder / f"replica-{replica}"
        folder.mkdir(parents=True, exist_ok=True)
        log = EventLog(site.log_stream, process="daemon", pid=os.getpid(), replica=replica)
        async with site.journal(folder, replica) as journal:
            scheduler = Scheduler(
                _scheduler_limits(config),
                log,
                context_tokens=self.facts.context_tokens,
                steps_under_way_max=self._steps_at_once,
            )
            limits = WorkerLimits(drain_s_max=config.drain)
            pool = WorkerPool(site.launcher(folder, replica), site.doors(replica), scheduler, limits, log)
            machine = CoordinatorMachine(self._spec(stages), CoordinatorLimits(), site.places(replica))
            coordinator = Coordinator(machine, pool, scheduler, journal, log, site.recovery(replica))
            yield Pipeline(replica, self.facts, scheduler, coordinator, pool)

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
            kv_blocks_max=self._kv_blocks_max,
            context_tokens=self.facts.context_tokens,
            stated_bytes=self._site.stated_bytes,
        )


def host_replicas(model: PreparedModel, config: ServeConfig, site: Site) -> ModelReplicas:
    """The factory of a server on one host."""
    per_token = sum(stage.kv_bytes_per_token for stage in model.plan.stages)
    memory = parse_size(config.kv_memory) if config.kv_memory else _kv_memory_bytes(model, per_token)
    return ModelReplicas(model, config, site, kv_blocks_max(model, config, per_token, memory), _stages_at_once(model))


def kv_blocks_max(model: ModelOnDisk, config: ServeConfig, bytes_per_token: int, memory_bytes: int) -> int:
    """Blocks that ``memory_bytes`` hold over all stages, and no more than all running requests could ever use."""
    useful = config.running * -(-_context_tokens(model, config) // BLOCK_TOKENS)
    return max(1, min(useful, memory_bytes // max(1, bytes_per_token * BLOCK_TOKENS)))


def host_memory_bytes() -> int:
    """All the memory that this host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def first_stages(model: PreparedModel) -> tuple[StagePlacement, ...]:
    """The stages that replica 0 of a server on one host begins with."""
    atoms = model.program.atoms
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
        for place, (stage, device) in enumerate(zip(model.plan.stages, model.devices, strict=True))
    )


def _scheduler_limits(config: ServeConfig) -> SchedulerLimits:
    batch = BatchLimits(step_tokens_max=config.step_tokens, step_rows_max=min(config.running, config.step_tokens))
    return SchedulerLimits(queue_requests_max=config.queue, running_requests_max=config.running, batch=batch)


def _context_tokens(model: ModelOnDisk, config: ServeConfig) -> int:
    return min(model.program.context_tokens, config.context or model.program.context_tokens)


def _stages_at_once(model: PreparedModel) -> int | None:
    """How many stages can compute at once: CPU workers share the cores, others have a device each (None)."""
    on_cpu = all(device.device.startswith("cpu") for device in model.devices)
    return len(os.sched_getaffinity(0)) if on_cpu else None


def _kv_memory_bytes(model: PreparedModel, bytes_per_token: int) -> int:
    """A share of the host's memory; or of what was stated for the first stages' devices, and what the plan kept at least."""
    stated = [model.stated_bytes.get(device.device, 0) for device in model.devices]
    if all(stated):
        return max(int(sum(stated) * KV_MEMORY_SHARE), planned_tokens(model.program) * bytes_per_token)
    return int(host_memory_bytes() * KV_MEMORY_SHARE)
