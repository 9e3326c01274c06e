"""One node's daemon: wires the model, real processes, real sockets, the scheduler, the coordinator and the gateway together.

The composition root of `flexpipe serve`. It decides nothing and computes nothing: torch is never imported here.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs
import trio

from .actors.autopilot import Autopilot
from .actors.config import ServeConfig
from .actors.decision_journal import DecisionJournal
from .actors.event_log import EventLog, LogFile
from .actors.gateway.app import GatewayConfig, make_app
from .actors.gateway.app import serve as serve_app
from .actors.gateway.http_server import ServerLimits
from .actors.generation import TokenSource
from .actors.load_meter import LoadMeter
from .actors.refactor import RefactorRequest
from .actors.replicas import Replicas
from .actors.reshaper import Reshaper
from .actors.route import Route, StagePlacement
from .autopilot_factory import settings_for, shapes_for, signal_settings
from .policies.control.signals import Signals
from .preparation import PreparedModel
from .refactor_planning import RefactorPlanner
from .replica_factory import LocalReplicas, Surroundings
from .runtime.text.text_stream import TextStream
from .transport.zmq_link import ZmqTransport
from .warm_folder import warm_folder
from .worker_launcher import ForkLauncher, Workplace

LOG_FOLDERS_KEPT = 20
"""Log folders of earlier runs that stay in the state folder; older ones are removed."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was started: its pipelines, where it answers, where its logs are, and how to stop it gracefully."""

    replicas: Replicas
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
        async with ZmqTransport.open() as transport:
            cores = {device.device: device.cores for device in model.devices}
            files = msgspec.structs.replace(model.files, warm_folder=warm)
            async with ForkLauncher.open(log_folder, Workplace(sockets, files, cores)) as launcher:
                around = Surroundings(log_folder, log_stream, sockets, transport, launcher)
                return await _Daemon(model, config, around).run(present)


class _ThreadedPlanner:
    """A `RefactorPlanner` whose milliseconds of computing are a thread's: steps go on meanwhile."""

    def __init__(self, planner: RefactorPlanner) -> None:
        self._planner = planner

    async def plan(
        self,
        request: RefactorRequest,
        route: Route,
        *,
        next_worker: int,
        live_tokens: int,
        taken_devices: frozenset[str],
    ) -> tuple[StagePlacement, ...]:
        """See `reshaper.Planner`."""

        def plan() -> tuple[StagePlacement, ...]:
            return self._planner.plan(
                request, route, next_worker=next_worker, live_tokens=live_tokens, taken_devices=taken_devices
            )

        return await trio.to_thread.run_sync(plan)

    async def copy(self, route: Route, *, taken_devices: frozenset[str]) -> tuple[StagePlacement, ...]:
        """See `reshaper.Planner`."""
        return await trio.to_thread.run_sync(lambda: self._planner.copy(route, taken_devices=taken_devices))


class _Daemon:
    """The actors of one server and the order of their ends: gateway first, then the replicas, then everything."""

    def __init__(self, model: PreparedModel, config: ServeConfig, around: Surroundings) -> None:
        self._model = model
        self._config = config
        self._log_folder = around.log_folder
        self._log = EventLog(around.log_stream, process="daemon", pid=os.getpid())
        self._stop = trio.Event()
        self._http_ended = trio.Event()
        self._factory = LocalReplicas(model, config, around)
        self._replicas = Replicas(self._factory.facts, self._factory, self._log)
        planner = RefactorPlanner.of(model, config)
        self._reshaper = Reshaper(_ThreadedPlanner(planner), self._replicas)
        self._source: TokenSource = self._replicas
        self._decisions: DecisionJournal | None = None
        self._autopilot: Autopilot | None = None
        if config.auto:
            self._make_autopilot(planner)

    async def run(self, present: Presenter) -> str:
        """Live until told to stop; the reason, "" where it was a signal."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery.cancel_scope)
            await nursery.start(self._reshaper.run)
            addresses: list[str] = await nursery.start(self._serve_http)
            server = Server(
                self._replicas, f"http://{addresses[0]}", self._log_folder, self._stop.set, self._has_given_up
            )
            self._log.emit(
                "daemon_started", model=self._model.name, stages=len(self._model.plan.stages), url=server.url
            )
            gc.collect()
            gc.freeze()  # what is here stays, and to go through all of it again and again takes 70 ms each time
            nursery.start_soon(present, server)
            if self._autopilot is not None:
                nursery.start_soon(self._autopilot.run)
            await self._replicas.run(self._factory.first_stages())
            self._stop.set()  # set already, unless the last replica was given up
            await self._http_ended.wait()
            nursery.cancel_scope.cancel()
        finish = self._replicas.finish  # None where a second signal cut the draining short
        reason = finish.sentence if finish is not None and finish.failed else ""
        self._log.emit("daemon_stopped", reason=reason or "told to stop")
        return reason

    def _make_autopilot(self, planner: RefactorPlanner) -> None:
        """Put a meter before the replicas, and somebody who reads it beside them."""
        shapes = shapes_for(self._model, self._config, planner, self._factory.kv_tokens_max)
        signals = Signals(signal_settings(self._config.pace))
        meter = self._source = LoadMeter(self._replicas, signals, shapes.prompt_weight)
        self._decisions = DecisionJournal(self._log)
        self._autopilot = Autopilot(
            settings_for(self._config),
            self._replicas,
            self._reshaper,
            shapes,
            signals,
            meter,
            self._decisions,
            busy=lambda: self._reshaper.is_busy,
        )

    def _has_given_up(self) -> bool:
        return self._stop.is_set() or self._replicas.finish is not None

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
            self._source,
            tokenizer,
            lambda: TextStream(tokenizer),
            self._model.name,
            GatewayConfig(api_keys=keys),
            self._log,
            self._reshaper,
            self._decisions,
        )
        limits = ServerLimits(drain_s_max=self._config.drain)
        await serve_app(
            app, self._config.host, self._config.port, self._stop, limits, self._log, task_status=task_status
        )
        self._http_ended.set()
        self._replicas.stop()


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
