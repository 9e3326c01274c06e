"""The cluster maps that placement is measured on: from files, or drawn; tiled to any size.

Owns what is assumed of a map that does not say: four devices share an island, and a full device's tenants slow it down by
two fifths, others in proportion.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..policies.cluster.cluster_map import ClusterMap, cluster_map
from ..policies.cluster.device_facts import DeviceFacts, MapError, NodeFacts
from ..sim.map_file import read_map
from ..sim.synthetic_map import SyntheticMap

POLICIES = ("random", "bestfit", "fgd")
SHARES = (50, 70, 90)
TIGHT = ("random_90", "bestfit_90")
ISLAND_DEVICES = 4
FULL_SLOWDOWN = 0.4
RACK_NODES = 32


NINE = tuple(f"{policy}_{share}" for policy in POLICIES for share in SHARES)


def load_maps(names: Sequence[str], folder: Path | None) -> dict[str, ClusterMap]:
    """Maps by names as "random_90", a policy and the allocated share: from files so named in ``folder``, or drawn.

    Raises `MapError` where a file is missing.
    """
    if folder is None:
        return {name: _tenanted(SyntheticMap.parse(name.replace("_", ":")).draw()) for name in names}
    return {name: _tenanted(read_map(_file(folder, name))) for name in names}


def tiled(cluster: ClusterMap, devices: int, seed: int) -> ClusterMap:
    """Copies of a map's nodes, each copy in an order of its own, until there are so many devices; racks of 32 nodes."""
    chance = np.random.default_rng(seed)
    facts: list[DeviceFacts] = []
    nodes: list[NodeFacts] = []
    while len(facts) < devices:
        for node in chance.permutation(cluster.nodes).tolist():
            name = f"node-{len(nodes)}"
            nodes.append(
                NodeFacts(
                    name,
                    f"rack-{len(nodes) // RACK_NODES}",
                    float(cluster.host_bytes_per_s[node]),
                    float(cluster.network_bytes_per_s[node]),
                )
            )
            rows = range(*cluster.devices_of_node(node).indices(cluster.devices))
            facts += [_renamed(cluster, row, name, place) for place, row in enumerate(rows)][: devices - len(facts)]
            if len(facts) == devices:
                break
    return cluster_map(facts, nodes, cluster.links)


def _file(folder: Path, name: str) -> Path:
    found = sorted(path for path in folder.iterdir() if name in path.name)
    if not found:
        raise MapError(f"{folder} has no map called {name}; there must be one file for each policy and share")
    return found[0]


def _tenanted(cluster: ClusterMap) -> ClusterMap:
    """The map with islands and with what its tenants cost."""
    nodes = [
        NodeFacts(
            cluster.node_names[node],
            cluster.rack_names[int(cluster.rack_of[node])],
            float(cluster.host_bytes_per_s[node]),
            float(cluster.network_bytes_per_s[node]),
        )
        for node in range(cluster.nodes)
    ]
    facts = []
    for row in range(cluster.devices):
        node = int(cluster.node_of[row])
        facts.append(_renamed(cluster, row, cluster.node_names[node], row - int(cluster.first_device[node])))
    return cluster_map(facts, nodes, cluster.links)


def _renamed(cluster: ClusterMap, row: int, node: str, place: int) -> DeviceFacts:
    total, free = int(cluster.total_bytes[row]), int(cluster.free_bytes[row])
    return DeviceFacts(
        name=f"{node}/{place}",
        node=node,
        total_bytes=total,
        free_bytes=free,
        model=cluster.models[row],
        island=str(place // ISLAND_DEVICES),
        speed=float(cluster.speed[row]),
        slowdown=round(FULL_SLOWDOWN * (1 - free / max(total, 1)), 2),
    )
