"""The leader of a cluster in one term: its nodes, the model that they serve, and the gateways that ask for tokens.

Part of the composition root. Everything in it ends with the term; what the next leader needs is in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from .actors.cluster.cluster_store import Claim
from .actors.cluster.drainer import Drainer
from .actors.cluster.gateway_conversation import LeaderServices
from .actors.cluster.node_config import ClusterConfig
from .actors.cluster.node_messages import NODE_PURPOSE
from .actors.cluster.node_status import NodeControl
from .actors.cluster.nodes import Nodes
from .actors.cluster.nodes_machine import NodesMachine
from .actors.cluster.remote_workers import WORKER_PURPOSE, WorkerDoors
from .actors.cluster.token_messages import GATEWAY_PURPOSE
from .actors.cluster.token_server import LeaderIdentity, TokenServer, TokenServerLimits
from .actors.cluster.usher import Usher
from .actors.config import parse_size
from .actors.event_log import EventLog, LogStream
from .actors.refactor import RefactorRefusedError, RefactorRequest
from .actors.route import Route, StagePlacement
from .cluster_site import ClusterSite
from .device_supply import ClusterDevices
from .preparation import ModelOnDisk, costs_for
from .refactor_planning import RefactorPlanner
from .replica_factory import KV_MEMORY_SHARE, ModelReplicas, host_memory_bytes, kv_blocks_max
from .served_model import ServedModel
from .threaded_planner import ThreadedPlanner, ThreadedRecovery
from .transport.zmq_link import ZmqTransport

RETURN_S_MAX = 3.0
"""How long a leader that takes over waits for the nodes that served before; then it goes on with those that are here."""
PLAN_RETRY_S = 1.0
"""After so long a first plan that did not fit is made again, even if no node came."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a daemon has, whoever leads: its logs and sockets, its transport, and who receives visitors at its listener."""

    log_folder: Path
    log_stream: LogStream
    log: EventLog
    sockets: Path
    transport: ZmqTransport
    usher: Usher


class Leader:
    """See the module. ``higher_term`` is told of a term after this one: whoever leads in it has been heard of."""

    def __init__(
        self,
        claim: Claim,
        model: ModelOnDisk,
        config: ClusterConfig,
        ground: Ground,
        higher_term: Callable[[int], None],
    ) -> None:
        record, serve = claim.record, config.serve
        self._over = trio.CancelScope()
        self._claim = claim
        self._config = config
        self._ground = ground
        self._nodes = Nodes(NodesMachine(record.name, record.term, model.files.digest), ground.log, higher_term)
        devices = ClusterDevices(self._nodes.usable)
        self._planner = RefactorPlanner.of(model, serve, devices)
        self._doors = WorkerDoors(ground.transport, record.name, str(ground.sockets), record.address, record.term)
        site = ClusterSite(
            ground.log_folder,
            ground.log_stream,
            claim,
            self._nodes,
            self._doors,
            self._planner,
            self._taken,
            devices,
        )
        per_token = sum(atom.kv_bytes_per_token for atom in costs_for(model.program, serve.dtype))
        memory = parse_size(serve.kv_memory) if serve.kv_memory else int(host_memory_bytes() * KV_MEMORY_SHARE)
        factory = ModelReplicas(model, serve, site, kv_blocks_max(model, serve, per_token, memory), None)
        self._served = ServedModel(serve, factory, self._planner, ground.log)
        self._token_server = TokenServer(
            LeaderServices(
                self._served.source,
                self._served.reshaper,
                self._served.decisions,
                model.program.vocabulary_size,
                NodeControl(self._nodes, record.name, self._served.replicas.devices),
            ),
            LeaderIdentity(record.name, record.term, model.files.digest),
            ground.log,
            higher_term=higher_term,
            limits=TokenServerLimits(queue_requests_max=serve.queue),
        )

    async def run(self) -> str:
        """Lead until stopped, until the term is over, or until the pipeline was given up: the sentence for which, else ""."""
        usher, served = self._ground.usher, self._served
        hosts = {
            NODE_PURPOSE: self._nodes.host,
            WORKER_PURPOSE: self._doors.host,
            GATEWAY_PURPOSE: self._token_server.host,
        }
        try:
            with self._over:
                async with trio.open_nursery() as nursery:
                    for purpose, host in hosts.items():
                        usher.lead(purpose, host)
                    await nursery.start(self._token_server.run)
                    drainer = Drainer(self._nodes, served.replicas, served.reshaper, self._ground.log)
                    nursery.start_soon(drainer.run)
                    await served.run(await self._first_stages())
                    nursery.cancel_scope.cancel()
        finally:
            for purpose in hosts:
                usher.close(purpose)
        return served.failure

    def stop(self) -> None:
        """Let the requests under way end, then the workers, then the term."""
        if self._served.replicas.present:
            self._served.replicas.stop()
        else:
            self._over.cancel()

    async def _first_stages(self) -> tuple[StagePlacement, ...]:
        """Those that the leader before decided last, as far as their devices are here; else a first plan, once there are nodes."""
        async with self._claim.journal("replica-0") as journal:
            state = await journal.read()
        if state.committed is None:
            while len(self._nodes.usable()) < self._config.nodes:
                await self._nodes.change()
            return await self._until_planned()
        wanted = state.committed.route.stages
        with trio.move_on_after(RETURN_S_MAX):
            while not {stage.device for stage in wanted} <= set(ClusterDevices(self._nodes.usable).names()):
                await self._nodes.change()
        recovery = ThreadedRecovery(self._planner, frozenset)
        while True:
            try:
                return await recovery.recover(wanted, state.next_worker)
            except RefactorRefusedError as refusal:
                await self._wait_for_devices(str(refusal))

    async def _until_planned(self) -> tuple[StagePlacement, ...]:
        serve, planner = self._config.serve, ThreadedPlanner(self._planner)
        request = RefactorRequest(
            stages=serve.stages or (1 if serve.partition is None else None), partition=serve.partition
        )
        while True:
            try:
                return await planner.plan(
                    request, Route(0, ()), next_worker=0, live_tokens=0, taken_devices=frozenset()
                )
            except RefactorRefusedError as refusal:
                await self._wait_for_devices(str(refusal))

    async def _wait_for_devices(self, sentence: str) -> None:
        self._ground.log.emit("leader_waits", sentence=sentence)
        with trio.move_on_after(PLAN_RETRY_S):
            await self._nodes.change()

    def _taken(self, replica: int) -> frozenset[str]:
        """The devices of other replicas than ``replica``."""
        replicas = self._served.replicas
        mine = next((each for each in replicas.present if each.number == replica), None)
        return replicas.devices(but=mine)
