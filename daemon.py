"""`flexpipe serve`: a whole server on one host, with the model, real processes, real sockets and the gateway wired together.

A composition root. It decides nothing and computes nothing: torch is never imported here. `node_daemon` is the other one.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from .actors.config import ServeConfig
from .actors.event_log import EventLog, LogFile
from .actors.replicas import Replicas
from .autopilot_factory import shapes_for
from .daemon_folders import log_folder, socket_folder
from .device_supply import HostDevices
from .preparation import PreparedModel
from .refactor_planning import RefactorPlanner
from .replica_factory import HostSite, first_stages, host_replicas
from .served_model import ServedModel, serve_gateway
from .stop_signals import stop_on_signals
from .transport.zmq_link import ZmqTransport
from .warm_folder import warm_folder
from .worker_launcher import ForkLauncher, Workplace


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
    logs = log_folder(config.log_dir)
    with LogFile(logs / "daemon.jsonl") as log_stream, socket_folder() as sockets, warm_folder() as warm:
        async with ZmqTransport.open() as transport:
            cores = {device.device: device.cores for device in model.devices}
            files = msgspec.structs.replace(model.files, warm_folder=warm)
            async with ForkLauncher.open(logs, Workplace(sockets, files, cores)) as launcher:
                site = HostSite(logs, log_stream, sockets, transport, launcher, model.stated_bytes)
                return await _Daemon(model, config, site).run(present)


class _Daemon:
    """One server, and the order of its end: gateway first, then the replicas, then everything."""

    def __init__(self, model: PreparedModel, config: ServeConfig, site: HostSite) -> None:
        self._model = model
        self._config = config
        self._log_folder = site.log_folder
        self._log = EventLog(site.log_stream, process="daemon", pid=os.getpid())
        self._stop = trio.Event()
        self._http_ended = trio.Event()
        factory = host_replicas(model, config, site)
        planner = RefactorPlanner.of(model, config, HostDevices(config.devices, config.threads))
        shapes = shapes_for(model, config, planner, factory.kv_tokens_max) if config.auto else None
        self._served = ServedModel(config, factory, planner, self._log, shapes)

    async def run(self, present: Presenter) -> str:
        """Live until told to stop; the reason, "" where it was a signal."""
        served = self._served
        async with trio.open_nursery() as nursery:
            await nursery.start(stop_on_signals, self._stop, nursery.cancel_scope)
            addresses: list[str] = await nursery.start(self._serve_http)
            server = Server(
                served.replicas, f"http://{addresses[0]}", self._log_folder, self._stop.set, self._has_ended
            )
            self._log.emit(
                "daemon_started", model=self._model.name, stages=len(self._model.plan.stages), url=server.url
            )
            gc.collect()
            gc.freeze()  # what is here stays, and to go through all of it again and again takes 70 ms each time
            nursery.start_soon(present, server)
            await served.run(first_stages(self._model))
            self._stop.set()  # set already, unless the last replica was given up
            await self._http_ended.wait()
            nursery.cancel_scope.cancel()
        self._log.emit("daemon_stopped", reason=served.failure or "told to stop")
        return served.failure

    def _has_ended(self) -> bool:
        return self._stop.is_set() or self._served.replicas.finish is not None

    async def _serve_http(self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
        served = self._served
        await serve_gateway(
            self._model,
            self._config,
            served.source,
            served.reshaper,
            served.decisions,
            self._log,
            self._stop,
            task_status=task_status,
        )
        self._http_ended.set()
        served.replicas.stop()
