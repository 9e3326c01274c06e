"""`flexpipe daemon`: one node of a cluster. Its agent, its gateway, and the leader's side while it leads.

A composition root; `daemon` is the one of a server on one host. It decides nothing and computes nothing: torch is never
imported here.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from .actors.cluster.cluster_store import Candidate, Claim, ClusterStore, ClusterStoreError
from .actors.cluster.etcd_client import EtcdSettings
from .actors.cluster.etcd_store import EtcdStore
from .actors.cluster.leader_line import GatewayIdentity, LeaderLine
from .actors.cluster.leader_source import FixedLeader, LeaderSource
from .actors.cluster.leadership import Leadership
from .actors.cluster.node_agent import NodeAgent
from .actors.cluster.node_config import ClusterConfig, NodeOptions
from .actors.cluster.node_messages import LISTENER_LIMITS, LaunchWorker, NodeDevice, NodeFacts, NodeReport
from .actors.cluster.remote_control import RemoteDecisions, RemoteNodes, RemoteRefactorer
from .actors.cluster.remote_source import RemoteSource
from .actors.cluster.sqlite_store import SqliteStore
from .actors.cluster.usher import Usher
from .actors.config import ConfigError, ServeConfig
from .actors.devices import cuda_devices, parse_devices, stated_memory
from .actors.event_log import EventLog, LogFile
from .actors.generation import ModelFacts
from .actors.link_place import address_here
from .actors.worker_pool import ControlPlace
from .daemon_folders import log_folder, socket_folder
from .leader import Ground, Leader
from .preparation import ModelOnDisk
from .replica_factory import host_memory_bytes
from .served_model import serve_gateway
from .stop_signals import stop_on_signals
from .transport.address import AddressError
from .transport.key_ring import KeyRing
from .transport.refusal import Refusal
from .transport.zmq_link import ZmqTransport
from .warm_folder import held_bytes, warm_folder
from .worker_launcher import ForkLauncher, HostProcess, Workplace


@dataclass(frozen=True, slots=True)
class NodeSecurity:
    """``keys`` is the ring with this node's key and those that it lets in; ``insecure`` as in `ZmqTransport.open`."""

    keys: KeyRing | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """All that one daemon is told.

    With ``etcd`` every daemon may lead; without it the one that joins nobody does, and keeps its decisions in the folder ``state``.
    ``has_gateway``: it serves HTTP.
    """

    options: NodeOptions
    config: ClusterConfig
    security: NodeSecurity
    etcd: EtcdSettings | None
    state: Path
    has_gateway: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A daemon that was started: what it knows of the cluster, where it answers ("" where it does not), where its logs are."""

    source: RemoteSource
    url: str
    log_folder: Path


Presenter = Callable[[Node], Awaitable[None]]
"""Runs beside a daemon once it listens; to show progress."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why a daemon ended. ``misused``: its user has to mend something; ``failed``: the cluster could not be kept up."""

    reason: str = ""
    misused: bool = False
    failed: bool = False


async def run_node(setup: NodeSetup, model: ModelOnDisk, present: Presenter) -> Outcome:
    """Be a node until SIGTERM or SIGINT, until it was drained, or until it was refused.

    A second signal waits for nothing. Raises `ConfigError` where an address cannot be had, `ListenError` for the gateway's.
    """
    logs = log_folder(setup.config.serve.log_dir)
    security = setup.security
    keys = str(security.keys.folder) if security.keys is not None else ""
    with LogFile(logs / "daemon.jsonl") as log_stream, socket_folder() as sockets, warm_folder() as warm:
        log = EventLog(log_stream, process="daemon", pid=os.getpid(), node=setup.options.name)
        files = msgspec.structs.replace(model.files, warm_folder=warm)
        workplace = Workplace(sockets, files, {}, keys, security.insecure)
        async with (
            ZmqTransport.open(
                security.keys, insecure=security.insecure, on_refusal=lambda refusal: _log_refusal(log, refusal)
            ) as transport,
            ForkLauncher.open(logs, workplace) as launcher,
            _listening(transport, setup.options, log) as usher,
            _store(setup) as store,
        ):
            ground = Ground(logs, log_stream, log, sockets, transport, usher)
            starter = ForkStarter(launcher, sockets, logs)
            return await _NodeDaemon(setup, model, ground, starter, store, Path(warm) if warm else None).run(present)


class ForkStarter:
    """The `WorkerStarter` of a real node: forks, and looks names up in the node's own folder of sockets."""

    def __init__(self, launcher: ForkLauncher, sockets: Path, log_folder: Path) -> None:
        self._launcher = launcher
        self._sockets = sockets
        self._log_folder = log_folder

    async def start(self, order: LaunchWorker) -> HostProcess:
        """See `WorkerStarter.start`."""
        folder = self._log_folder / f"replica-{order.replica}"
        folder.mkdir(parents=True, exist_ok=True)
        control = ControlPlace(address_here(order.control, str(self._sockets)), order.purpose)
        return await self._launcher.fork(order.replica, order.worker, order.device, control, folder)


class _NodeDaemon:
    """One node, and the order of its end: the gateway first, then what it leads, then its place in the cluster."""

    def __init__(
        self,
        setup: NodeSetup,
        model: ModelOnDisk,
        ground: Ground,
        starter: ForkStarter,
        store: ClusterStore | None,
        warm: Path | None,
    ) -> None:
        self._setup = setup
        self._model = model
        self._ground = ground
        self._warm = warm
        self._stop = trio.Event()
        self._gateway_ended = trio.Event()
        self._leader: Leader | None = None
        self._leadership: Leadership | None = None
        self._leadership_ended = trio.Event()
        self._outcome = Outcome()
        options, digest, transport, log = setup.options, model.files.digest, ground.transport, ground.log
        leaders: LeaderSource
        if store is not None:
            self._leadership = Leadership(store, Candidate(options.name, options.address), self._lead, log)
            leaders = self._leadership.watch
        else:
            leaders = FixedLeader(str(options.join))
        facts = node_facts(options, setup.config.serve)
        self._agent = NodeAgent(facts, digest, leaders, transport, starter, self._vitals, log)
        self._line = LeaderLine(transport, leaders, GatewayIdentity(options.name, digest), log)
        context = min(model.program.context_tokens, setup.config.serve.context or model.program.context_tokens)
        model_facts = ModelFacts(model.name, model.program.architecture, len(model.program.attention), context)
        self._source = RemoteSource(self._line, model_facts, log)

    async def run(self, present: Presenter) -> Outcome:
        """Live until told to stop, or let go."""
        ground, options = self._ground, self._setup.options
        async with trio.open_nursery() as nursery:
            await nursery.start(stop_on_signals, self._stop, nursery.cancel_scope)
            await nursery.start(self._line.run)
            url = ""
            if self._setup.has_gateway:
                url = await nursery.start(self._serve_http)
            else:
                self._gateway_ended.set()
            nursery.start_soon(self._follow_or_lead)
            ground.log.emit("node_started", node=options.name, address=options.address, url=url)
            nursery.start_soon(present, Node(self._source, url, ground.log_folder))
            nursery.start_soon(self._wind_down)
            left = await self._agent.run()
            if left.failed:
                self._outcome = Outcome(left.reason, misused=True)
            self._stop.set()
            await self._gateway_ended.wait()
            await self._leadership_ended.wait()
            nursery.cancel_scope.cancel()
        ground.log.emit("daemon_stopped", reason=self._outcome.reason or left.reason)
        return self._outcome

    async def _wind_down(self) -> None:
        """Once told to stop: end what depends on others first."""
        await self._stop.wait()
        await self._gateway_ended.wait()
        leader = self._leader
        if leader is not None and self._setup.etcd is None:
            leader.stop()  # nobody else can lead: let what is under way end
        elif self._leadership is not None:
            self._leadership.stop("its daemon was told to stop")
        await self._leadership_ended.wait()
        if leader is not None:
            self._agent.stop()
        else:
            self._agent.ask_to_leave("its daemon was told to stop")

    async def _follow_or_lead(self) -> None:
        """Lead when it is this node's turn, for as long as it may."""
        if self._leadership is not None:
            await self._leadership.run()
            if self._setup.etcd is None:
                self._stop.set()
        self._leadership_ended.set()

    async def _lead(self, claim: Claim) -> None:
        """All that this node does as a leader, in one term."""
        assert self._leadership is not None
        heard = self._leadership.heard
        leader = Leader(
            claim, self._model, self._setup.config, self._ground, lambda term: heard(term, "a node or gateway")
        )
        self._leader = leader
        try:
            failure = await leader.run()
        finally:
            self._leader = None
        if failure:
            self._outcome = Outcome(failure, failed=True)
            self._stop.set()

    async def _serve_http(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            addresses: list[str] = await nursery.start(
                serve_gateway,
                self._model,
                self._setup.config.serve,
                self._source,
                RemoteRefactorer(self._line),
                RemoteDecisions(self._line),
                self._ground.log,
                self._stop,
                RemoteNodes(self._line),
            )
            task_status.started(f"http://{addresses[0]}")
        self._gateway_ended.set()

    def _vitals(self) -> NodeReport:
        warm_bytes = held_bytes(self._warm) if self._warm is not None else 0
        free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return NodeReport(free_bytes, warm_bytes, self._agent.workers)


def node_facts(options: NodeOptions, serve: ServeConfig) -> NodeFacts:
    """What this node tells the leader of itself. Raises `DeviceError`."""
    cores = len(os.sched_getaffinity(0))
    named = serve.devices or ("cuda" if cuda_devices() else f"cpu:{cores}")
    stated = stated_memory(named)
    devices = tuple(NodeDevice(device, stated.get(device, 0)) for device in parse_devices(named))
    return NodeFacts(
        node=options.name,
        host=options.bind.host,
        first_port=options.first_port,
        last_port=options.last_port,
        cores=cores,
        threads=serve.threads or 0,
        memory_bytes=host_memory_bytes(),
        devices=devices,
    )


@asynccontextmanager
async def _store(setup: NodeSetup) -> AsyncIterator[ClusterStore | None]:
    """Where this node finds who leads, and may lead itself; None where it only joins. Raises `ConfigError`."""
    async with AsyncExitStack() as stack:
        store: ClusterStore | None = None
        try:
            if setup.etcd is not None:
                store = await stack.enter_async_context(EtcdStore.open(setup.etcd, setup.config.name))
            elif setup.options.join is None:
                setup.state.mkdir(parents=True, exist_ok=True)
                store = await stack.enter_async_context(SqliteStore.open(setup.state))
        except ClusterStoreError as error:
            raise ConfigError(f"state: {error}") from error
        yield store


@asynccontextmanager
async def _listening(transport: ZmqTransport, options: NodeOptions, log: EventLog) -> AsyncIterator[Usher]:
    """Who receives visitors at the daemon's address. Raises `ConfigError` where it cannot be had."""
    try:
        listener = await transport.listen(options.address, name=f"daemon {options.name}", limits=LISTENER_LIMITS)
    except AddressError as error:
        raise ConfigError(f"bind: {error}") from error
    usher = Usher(listener, log)
    async with trio.open_nursery() as nursery:
        await nursery.start(usher.run)
        yield usher
        nursery.cancel_scope.cancel()


def _log_refusal(log: EventLog, refusal: Refusal) -> None:
    log.emit("link_refused", peer=refusal.peer, purpose=refusal.where, sentence=refusal.detail or refusal.reason.value)
