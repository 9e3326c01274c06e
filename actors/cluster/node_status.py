"""The nodes of a cluster as operators see them, and what operators may ask of them: the leader's answers, in values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from ..device_name import node_of, on_node
from .nodes import Nodes
from .nodes_machine import NodeError, NodeState


class DeviceStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device by its cluster-wide name; ``in_use`` by a worker. ``memory_bytes`` 0: nobody stated it."""

    device: str
    memory_bytes: int
    in_use: bool


class NodeStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node; sizes in bytes. ``state`` is "here", "draining" or "released"; ``reason`` is why it is to leave."""

    node: str
    state: str
    leads: bool
    host: str
    cores: int
    memory_bytes: int
    memory_free_bytes: int
    warm_bytes: int
    workers: int
    reason: str
    devices: tuple[DeviceStatus, ...]


class NodeControl:
    """The leader's nodes for operators. ``used`` are the devices that replicas have."""

    def __init__(self, nodes: Nodes, leader: str, used: Callable[[], Iterable[str]]) -> None:
        self._nodes = nodes
        self._leader = leader
        self._used = used

    def status(self) -> tuple[NodeStatus, ...]:
        """Those that belong to the cluster now, in the order of their names."""
        used = frozenset(self._used())
        workers = Counter(node_of(device) for device in used)
        return tuple(
            NodeStatus(
                node=name,
                state=node.state.value,
                leads=name == self._leader,
                host=node.facts.host,
                cores=node.facts.cores,
                memory_bytes=node.facts.memory_bytes,
                memory_free_bytes=node.report.memory_free_bytes if node.report else 0,
                warm_bytes=node.report.warm_bytes if node.report else 0,
                workers=node.report.workers if node.report else workers[name],
                reason=node.reason,
                devices=tuple(
                    DeviceStatus(on_node(name, at.name), at.memory_bytes, on_node(name, at.name) in used)
                    for at in node.facts.devices
                ),
            )
            for name, node in sorted(self._nodes.known.items())
        )

    def drain(self, node: str) -> None:
        """Have everything moved off ``node``, then let its daemon stop. Again: nothing. Raises `NodeError`."""
        known = self._nodes.known
        if node == self._leader and node in known:
            raise NodeError(
                f"node {node} leads the cluster; stop its daemon instead, which hands over where another may lead"
            )
        stay = [name for name, other in known.items() if name != node and other.state is NodeState.HERE]
        if node in known and not stay:
            raise NodeError(f"node {node} is the only one that is left; its stages have nowhere to go")
        self._nodes.drain(node, "an operator asked for it")
