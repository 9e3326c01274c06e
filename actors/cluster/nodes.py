"""The leader's hold on its nodes: their links, what they say of themselves, and the workers that they run for it.

Carries out what `nodes_machine` decides. A node whose link ends takes all its workers with it, at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress

import trio

from ...transport.interface import AcceptedLink, Link, PeerLostError, TransportError
from ..event_log import EventLog
from ..worker_pool import ControlPlace, HostLostError
from .link_places import NodePlace
from .node_messages import (
    FROM_NODE,
    NODE_SILENCE_S_MAX,
    TO_NODE,
    LaunchWorker,
    NodeFacts,
    NodeHello,
    NodeLeaving,
    NodeRefused,
    NodeReport,
    SignalWorker,
    ToNode,
    WorkerEnded,
    WorkerForked,
    WorkerNotForked,
)
from .nodes_machine import (
    DrainAsked,
    Emptied,
    Event,
    HelloCame,
    Instruction,
    KnownNode,
    LinkEnded,
    NodeCame,
    NodeDrains,
    NodeGone,
    NodesMachine,
    NodeState,
    ReportCame,
    Say,
    StepDown,
)

OUTGOING_MESSAGES_MAX = 1024
"""Messages that may wait for one node. More mean that it does not read: it is as good as lost."""


class RemoteProcess:
    """A worker's process on a node; see `worker_pool.WorkerProcess`."""

    def __init__(self, send_signal: Callable[[bool], None]) -> None:
        self.pid = 0
        self._send_signal = send_signal
        self._code: int | None = None
        self._failure = ""
        self._started = trio.Event()
        self._ended = trio.Event()

    async def started(self) -> None:
        """Wait until it runs. Raises `OSError` where it cannot."""
        await self._started.wait()
        if not self.pid:
            raise OSError(self._failure)

    async def wait(self) -> int:
        """Wait for its end; the exit code, negative for a signal. Raises `HostLostError`."""
        await self._ended.wait()
        if self._code is None:
            raise HostLostError(self._failure)
        return self._code

    def signal(self, *, kill: bool) -> None:
        """SIGTERM or SIGKILL; nothing where it has ended."""
        if not self._ended.is_set():
            self._send_signal(kill)

    def heard(self, message: WorkerForked | WorkerNotForked | WorkerEnded) -> None:
        """Its node said what became of it."""
        match message:
            case WorkerForked(pid=pid):
                self.pid = pid
                self._started.set()
            case WorkerNotForked(sentence=sentence):
                self.lost(sentence)
            case WorkerEnded(code=code):
                self._code = code
                self._ended.set()

    def lost(self, sentence: str) -> None:
        """Nobody will hear of it any more."""
        self._failure = self._failure or sentence
        self._started.set()
        self._ended.set()


class _NodeLink:
    """One link to a node, and what was launched over it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._outgoing, self._unsent = trio.open_memory_channel[ToNode](OUTGOING_MESSAGES_MAX)
        self.processes: dict[int, RemoteProcess] = {}

    def say(self, message: ToNode) -> None:
        """Send, without waiting; after a refusal nothing more."""
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            try:
                self._outgoing.send_nowait(message)
            except trio.WouldBlock:
                self._outgoing.close()
            if isinstance(message, NodeRefused):
                self._outgoing.close()

    async def write(self) -> None:
        """Send what was said, in order, until there is no more to say; then the link ends."""
        with suppress(TransportError):  # the reader hears of it too
            async for message in self._unsent:
                await self._link.send([TO_NODE.encode(message)])
        await self._link.aclose()

    def heard(self, message: WorkerForked | WorkerNotForked | WorkerEnded) -> None:
        """The node said what became of a process."""
        process = self.processes.get(message.launch)
        if process is not None:
            process.heard(message)
            if not isinstance(message, WorkerForked):
                del self.processes[message.launch]

    def lost(self, sentence: str) -> None:
        """The link is over, and with it all processes."""
        self._outgoing.close()
        for process in self.processes.values():
            process.lost(sentence)
        self.processes.clear()


class Nodes:
    """See the module. ``step_down`` is called where somebody leads in a higher term."""

    def __init__(self, machine: NodesMachine, log: EventLog, step_down: Callable[[int], None]) -> None:
        self._machine = machine
        self._log = log
        self._step_down = step_down
        self._links: dict[int, _NodeLink] = {}
        self._numbers = itertools.count()
        self._launches = itertools.count()
        self._changed = trio.Event()

    # --- who is here ---

    @property
    def known(self) -> Mapping[str, KnownNode]:
        """The nodes that belong to the cluster, by name."""
        return self._machine.nodes

    def usable(self) -> dict[str, NodeFacts]:
        """Those of them whose devices may be used for something new."""
        return {name: node.facts for name, node in self.known.items() if node.state is NodeState.HERE}

    def places(self) -> dict[str, NodePlace]:
        """Where each can be reached."""
        facts = {name: node.facts for name, node in self.known.items()}
        return {name: NodePlace(at.host, at.first_port, at.last_port) for name, at in facts.items()}

    async def change(self) -> None:
        """Wait until a node comes, is to leave, or is gone."""
        await self._changed.wait()

    def drain(self, node: str, reason: str) -> None:
        """Let a node take nothing new. Raises `NodeError`."""
        self._handle(DrainAsked(node, reason))

    def emptied(self, node: str) -> None:
        """Nothing is left on a node that drains: its daemon may stop. Raises `NodeError`."""
        self._handle(Emptied(node))

    # --- their links ---

    async def host(self, visitor: AcceptedLink) -> None:
        """Hear a node until its link ends; a `usher.Host`."""
        number = next(self._numbers)
        link = self._links[number] = _NodeLink(visitor.link)
        sentence = "the leader is not leading any more"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.write)
                try:
                    await self._hear(number, visitor)
                except TransportError as error:
                    sentence = str(error)
                nursery.cancel_scope.cancel()
        finally:
            name = next((name for name, node in self.known.items() if node.link == number), "")
            self._handle(LinkEnded(number, sentence))
            del self._links[number]
            link.lost(f"node {name} was lost: {sentence}")

    async def _hear(self, number: int, visitor: AcceptedLink) -> None:
        link = self._links[number]
        while True:
            with trio.move_on_after(NODE_SILENCE_S_MAX) as waiting:
                (payload,) = await visitor.link.receive()
            if waiting.cancelled_caught:
                raise PeerLostError(f"it said nothing for {NODE_SILENCE_S_MAX:g} s")
            match FROM_NODE.decode(payload):
                case NodeHello() as hello:
                    self._handle(HelloCame(number, visitor.peer, hello))
                case NodeReport() as report:
                    self._handle(ReportCame(number, report))
                case NodeLeaving(reason=reason):
                    for name in [name for name, node in self.known.items() if node.link == number]:
                        self._handle(DrainAsked(name, reason))
                case WorkerForked() | WorkerNotForked() | WorkerEnded() as message:
                    link.heard(message)

    # --- their workers ---

    async def launch(self, node: str, replica: int, worker: int, device: str, control: ControlPlace) -> RemoteProcess:
        """Have a worker started on ``device`` of ``node``. Raises `OSError` where it cannot be."""
        known = self.known.get(node)
        if known is None:
            raise OSError(f"node {node or 'without a name'} is not here")
        link, launch = self._links[known.link], next(self._launches)
        process = RemoteProcess(lambda kill: link.say(SignalWorker(launch, kill)))
        link.processes[launch] = process
        link.say(LaunchWorker(launch, replica, worker, device, control.address, control.purpose))
        try:
            await process.started()
        except trio.Cancelled:
            process.signal(kill=True)
            raise
        return process

    # --- carrying out ---

    def _handle(self, event: Event) -> None:
        for instruction in self._machine.handle(event):
            self._perform(instruction)

    def _perform(self, instruction: Instruction) -> None:
        match instruction:
            case Say(link, message):
                if isinstance(message, NodeRefused):
                    self._log.emit("node_refused", reason=message.reason, sentence=message.sentence)
                self._links[link].say(message)
            case NodeCame(node):
                self._log.emit("node_came", node=node, devices=len(self.known[node].facts.devices))
                self._tell_change()
            case NodeDrains(node, reason):
                self._log.emit("node_drains", node=node, reason=reason)
                self._tell_change()
            case NodeGone(node, sentence):
                self._log.emit("node_gone", node=node, sentence=sentence)
                self._tell_change()
            case StepDown(term):
                self._step_down(term)

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
