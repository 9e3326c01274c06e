"""Several nodes in one trio loop: the real leader's side and the real node agents, with workers as tasks over a memory network."""

import io
import json
from contextlib import asynccontextmanager

import trio
from flexpipe.actors.cluster.leader_source import FixedLeader
from flexpipe.actors.cluster.link_places import ClusterPlaces, PortLedger
from flexpipe.actors.cluster.node_agent import NodeAgent
from flexpipe.actors.cluster.node_agent_machine import AgentLimits
from flexpipe.actors.cluster.node_messages import (
    LISTENER_LIMITS,
    NODE_PURPOSE,
    NodeDevice,
    NodeFacts,
    NodeReport,
)
from flexpipe.actors.cluster.nodes import Nodes
from flexpipe.actors.cluster.nodes_machine import NodesMachine
from flexpipe.actors.cluster.remote_workers import WORKER_PURPOSE, RemoteLauncher, WorkerDoors
from flexpipe.actors.cluster.usher import Usher
from flexpipe.actors.event_log import EventLog
from flexpipe.actors.link_place import LinkPlace
from flexpipe.actors.route import StagePlacement
from flexpipe.actors.worker_pool import ControlPlace
from flexpipe.sim.modelled_engine import ModelledEngine, ModelledSpeed
from flexpipe.sim.task_launcher import TaskLauncher
from flexpipe.transport.interface import SEAL_BYTES
from modelled_pipeline import MODEL

LEADER = "memory://leader"
DIGEST = "digest"


def facts_of(name, devices=2):
    number = int(name.removeprefix("n"))
    names = tuple(NodeDevice(f"cpu:{device}") for device in range(devices))
    return NodeFacts(name, f"10.0.0.{number}", 7710, 7909, 2, 0, 1 << 30, names)


class MemoryPlaces:
    """The real places of a cluster, as addresses of a memory network."""

    def __init__(self, places):
        self.begin = places.begin
        self._places = places

    def place(self, epoch, link, binder, connector):
        place = self._places.place(epoch, link, binder, connector)
        return LinkPlace(f"memory://{place.address.replace('://', '-')}", place.seal)


class ModelledNode:
    """One node's agent, and its workers."""

    def __init__(
        self,
        name,
        network,
        nursery,
        log_text,
        *,
        model=DIGEST,
        source=None,
        process="",
        speed=ModelledSpeed(step_s=0.01),
    ):
        self.name = name
        self._process = process or name
        self.left = None
        self.fails_to_start = False
        self.over = trio.Event()
        self._network = network
        self._scope = trio.CancelScope()
        self._log = EventLog(log_text, process=name)
        self._model = model
        self._source = source or FixedLeader(LEADER)
        self.launcher = TaskLauncher(network, nursery, lambda: ModelledEngine(MODEL, speed), log_text, f"{name}-worker")
        nursery.start_soon(self._live)

    async def _live(self):
        with self._scope:
            async with self._network.open(self._process, self.name) as transport:
                self.agent = NodeAgent(
                    facts_of(self.name),
                    self._model,
                    self._source,
                    transport,
                    self,
                    lambda: NodeReport(1, 0, len(self.launcher.processes)),
                    self._log,
                    AgentLimits(retry_s=0.1, name_s_max=5.0),
                )
                self.left = await self.agent.run()
        self.over.set()

    async def start(self, order):
        """See `WorkerStarter`."""
        if self.fails_to_start:
            raise OSError("no more processes")
        placement = StagePlacement(order.worker, 0, 1, order.device, 1)
        return await self.launcher.launch(placement, ControlPlace(order.control, order.purpose))

    def pause(self):
        """Let nothing reach or leave the node or its workers."""
        for process in self.processes():
            self._network.hang(process)

    def crash(self):
        """What the end of its machine is: everything stops at once."""
        for process in list(self.launcher.processes.values()):
            process.signal(kill=True)
        self._network.crash(self._process)
        self._scope.cancel()

    def processes(self):
        return [self._process, *(process.name for process in self.launcher.processes.values())]


class ModelledLeader:
    """The leader's side: what a `ModelledFactory` needs to know of where workers live and meet."""

    def __init__(self, transport, log_text, term=1, model=DIGEST):
        self.log = EventLog(log_text, process="leader")
        self.stepped_down = None
        self.recovery = lambda _replica: None
        self.nodes = Nodes(NodesMachine("n1", term, model), self.log, self._step_down)
        self._doors = WorkerDoors(transport, "n1", "", LEADER, term)
        self._ports = PortLedger(self.nodes.places)
        self._transport = transport
        self._term = term
        self._seals = 0

    async def receive(self, *, task_status=trio.TASK_STATUS_IGNORED):
        listener = await self._transport.listen(LEADER, name="leader", limits=LISTENER_LIMITS)
        usher = Usher(listener, self.log)
        usher.lead(NODE_PURPOSE, self.nodes.host)
        usher.lead(WORKER_PURPOSE, self._doors.host)
        await usher.run(task_status=task_status)

    def launcher(self, replica):
        return RemoteLauncher(self.nodes, replica)

    def doors(self, replica):
        return self._doors.of(replica)

    def places(self, replica):
        return MemoryPlaces(ClusterPlaces(f"{self._term}-{replica}", self._ports, self._seal))

    def _seal(self):
        self._seals += 1
        return self._seals.to_bytes(SEAL_BYTES, "big")

    def _step_down(self, term):
        self.stepped_down = term

    async def wait_nodes(self, *names):
        """Until exactly these are here."""
        while set(self.nodes.known) != set(names):
            await self.nodes.change()


class ModelledCluster:
    """See the module. ``nodes`` are those that were ever started, by name."""

    def __init__(self, network, nursery, transport, log_text):
        self.network = network
        self.log_text = log_text
        self.leader = ModelledLeader(transport, log_text)
        self.nodes = {}
        self._nursery = nursery

    def start(self, name, **options):
        node = self.nodes[name] = ModelledNode(name, self.network, self._nursery, self.log_text, **options)
        return node

    def events(self, name):
        lines = map(json.loads, self.log_text.getvalue().splitlines())
        return [line for line in lines if line["event"] == name]


@asynccontextmanager
async def modelled_cluster(network, *names):
    """A leader, and nodes that have joined it."""
    async with trio.open_nursery() as nursery, network.open("leader", "n1") as transport:
        cluster = ModelledCluster(network, nursery, transport, io.StringIO())
        await nursery.start(cluster.leader.receive)
        for name in names:
            cluster.start(name)
        await cluster.leader.wait_nodes(*names)
        await trio.sleep(0.1)  # their welcomes are still under way
        yield cluster
        nursery.cancel_scope.cancel()
