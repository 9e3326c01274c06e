"""The fragmentation map: which devices there are, how they are joined, and how much of each is free, as numpy arrays.

Owns the order of rows, the aggregates that answer questions about the whole cluster without visiting it, and the epochs by
which a plan learns that it was made from old facts. Knows no driver, no model and no plan.

Rows never move: a device that vanishes keeps its row with no memory. Devices of an island, islands of a node and nodes of a
rack are neighbours, so that each level is a range of rows of the level below (compressed sparse rows):
devices of node ``n`` are rows ``first_device[n]`` up to ``first_device[n + 1]``, nodes of rack ``r`` likewise by ``first_node``.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ..types import Link
from .device_facts import DeviceFacts, LinkClasses, MapError, NodeFacts, check_free, check_slowdown

MAP_DEVICES_MAX = 1 << 18
"""Devices of one map."""
BUCKETS = tuple(int(2 ** (28 + half / 2)) for half in range(23))
"""Bytes from which `ClusterMap.colocated` counts devices: 256 MiB to 512 GiB in half octaves."""
ISLAND, NODE, RACK, CLUSTER = range(4)
"""How far apart two devices are: `ClusterMap.distance`, and the order of `LinkClasses.by_distance`."""

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
_EDGES = np.array(BUCKETS, np.int64)
_Key = TypeVar("_Key", bound=Hashable)


class SeenEpoch(NamedTuple):
    """A device, by row, and the epoch of its facts when a plan read them."""

    row: int
    epoch: int


@dataclass(slots=True, eq=False)
class ClusterMap:
    """The devices of a cluster. Make one with `cluster_map`; read its arrays freely; change it through `update` alone.

    Per device (D rows): ``free_bytes``, ``total_bytes`` (int64), ``speed``, ``slowdown`` (float64, as in `DeviceFacts`),
    ``island_of``, ``node_of`` (int64, rows of those levels), ``epoch`` (int64: when the row last changed), and
    ``descending_free`` (int64): each node's free bytes, largest first, in the node's range of rows.
    Per node (N rows): ``rack_of``, ``host_bytes_per_s``, ``network_bytes_per_s``, and ``first_device`` (N + 1).
    Per rack (R rows): ``rack_free_bytes``, ``rack_total_bytes``, ``rack_epoch`` (when any device of it last changed), and
    ``first_node`` (R + 1).
    ``colocated[k, b]`` is how many nodes have at least ``k`` devices with at least ``BUCKETS[b]`` bytes free.
    ``now`` is the epoch of the last change anywhere.
    """

    device_names: tuple[str, ...]
    models: tuple[str, ...]
    node_names: tuple[str, ...]
    rack_names: tuple[str, ...]
    links: LinkClasses
    free_bytes: Integers
    total_bytes: Integers
    speed: Numbers
    slowdown: Numbers
    island_of: Integers
    node_of: Integers
    epoch: Integers
    first_device: Integers
    rack_of: Integers
    host_bytes_per_s: Numbers
    network_bytes_per_s: Numbers
    first_node: Integers
    now: int
    descending_free: Integers
    rack_free_bytes: Integers
    rack_total_bytes: Integers
    rack_epoch: Integers
    colocated: Integers
    _rows: Mapping[str, int]

    @property
    def devices(self) -> int:
        """How many devices have a row."""
        return len(self.device_names)

    @property
    def nodes(self) -> int:
        """How many nodes have a row."""
        return len(self.node_names)

    @property
    def racks(self) -> int:
        """How many racks have a row."""
        return len(self.rack_names)

    def row(self, name: str) -> int:
        """The row of the device of this name. Raises `MapError` where there is none."""
        try:
            return self._rows[name]
        except KeyError:
            raise MapError(f"no device of the map is called {name!r}") from None

    def devices_of_node(self, node: int) -> slice:
        """The rows of a node's devices."""
        return slice(int(self.first_device[node]), int(self.first_device[node + 1]))

    def devices_of_rack(self, rack: int) -> slice:
        """The rows of a rack's devices."""
        return slice(int(self.first_device[self.first_node[rack]]), int(self.first_device[self.first_node[rack + 1]]))

    def distance(self, a: int, b: int) -> int:
        """How far apart the devices in rows ``a`` and ``b`` are: ISLAND, NODE, RACK or CLUSTER."""
        if self.island_of[a] == self.island_of[b]:
            return ISLAND
        if self.node_of[a] == self.node_of[b]:
            return NODE
        return RACK if self.rack_of[self.node_of[a]] == self.rack_of[self.node_of[b]] else CLUSTER

    def link(self, a: int, b: int) -> Link:
        """What a hop between the devices in rows ``a`` and ``b`` costs."""
        return self.links.by_distance()[self.distance(a, b)]

    def nodes_with(self, devices: int, free_bytes: int) -> int:
        """How many nodes have at least ``devices`` devices with ``free_bytes`` free each: exact, O(nodes).

        ``colocated`` answers the same for the sizes in `BUCKETS` without a look at the nodes.
        """
        if devices < 1:
            return self.nodes
        wanted = self.first_device[:-1] + devices - 1
        wide = wanted < self.first_device[1:]
        return int(np.count_nonzero(self.descending_free[wanted[wide]] >= free_bytes))

    def seen(self, rows: Iterable[int]) -> tuple[SeenEpoch, ...]:
        """What a plan that uses these devices has to remember, to be checked by `changed` before it is carried out."""
        return tuple(SeenEpoch(row, int(self.epoch[row])) for row in rows)

    def changed(self, seen: Iterable[SeenEpoch]) -> tuple[str, ...]:
        """The names of devices whose facts are no longer those that a plan saw."""
        return tuple(self.device_names[row] for row, epoch in seen if int(self.epoch[row]) != epoch)

    def update(self, row: int, *, free_bytes: int | None = None, slowdown: float | None = None) -> bool:
        """New facts of one device; whether they are new. O(G log G) for a node of G devices, whatever the cluster's size.

        Facts that are what they were change nothing, not even an epoch. Raises `MapError`, and changes nothing, for facts
        that cannot be.
        """
        free = int(self.free_bytes[row]) if free_bytes is None else free_bytes
        slow = float(self.slowdown[row]) if slowdown is None else slowdown
        check_free(self.device_names[row], free, int(self.total_bytes[row]))
        check_slowdown(self.device_names[row], slow)
        if free == self.free_bytes[row] and slow == self.slowdown[row]:
            return False
        self.slowdown[row] = slow
        self._replace_memory(row, int(free), int(self.total_bytes[row]))
        return True

    def vanish(self, row: int) -> None:
        """The device is gone: its row stays, without memory, and whatever was planned on it is out of date."""
        self._replace_memory(row, 0, 0)

    def copy(self) -> ClusterMap:
        """The same map, apart: changes to one do not show in the other."""
        twin = copy.copy(self)
        for name in ("free_bytes", "total_bytes", "slowdown", "epoch", "descending_free", "colocated"):
            setattr(twin, name, getattr(self, name).copy())
        for name in ("rack_free_bytes", "rack_total_bytes", "rack_epoch"):
            setattr(twin, name, getattr(self, name).copy())
        return twin

    def _replace_memory(self, row: int, free: int, total: int) -> None:
        node = int(self.node_of[row])
        rack = int(self.rack_of[node])
        mates = self.devices_of_node(node)
        self.rack_free_bytes[rack] += free - self.free_bytes[row]
        self.rack_total_bytes[rack] += total - self.total_bytes[row]
        self.free_bytes[row], self.total_bytes[row] = free, total
        _count_node(self.colocated, self.descending_free[mates], -1)
        self.descending_free[mates] = np.sort(self.free_bytes[mates])[::-1]
        _count_node(self.colocated, self.descending_free[mates], +1)
        self.now += 1
        self.epoch[row] = self.rack_epoch[rack] = self.now


def cluster_map(
    devices: Sequence[DeviceFacts],
    nodes: Sequence[NodeFacts] = (),
    links: LinkClasses | None = None,
    first_epoch: int = 0,
) -> ClusterMap:
    """The map of ``devices``, in their order as far as racks, nodes and islands allow. No devices are a map too.

    ``nodes`` says where nodes stand and how fast they load; a node that it does not name stands in the first rack and has
    default rates. ``first_epoch`` is the epoch of all rows: a map that replaces another begins above the other's ``now``.
    Raises `MapError` for a name that comes twice, or more than `MAP_DEVICES_MAX` devices.
    """
    if len(devices) > MAP_DEVICES_MAX:
        raise MapError(f"the map would have {len(devices)} devices; the limit is {MAP_DEVICES_MAX}")
    known = _known_nodes(devices, nodes)
    rack_number = _numbered(node.rack for node in known.values())
    node_number = _numbered(sorted(known, key=lambda name: rack_number[known[name].rack]))
    island_number = _numbered((device.node, device.island) for device in devices)
    rows = sorted(devices, key=lambda device: (node_number[device.node], island_number[device.node, device.island]))
    row_number = {device.name: row for row, device in enumerate(rows)}
    if len(row_number) != len(rows):
        twice = Counter(device.name for device in rows).most_common(1)[0][0]
        raise MapError(f"two devices are called {twice!r}; names are unique in a map")

    ordered = [known[name] for name in node_number]
    islands = _numbered((device.node, device.island) for device in rows)
    node_of = np.array([node_number[device.node] for device in rows], np.int64)
    rack_of = np.array([rack_number[node.rack] for node in ordered], np.int64)
    free = np.array([device.free_bytes for device in rows], np.int64)
    total = np.array([device.total_bytes for device in rows], np.int64)
    first_device = np.searchsorted(node_of, np.arange(len(ordered) + 1)).astype(np.int64)
    descending = free[np.lexsort((-free, node_of))]
    rack_of_device = rack_of[node_of]
    return ClusterMap(
        device_names=tuple(row_number),
        models=tuple(device.model for device in rows),
        node_names=tuple(node_number),
        rack_names=tuple(rack_number),
        links=links or LinkClasses(),
        free_bytes=free,
        total_bytes=total,
        speed=np.array([device.speed for device in rows], np.float64),
        slowdown=np.array([device.slowdown for device in rows], np.float64),
        island_of=np.array([islands[device.node, device.island] for device in rows], np.int64),
        node_of=node_of,
        epoch=np.full(len(rows), first_epoch, np.int64),
        first_device=first_device,
        rack_of=rack_of,
        host_bytes_per_s=np.array([node.host_bytes_per_s for node in ordered], np.float64),
        network_bytes_per_s=np.array([node.network_bytes_per_s for node in ordered], np.float64),
        first_node=np.searchsorted(rack_of, np.arange(len(rack_number) + 1)).astype(np.int64),
        now=first_epoch,
        descending_free=descending,
        rack_free_bytes=_sums(rack_of_device, free, len(rack_number)),
        rack_total_bytes=_sums(rack_of_device, total, len(rack_number)),
        rack_epoch=np.full(len(rack_number), first_epoch, np.int64),
        colocated=_colocated(descending, first_device),
        _rows=row_number,
    )


def _known_nodes(devices: Sequence[DeviceFacts], nodes: Sequence[NodeFacts]) -> dict[str, NodeFacts]:
    """The facts of each node that has devices, by name, in the order of its first device."""
    stated = {node.name: node for node in nodes}
    if len(stated) != len(nodes):
        raise MapError("the facts of one node are stated twice")
    return {device.node: stated.get(device.node) or NodeFacts(device.node) for device in devices}


def _numbered(keys: Iterable[_Key]) -> dict[_Key, int]:
    """Each key's number, in the order in which they first come."""
    numbers: dict[_Key, int] = {}
    for key in keys:
        numbers.setdefault(key, len(numbers))
    return numbers


def _sums(groups: Integers, values: Integers, count: int) -> Integers:
    """The exact sum of ``values`` in each of ``count`` groups."""
    sums = np.zeros(count, np.int64)
    np.add.at(sums, groups, values)
    return sums


def _colocated(descending_free: Integers, first_device: Integers) -> Integers:
    """The table `ClusterMap.colocated`: row 0 is every node; then one row more for each device of the widest node."""
    widths = np.diff(first_device)
    widest = int(widths.max(initial=0))
    table = np.zeros((widest + 1, len(BUCKETS)), np.int64)
    table[0] = len(widths)
    for k in range(1, widest + 1):
        kth = descending_free[first_device[:-1][widths >= k] + k - 1]
        table[k] = len(kth) - np.searchsorted(np.sort(kth), _EDGES)
    return table


def _count_node(table: Integers, descending_free: Integers, by: int) -> None:
    """Add one node to the table `ClusterMap.colocated`, or take it away."""
    for k, buckets in enumerate(np.searchsorted(_EDGES, descending_free, side="right"), start=1):
        table[k, :buckets] += by
