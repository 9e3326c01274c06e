"""One node's side of the cluster: joins the leader, starts and ends workers for it, and says how the node is.

Carries out what `node_agent_machine` decides. How a process is started is the `WorkerStarter`'s, who leads the `LeaderSource`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import trio

from ...transport.interface import Link, Transport, TransportError
from ..event_log import EventLog
from ..worker_pool import WorkerProcess
from .leader_source import LeaderAt, LeaderSource
from .node_agent_machine import (
    AgentLimits,
    AgentState,
    EndWorkers,
    Event,
    Instruction,
    Leave,
    LinkLost,
    LinkUp,
    NodeAgentMachine,
    SayHello,
    Stop,
    TermHeard,
    TryAgain,
    Unlink,
)
from .node_messages import (
    FROM_NODE,
    NODE_LIMITS,
    NODE_PURPOSE,
    REPORT_INTERVAL_S,
    TO_NODE,
    FromNode,
    LaunchWorker,
    NodeFacts,
    NodeHello,
    NodeLeaving,
    NodeRefused,
    NodeRelease,
    NodeReport,
    NodeWelcome,
    SignalWorker,
    WorkerEnded,
    WorkerForked,
    WorkerNotForked,
)

GREET_S_MAX = 3.0
"""How long whoever is said to lead may take to answer; then it is looked for anew."""
DEFAULT_AGENT_LIMITS = AgentLimits()
OUTGOING_MESSAGES_MAX = 1024
"""Messages that may wait for the leader. More mean that it does not read: it is as good as lost."""


class WorkerStarter(Protocol):
    """Starts worker processes on this node."""

    async def start(self, order: LaunchWorker) -> WorkerProcess:
        """Start one. Raises `OSError` where that cannot be; `TransportError` where the order's address is none for this node."""
        ...


class _Membership:
    """One link to a leader, and the workers that were started over it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.outgoing, self._unsent = trio.open_memory_channel[FromNode](OUTGOING_MESSAGES_MAX)
        self.workers: dict[int, WorkerProcess] = {}
        self.starting: set[int] = set()
        self.condemned: set[int] = set()  # to be killed as soon as they are there
        self.is_over = False

    async def write(self) -> None:
        """Send what `outgoing` is given, in order."""
        with suppress(TransportError):  # the reader hears of it too
            async for message in self._unsent:
                await self.link.send([FROM_NODE.encode(message)])

    def signal(self, launch: int, *, kill: bool) -> None:
        """SIGTERM or SIGKILL to a worker that runs; one that is being started is killed then."""
        if (process := self.workers.get(launch)) is not None:
            process.signal(kill=kill)
        elif launch in self.starting:
            self.condemned.add(launch)

    def end_workers(self) -> None:
        """Kill them all; those that are being started, as soon as they are there."""
        self.is_over = True
        for process in self.workers.values():
            process.signal(kill=True)


class NodeAgent:
    """See the module. ``vitals`` says how the node is; ``model`` is the digest of the model that it has."""

    def __init__(
        self,
        facts: NodeFacts,
        model: str,
        source: LeaderSource,
        transport: Transport,
        starter: WorkerStarter,
        vitals: Callable[[], NodeReport],
        log: EventLog,
        limits: AgentLimits = DEFAULT_AGENT_LIMITS,
    ) -> None:
        self.machine = NodeAgentMachine(limits)
        self._facts = facts
        self._model = model
        self._source = source
        self._transport = transport
        self._starter = starter
        self._vitals = vitals
        self._log = log
        self._leader: LeaderAt | None = None
        self._leader_known = trio.Event()
        self._membership: _Membership | None = None
        self._left: Leave | None = None
        self._over = trio.Event()
        self._nursery: trio.Nursery | None = None

    @property
    def workers(self) -> int:
        """How many workers run here."""
        return len(self._membership.workers) if self._membership is not None else 0

    async def run(self) -> Leave:
        """Belong to the cluster until released, refused for good, or stopped; then no worker lives on."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._watch_leader)
            self._nursery.start_soon(self._report)
            self._nursery.start_soon(self._join)
            await self._over.wait()
            self._nursery.cancel_scope.cancel()
        assert self._left is not None
        return self._left

    def ask_to_leave(self, reason: str) -> None:
        """Ask the leader to move everything off this node. Where there is no leader, the node stops at once."""
        membership = self._membership
        if membership is None or self.machine.state is not AgentState.JOINED:
            self._handle(Stop())
        else:
            self._tell(membership, NodeLeaving(reason))

    def stop(self) -> None:
        """End now; for the leader this node is lost."""
        self._handle(Stop())

    # --- tasks ---

    async def _watch_leader(self) -> None:
        while True:
            self._leader = await self._source.next_leader(self._leader)
            self._leader_known.set()
            self._handle(TermHeard(self._leader.term))

    async def _report(self) -> None:
        while True:
            await trio.sleep(REPORT_INTERVAL_S)
            if self._membership is not None and self.machine.state is AgentState.JOINED:
                self._tell(self._membership, self._vitals())

    async def _join(self, after_s: float = 0.0) -> None:
        """Make a link to whoever leads, and live by it until it is lost."""
        await trio.sleep(after_s)
        await self._leader_known.wait()
        assert self._leader is not None
        try:
            link = await self._transport.connect(
                self._leader.address, name="the leader", limits=NODE_LIMITS, purpose=NODE_PURPOSE
            )
        except TransportError as error:
            self._handle(LinkLost(str(error)))
            return
        membership = self._membership = _Membership(link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(membership.write)
                self._handle(LinkUp())
                await self._obey(membership)
                nursery.cancel_scope.cancel()
        finally:
            membership.end_workers()
            await link.aclose()

    async def _obey(self, membership: _Membership) -> None:
        """Read the link until it, or this membership, is over."""
        assert self._nursery is not None
        deadline_s = trio.current_time() + GREET_S_MAX
        try:
            while not membership.is_over:
                with trio.move_on_at(deadline_s) as waiting:
                    (payload,) = await membership.link.receive()
                if waiting.cancelled_caught:
                    self._handle(LinkLost(f"nobody answered within {GREET_S_MAX:g} s"))
                    return
                match TO_NODE.decode(payload):
                    case LaunchWorker() as order if self.machine.state is AgentState.JOINED:
                        self._nursery.start_soon(self._host, membership, order)
                    case SignalWorker(launch=launch, kill=kill):
                        membership.signal(launch, kill=kill)
                    case NodeWelcome() | NodeRefused() | NodeRelease() as message:
                        deadline_s = math.inf
                        self._heard(message)
                    case LaunchWorker(launch=launch):
                        self._tell(membership, WorkerNotForked(launch, "the node was not welcomed before"))
        except TransportError as error:
            if not membership.is_over:
                self._handle(LinkLost(str(error)))

    async def _host(self, membership: _Membership, order: LaunchWorker) -> None:
        """Start one worker and see it end."""
        membership.starting.add(order.launch)
        try:
            process = await self._starter.start(order)
        except (OSError, TransportError) as error:
            self._tell(membership, WorkerNotForked(order.launch, str(error)))
            return
        finally:
            membership.starting.discard(order.launch)
        membership.workers[order.launch] = process
        if membership.is_over or order.launch in membership.condemned:
            process.signal(kill=True)
        self._tell(membership, WorkerForked(order.launch, process.pid))
        code = await process.wait()
        del membership.workers[order.launch]
        self._tell(membership, WorkerEnded(order.launch, code))

    # --- carrying out ---

    def _heard(self, message: NodeWelcome | NodeRefused | NodeRelease) -> None:
        match message:
            case NodeWelcome(leader=leader, term=term, version=version):
                self._log.emit("node_joined", leader=leader, term=term, version=version)
            case NodeRefused(reason=reason, sentence=sentence):
                self._log.emit("node_refused", reason=reason, sentence=sentence)
            case NodeRelease():
                pass
        self._handle(message)

    def _handle(self, event: Event) -> None:
        for instruction in self.machine.handle(event):
            self._perform(instruction)

    def _perform(self, instruction: Instruction) -> None:
        assert self._nursery is not None
        membership = self._membership
        match instruction:
            case SayHello(term):
                assert membership is not None
                self._tell(membership, NodeHello(self._facts, self._model, term))
            case EndWorkers(reason):
                if membership is not None and membership.workers:
                    self._log.emit("node_workers_ended", workers=len(membership.workers), reason=reason)
                    membership.end_workers()
            case Unlink():
                if membership is not None:
                    membership.is_over = True
                    self._membership = None
                    self._nursery.start_soon(membership.link.aclose)
            case TryAgain(after_s):
                self._nursery.start_soon(self._join, after_s)
            case Leave(reason, failed):
                self._log.emit("node_left", reason=reason, failed=failed)
                self._left = instruction
                self._over.set()

    def _tell(self, membership: _Membership, message: FromNode) -> None:
        if membership.is_over:
            return
        try:
            membership.outgoing.send_nowait(message)
        except trio.WouldBlock:
            self._handle(LinkLost(f"it left {OUTGOING_MESSAGES_MAX} messages unread"))
