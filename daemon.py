"""One node's daemon: wires the model, real processes, real sockets, the scheduler, the coordinator and the gateway together.

The composition root of `flexpipe serve`. It decides nothing and computes nothing: torch is never imported here.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import trio

from .actors.config import ServeConfig, parse_size
from .actors.coordinator import Coordinator
from .actors.coordinator_events import PipelineState
from .actors.coordinator_machine import CoordinatorMachine
from .actors.event_log import EventLog, LogFile
from .actors.gateway.app import GatewayConfig, make_app
from .actors.gateway.app import serve as serve_app
from .actors.gateway.http_server import ServerLimits
from .actors.pipeline import Pipeline
from .actors.pipeline_spec import CoordinatorLimits, PipelineSpec
from .actors.reshaper import Reshaper
from .actors.route import StagePlacement
from .actors.scheduler import Scheduler
from .actors.scheduler_machine import SchedulerLimits
from .actors.sqlite_journal import SqliteJournal
from .actors.worker_machine import WorkerLimits
from .actors.worker_pool import WorkerPool
from .policies.batching import BatchLimits
from .preparation import PreparedModel
from .refactor_planning import RefactorPlanner
from .runtime.interface import BLOCK_TOKENS, EngineSpec
from .runtime.text.text_stream import TextStream
from .transport.zmq_link import ZmqTransport
from .warm_folder import warm_folder
from .worker_launcher import ForkLauncher

LOG_FOLDERS_KEPT = 20
"""Log folders of earlier runs that stay in the state folder; older ones are removed."""
KV_MEMORY_SHARE = 0.1
"""Share of the host's memory that the KV pages of all stages may take by default; they are touched only when used."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was started: its pipeline, where it answers, where its logs are, and how to stop it gracefully."""

    pipeline: Pipeline
    url: str
    log_folder: Path
    stop: Callable[[], None]
    given_up: Callable[[], bool]


Presenter = Callable[[Server], Awaitable[None]]
"""Runs beside a server once its port is bound; to show progress, or to use it. The server outlives it."""


async def serve(model: PreparedModel, config: ServeConfig, present: Presenter) -> str:
    """Serve until SIGINT or SIGTERM, then drain. Returns "", or the sentence for which the pipeline was given up.

    A second signal does not wait for requests under way. Raises `ListenError` where the port cannot be had.
    """
    log_folder = config.log_dir or _new_log_folder()
    log_folder.mkdir(parents=True, exist_ok=True)
    with LogFile(log_folder / "daemon.jsonl") as log_stream, _socket_folder() as sockets, warm_folder() as warm:
        log = EventLog(log_stream, process="daemon", pid=os.getpid())
        async with ZmqTransport.open() as transport, SqliteJournal.open(log_folder / "journal.sqlite") as journal:
            cores = {device.device: device.cores for device in model.devices}
            async with ForkLauncher.open(log_folder, cores) as launcher:
                daemon = _Daemon(model, config, log, log_folder, sockets, warm, transport, journal, launcher)
                return await daemon.run(present)


class _Daemon:
    """The actors of one server and the order of their ends: gateway first, then the stages, then everything."""

    def __init__(
        self,
        model: PreparedModel,
        config: ServeConfig,
        log: EventLog,
        log_folder: Path,
        sockets: Path,
        warm: str,
        transport: ZmqTransport,
        journal: SqliteJournal,
        launcher: ForkLauncher,
    ) -> None:
        self._model = model
        self._config = config
        self._log = log
        self._log_folder = log_folder
        self._stop = trio.Event()
        self._http_ended = trio.Event()
        self._scheduler = Scheduler(_scheduler_limits(config), log, context_tokens=_context_tokens(model, config))
        self._pool = WorkerPool(
            launcher,
            transport,
            self._scheduler,
            WorkerLimits(drain_s_max=config.drain),
            log,
            f"ipc://{sockets}/control-{{worker}}",
        )
        self._coordinator = Coordinator(
            CoordinatorMachine(
                _pipeline_spec(model, config, warm), CoordinatorLimits(), f"ipc://{sockets}/{{epoch}}-{{link}}"
            ),
            self._pool,
            self._scheduler,
            journal,
            log,
        )
        planner = RefactorPlanner.of(model, config)
        self._reshaper = Reshaper(planner, self._coordinator, self._scheduler)
        self._pipeline = Pipeline(
            model.name,
            model.program.architecture,
            len(model.program.attention),
            self._scheduler,
            self._coordinator,
            self._pool,
        )

    async def run(self, present: Presenter) -> str:
        """Live until told to stop; the reason, "" where it was a signal."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery.cancel_scope)
            await nursery.start(self._scheduler.run)
            await nursery.start(self._pool.run)
            addresses: list[str] = await nursery.start(self._serve_http)
            server = Server(
                self._pipeline, f"http://{addresses[0]}", self._log_folder, self._stop.set, self._has_given_up
            )
            self._log.emit(
                "daemon_started", model=self._model.name, stages=len(self._model.plan.stages), url=server.url
            )
            nursery.start_soon(present, server)
            await self._coordinator.run()
            self._stop.set()  # set already, unless the pipeline was given up
            await self._http_ended.wait()
            nursery.cancel_scope.cancel()
        finish = self._coordinator.finish
        reason = finish.sentence if finish is not None and finish.failed else ""
        self._log.emit("daemon_stopped", reason=reason or "told to stop")
        return reason

    def _has_given_up(self) -> bool:
        return self._coordinator.machine.state in (PipelineState.FAILED, PipelineState.STOPPING, PipelineState.STOPPED)

    async def _watch_signals(
        self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if self._stop.is_set():
                    scope.cancel()
                self._stop.set()

    async def _serve_http(self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
        keys = (self._config.api_key,) if self._config.api_key else ()
        tokenizer = self._model.tokenizer
        app = make_app(
            self._pipeline,
            tokenizer,
            lambda: TextStream(tokenizer),
            self._model.name,
            GatewayConfig(api_keys=keys),
            self._log,
            self._reshaper,
        )
        limits = ServerLimits(drain_s_max=self._config.drain)
        await serve_app(
            app, self._config.host, self._config.port, self._stop, limits, self._log, task_status=task_status
        )
        self._http_ended.set()
        self._coordinator.stop()


def _scheduler_limits(config: ServeConfig) -> SchedulerLimits:
    batch = BatchLimits(step_tokens_max=config.step_tokens, step_rows_max=min(config.running, config.step_tokens))
    return SchedulerLimits(queue_requests_max=config.queue, running_requests_max=config.running, batch=batch)


def _context_tokens(model: PreparedModel, config: ServeConfig) -> int:
    return min(model.program.context_tokens, config.context or model.program.context_tokens)


def _pipeline_spec(model: PreparedModel, config: ServeConfig, warm: str) -> PipelineSpec:
    stages = tuple(
        StagePlacement(
            worker=place,
            first_atom=stage.first_atom,
            end_atom=stage.end_atom,
            device=device.device,
            threads=device.threads,
            first_name=model.program.atoms[stage.first_atom].name,
            last_name=model.program.atoms[stage.end_atom - 1].name,
        )
        for place, (stage, device) in enumerate(zip(model.plan.stages, model.devices, strict=True))
    )
    return PipelineSpec(
        engine=EngineSpec(
            model_folder=str(model.folder),
            program_file=str(model.program_file),
            dtype=config.dtype,
            deterministic=config.deterministic,
            step_tokens_max=config.step_tokens,
            warm_folder=warm,
        ),
        stages=stages,
        layers_of=tuple(atom.layers for atom in model.program.atoms),
        kv_blocks_max=_kv_blocks_max(model, config),
        context_tokens=_context_tokens(model, config),
    )


def _kv_blocks_max(model: PreparedModel, config: ServeConfig) -> int:
    """Blocks that the KV memory holds over all stages, and no more than all running requests could ever use."""
    per_token = sum(stage.kv_bytes_per_token for stage in model.plan.stages)
    memory = parse_size(config.kv_memory) if config.kv_memory else int(_host_memory_bytes() * KV_MEMORY_SHARE)
    useful = config.running * -(-_context_tokens(model, config) // BLOCK_TOKENS)
    return max(1, min(useful, memory // max(1, per_token * BLOCK_TOKENS)))


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _new_log_folder() -> Path:
    """A fresh folder in the user's state folder; the oldest of earlier runs are removed."""
    root = platformdirs.user_state_path("flexpipe") / "logs"
    root.mkdir(parents=True, exist_ok=True)
    for old in sorted(root.iterdir())[: -(LOG_FOLDERS_KEPT - 1)]:
        shutil.rmtree(old, ignore_errors=True)
    folder = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir()
    return folder


@contextmanager
def _socket_folder() -> Iterator[Path]:
    """A folder for this server's sockets that only its user can enter; gone afterwards. Short, since socket paths are."""
    with tempfile.TemporaryDirectory(prefix="flexpipe-") as folder:
        yield Path(folder)
