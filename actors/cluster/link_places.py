"""Places for links of pipelines that cross nodes: names within a node, sealed tcp ports of the binding node between nodes.

Owns which ports are in use. Knows no socket: the workers bind, and one that finds its port taken says so, so that the epoch is
made again with the next ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ..device_name import node_of
from ..link_place import HERE, LinkPlace
from ..route import RouteError


@dataclass(frozen=True, slots=True)
class NodePlace:
    """Where a node can be reached: its host, and the ports that its workers may bind, both ends of the range included."""

    host: str
    first_port: int
    last_port: int


class PortLedger:
    """The ports of all nodes that links of one leader use. ``nodes`` is what there is now, by name."""

    def __init__(self, nodes: Callable[[], Mapping[str, NodePlace]]) -> None:
        self._nodes = nodes
        self._used: dict[str, set[int]] = {}
        self._latest: dict[str, int] = {}

    def take(self, node: str) -> tuple[str, int]:
        """Host and port for one more link that ``node`` binds, round robin: one that was freed just now comes last.

        Raises `RouteError` where the node is gone, or has no free port.
        """
        place = self._nodes().get(node)
        if place is None:
            raise RouteError(f"node {node} is not here; plan without it")
        used, ports = self._used.setdefault(node, set()), place.last_port - place.first_port + 1
        start = self._latest.get(node, place.first_port - 1) + 1 - place.first_port
        for step in range(ports):
            port = place.first_port + (start + step) % ports
            if port not in used:
                used.add(port)
                self._latest[node] = port
                return place.host, port
        raise RouteError(
            f"node {node} has no free port in {place.first_port}-{place.last_port}; start its daemon with a wider --ports"
        )

    def free(self, node: str, port: int) -> None:
        """The link is closed, or will never be."""
        self._used.get(node, set()).discard(port)


class ClusterPlaces:
    """The `LinkPlaces` of one pipeline. Names begin with ``prefix``; ``draw_seal`` gives `SEAL_BYTES` of chance."""

    def __init__(self, prefix: str, ports: PortLedger, draw_seal: Callable[[], bytes]) -> None:
        self._prefix = prefix
        self._ports = ports
        self._draw_seal = draw_seal
        self._taken: dict[int, list[tuple[str, int]]] = {}

    def begin(self, epoch: int, keep: Collection[int]) -> None:
        """See `LinkPlaces.begin`."""
        for other in [other for other in self._taken if other != epoch and other not in keep]:
            for node, port in self._taken.pop(other):
                self._ports.free(node, port)

    def place(self, epoch: int, link: str, binder: str, connector: str) -> LinkPlace:
        """See `LinkPlaces.place`."""
        node = node_of(binder)
        if node == node_of(connector):
            return LinkPlace(f"{HERE}{self._prefix}-{epoch}-{link}")
        host, port = self._ports.take(node)
        self._taken.setdefault(epoch, []).append((node, port))
        at = f"[{host}]" if ":" in host else host
        return LinkPlace(f"tcp://{at}:{port}", self._draw_seal())

    def close(self) -> None:
        """The pipeline is gone: free everything."""
        self.begin(-1, ())
