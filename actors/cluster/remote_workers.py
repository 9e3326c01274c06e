"""Workers on other nodes as a pool sees them: launched through the node's link, heard through the leader's listener.

A worker of the leader's own node comes by a socket file of that node, which is faster than a port.
"""

from __future__ import annotations

import trio

from ...transport.interface import AcceptedLink, Link, Transport
from ..device_name import local_name, node_of
from ..link_place import HERE, address_here
from ..route import StagePlacement
from ..worker_pool import CONTROL_LIMITS, ControlPlace
from .expected_link import ExpectedLink
from .nodes import Nodes, RemoteProcess
from .usher import RefusedVisitorError

WORKER_PURPOSE = "worker"
"""What a worker's control link to the leader's listener is for; its term, replica and number follow."""


class WorkerDoors:
    """Lets the workers of all replicas in ``term`` reach their pools.

    Those of ``node``, the leader's own, meet in its folder ``sockets``, where there is one; others come to ``address``.
    """

    def __init__(self, transport: Transport, node: str, sockets: str, address: str, term: int) -> None:
        self._transport = transport
        self._node = node
        self._sockets = sockets
        self._address = address
        self._term = term
        self._expected: dict[str, tuple[str, ExpectedLink]] = {}

    def of(self, replica: int) -> ReplicaDoors:
        """The `ControlDoors` of one replica."""
        return ReplicaDoors(self, replica)

    async def open(self, replica: int, placement: StagePlacement, name: str) -> tuple[ControlPlace, Link]:
        """See `ControlDoors.open`."""
        node = node_of(placement.device)
        if node == self._node and self._sockets:
            here = f"{HERE}{self._term}-{replica}-control-{placement.worker}"
            address = address_here(here, self._sockets)
            return ControlPlace(here), await self._transport.bind(address, name=name, limits=CONTROL_LIMITS)
        purpose = f"{WORKER_PURPOSE}:{self._term}:{replica}:{placement.worker}"
        link = ExpectedLink(name, lambda: self._forget(purpose))
        self._expected[purpose] = node, link
        await trio.lowlevel.checkpoint()
        return ControlPlace(self._address, purpose), link

    async def host(self, visitor: AcceptedLink) -> None:
        """Lead a worker to its pool, and wait until that lets it go; a `usher.Host`."""
        node, link = self._expected.get(visitor.purpose, ("", None))
        if link is None:
            raise RefusedVisitorError("no such worker is expected")
        if visitor.peer and visitor.peer != node:
            raise RefusedVisitorError(f"that worker is expected from node {node}")
        if not link.arrived(visitor.link):
            raise RefusedVisitorError("that worker is here already")
        await link.closed.wait()

    def _forget(self, purpose: str) -> None:
        self._expected.pop(purpose, None)


class ReplicaDoors:
    """See `WorkerDoors.of`."""

    def __init__(self, doors: WorkerDoors, replica: int) -> None:
        self._doors = doors
        self._replica = replica

    async def open(self, placement: StagePlacement, name: str) -> tuple[ControlPlace, Link]:
        """See `ControlDoors.open`."""
        return await self._doors.open(self._replica, placement, name)


class RemoteLauncher:
    """The `WorkerLauncher` of one replica whose workers run on nodes."""

    def __init__(self, nodes: Nodes, replica: int) -> None:
        self._nodes = nodes
        self._replica = replica

    async def launch(self, placement: StagePlacement, control: ControlPlace) -> RemoteProcess:
        """See `WorkerLauncher.launch`."""
        node, device = node_of(placement.device), local_name(placement.device)
        return await self._nodes.launch(node, self._replica, placement.worker, device, control)
