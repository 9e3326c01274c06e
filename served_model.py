"""What serves one model, whatever its workers run on: replicas, the reshaper, the autopilot, and the gateway before them.

The part of the composition root that `flexpipe serve` and `flexpipe daemon` share. It decides nothing.
"""

from __future__ import annotations

import trio

from .actors.autopilot import Autopilot
from .actors.cluster_nodes import ClusterNodes
from .actors.config import ServeConfig
from .actors.decision_journal import DecisionJournal
from .actors.event_log import EventLog
from .actors.gateway.app import GatewayConfig, make_app
from .actors.gateway.app import serve as serve_app
from .actors.gateway.decisions_api import Decisions
from .actors.gateway.http_server import ServerLimits
from .actors.generation import TokenSource
from .actors.load_meter import LoadMeter
from .actors.refactor import Refactorer
from .actors.replicas import Replicas
from .actors.reshaper import Reshaper
from .actors.route import StagePlacement
from .autopilot_factory import PlannedShapes, settings_for, signal_settings
from .policies.control.signals import Signals
from .preparation import ModelOnDisk
from .refactor_planning import RefactorPlanner
from .replica_factory import ModelReplicas
from .runtime.text.text_stream import TextStream
from .threaded_planner import ThreadedPlanner


class ServedModel:
    """See the module. ``source`` is where a gateway submits requests; with ``shapes`` an autopilot changes them by itself."""

    def __init__(
        self,
        config: ServeConfig,
        factory: ModelReplicas,
        planner: RefactorPlanner,
        log: EventLog,
        shapes: PlannedShapes | None = None,
    ) -> None:
        self.replicas = Replicas(factory.facts, factory, log)
        self.reshaper = Reshaper(ThreadedPlanner(planner), self.replicas)
        self.source: TokenSource = self.replicas
        self.decisions: DecisionJournal | None = None
        self._autopilot: Autopilot | None = None
        if shapes is not None:
            self._make_autopilot(config, shapes, log)

    async def run(
        self, stages: tuple[StagePlacement, ...], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve, with replica 0 beginning with ``stages``, until stopped, or until the last replica was given up."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.reshaper.run)
            task_status.started()
            if self._autopilot is not None:
                nursery.start_soon(self._autopilot.run)
            await self.replicas.run(stages)
            nursery.cancel_scope.cancel()

    @property
    def failure(self) -> str:
        """For what it was given up, "" where it was not."""
        finish = self.replicas.finish  # None where a second signal cut the draining short
        return finish.sentence if finish is not None and finish.failed else ""

    def _make_autopilot(self, config: ServeConfig, shapes: PlannedShapes, log: EventLog) -> None:
        """Put a meter before the replicas, and somebody who reads it beside them."""
        signals = Signals(signal_settings(config.pace))
        meter = self.source = LoadMeter(self.replicas, signals, shapes.prompt_weight)
        self.decisions = DecisionJournal(log)
        self._autopilot = Autopilot(
            settings_for(config),
            self.replicas,
            self.reshaper,
            shapes,
            signals,
            meter,
            self.decisions,
            busy=lambda: self.reshaper.is_busy,
        )


async def serve_gateway(
    model: ModelOnDisk,
    config: ServeConfig,
    source: TokenSource,
    refactorer: Refactorer | None,
    decisions: Decisions | None,
    log: EventLog,
    stop: trio.Event,
    cluster: ClusterNodes | None = None,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP until ``stop``, then drain. Reports the addresses; raises `ListenError` where the port cannot be had."""
    keys = (config.api_key,) if config.api_key else ()
    tokenizer = model.tokenizer
    app = make_app(
        source,
        tokenizer,
        lambda: TextStream(tokenizer),
        model.name,
        GatewayConfig(api_keys=keys),
        log,
        refactorer,
        decisions,
        cluster,
    )
    limits = ServerLimits(drain_s_max=config.drain)
    await serve_app(app, config.host, config.port, stop, limits, log, task_status=task_status)
