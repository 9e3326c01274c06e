"""What is known of one device and of the node it is in: the facts that a cluster map is made of, checked one by one.

Owns what is a fact and what is nonsense: no NaN, no negative memory, no more free than there is. Knows no driver and no
file; whoever asks one writes these values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..types import Link

DEVICE_BYTES_MAX = 1 << 44
"""Memory of one device, in bytes (16 TiB), so that sums over a whole map stay within 64 bits."""


class MapError(ValueError):
    """A fact that cannot be, or one that contradicts another; the sentence names the device or node and what is wrong."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device. ``name`` is unique in its map; ``island`` names the fast neighbourhood (NVLink, PCIe switch) in its node.

    ``free_bytes`` is free whoever holds the rest. ``speed`` is relative to the device that costs were measured on: 2 halves
    compute times. ``slowdown`` is what co-tenants cost: compute times grow by the factor ``1 + slowdown``.

    Raises `MapError` for facts that cannot be.
    """

    name: str
    node: str
    total_bytes: int
    free_bytes: int
    model: str = ""
    island: str = ""
    speed: float = 1.0
    slowdown: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no device can be."""
        if not self.name or not self.node:
            raise MapError(f"a device needs a name and a node (name {self.name!r}, node {self.node!r})")
        check_bytes(self.name, "total memory", self.total_bytes)
        check_free(self.name, self.free_bytes, self.total_bytes)
        check_slowdown(self.name, self.slowdown)
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise MapError(f"{self.name} has speed {self.speed}; a speed is a positive number, 1 for the usual device")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node: the rack that it stands in, and how fast weights come to its devices, in bytes per second.

    ``host_bytes_per_s`` is the rate from the node's own memory, ``network_bytes_per_s`` the rate from elsewhere. The
    defaults are round figures for PCIe 4.0 x16 and 100 Gbit/s; give measured ones where there are some.
    """

    name: str
    rack: str = "rack-0"
    host_bytes_per_s: float = 20e9
    network_bytes_per_s: float = 10e9

    def __post_init__(self) -> None:
        """Refuse rates at which nothing ever arrives."""
        if not self.name or not self.rack:
            raise MapError(f"a node needs a name and a rack (name {self.name!r}, rack {self.rack!r})")
        for rate in (self.host_bytes_per_s, self.network_bytes_per_s):
            if not (math.isfinite(rate) and rate > 0):
                raise MapError(f"node {self.name} loads at {rate} bytes/s; a rate is a positive number")


@dataclass(frozen=True, slots=True)
class LinkClasses:
    """What a hop costs by how far apart two devices are: in one island, one node, one rack, or only in one cluster.

    The defaults are all-reduce and send-receive times as the Vidur simulator published them, read as latency plus rate: H100
    DGX within a node (island), H100 DGX across nodes (rack), A100 DGX across nodes (cluster). ``node``, between islands of
    one node, is a round figure for PCIe 4.0.
    """

    island: Link = field(default_factory=lambda: Link(9_000, 358e9))
    node: Link = field(default_factory=lambda: Link(17_000, 25e9))
    rack: Link = field(default_factory=lambda: Link(33_000, 34e9))
    cluster: Link = field(default_factory=lambda: Link(101_000, 8e9))

    def by_distance(self) -> tuple[Link, Link, Link, Link]:
        """The classes from near to far; a class's position is its number in `ClusterMap.distance`."""
        return (self.island, self.node, self.rack, self.cluster)


def check_bytes(name: str, what: str, value: int) -> None:
    """Raise `MapError` unless ``value`` can be a device's memory in bytes."""
    if not math.isfinite(value) or not 0 <= value <= DEVICE_BYTES_MAX:
        raise MapError(f"{name} has {value} bytes of {what}; it must be a number from 0 to {DEVICE_BYTES_MAX}")
    if value != int(value):
        raise MapError(f"{name} has {value} bytes of {what}; bytes come whole")


def check_free(name: str, free_bytes: int, total_bytes: int) -> None:
    """Raise `MapError` unless ``free_bytes`` can be free of ``total_bytes``."""
    check_bytes(name, "free memory", free_bytes)
    if free_bytes > total_bytes:
        raise MapError(f"{name} has {free_bytes} bytes free of {total_bytes}; no more can be free than there is")


def check_slowdown(name: str, slowdown: float) -> None:
    """Raise `MapError` unless compute times can grow by ``1 + slowdown``."""
    if not (math.isfinite(slowdown) and slowdown >= 0):
        raise MapError(f"{name} has slowdown {slowdown}; it must be a number from 0 (no co-tenants) up")
