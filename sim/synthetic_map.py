"""Cluster maps drawn from a seed, with the statistics of a published production cluster, for tests and benches.

Sizes and GPU models of nodes, and the shapes of what runs on them, are proportions counted from "openb", the cluster trace
gpu-v2023 of Alibaba (Weng et al., USENIX ATC 2023); the trace itself is not needed. Like the maps that one derives from the
trace, these are made by filling a cluster by a named policy until a share of its GPUs is allocated, and then letting as many
random tenants leave as there are, each followed by new ones. What a tenant takes of a GPU's compute stands for what it takes
of its memory. Unlike there, a node's processors and host memory bind nobody here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..policies.cluster.cluster_map import ClusterMap, cluster_map
from ..policies.cluster.device_facts import DeviceFacts, MapError, NodeFacts
from .gpu_models import GPU_MODELS
from .tenants import POLICIES, WHOLE, Chance, fill

NODES_OF_A_RACK = 32
NODE_KINDS = (
    (8, "G2", 549),
    (2, "T4", 387),
    (2, "P100", 131),
    (8, "G3", 39),
    (4, "V100M16", 28),
    (8, "V100M32", 21),
    (1, "V100M16", 19),
    (4, "T4", 17),
    (4, "V100M32", 9),
    (8, "V100M16", 8),
    (1, "P100", 3),
    (1, "A10", 2),
)
"""GPUs of a node, their model, and how many of the 1,213 nodes with GPUs are like that."""
NODES = sum(count for _gpus, _model, count in NODE_KINDS)
"""Nodes by default, and the most that one scheduler fills: a larger map is several such clusters side by side."""
NODES_MAX = 32_000
_TEXT = re.compile(r"([a-z]+):(\d{1,2})")


@dataclass(frozen=True, slots=True)
class SyntheticMap:
    """What to draw: the policy by which tenants were placed, one of `POLICIES`, and the share of GPUs that they hold."""

    policy: str
    allocated: float
    nodes: int = NODES
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn. Raises `MapError`."""
        if self.policy not in POLICIES or not 0 <= self.allocated < 1:
            raise MapError(f"{self.policy!r} at {self.allocated:.0%} is no synthetic map; {_CHOICES}")
        if not 1 <= self.nodes <= NODES_MAX:
            raise MapError(f"a synthetic map of {self.nodes} nodes cannot be drawn; ask for 1 to {NODES_MAX}")
        if self.seed < 0:
            raise MapError(f"{self.seed} is no seed; give a number from 0 up")

    @classmethod
    def parse(cls, text: str, nodes: int = NODES, seed: int = 0) -> SyntheticMap:
        """From "random:90". Raises `MapError`."""
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise MapError(f"{text!r} is no synthetic map; {_CHOICES}")
        return cls(match[1], int(match[2]) / 100, nodes, seed)

    def draw(self) -> ClusterMap:
        """The map: the same for the same values."""
        chance = np.random.default_rng(self.seed)
        kinds = _node_kinds(self.nodes, chance)
        free: list[list[int]] = []
        for first in range(0, self.nodes, NODES):
            free += fill([gpus for gpus, _ in kinds[first : first + NODES]], self.policy, self.allocated, chance)
        devices = [
            _device(node, place, model, hundredths)
            for node, ((_, model), held) in enumerate(zip(kinds, free, strict=True))
            for place, hundredths in enumerate(held)
        ]
        racks = [NodeFacts(node_name(node), f"rack-{node // NODES_OF_A_RACK}") for node in range(self.nodes)]
        return cluster_map(devices, racks)


_CHOICES = f"write {', '.join(f'{policy}:90' for policy in POLICIES)}, with the allocated share in percent, 0 to 99"


def node_name(node: int) -> str:
    """What the node of this number is called."""
    return f"node-{node:04d}"


def _device(node: int, place: int, model: str, free_hundredths: int) -> DeviceFacts:
    known = GPU_MODELS[model]
    return DeviceFacts(
        name=f"{node_name(node)}/{place}",
        node=node_name(node),
        total_bytes=known.memory_bytes,
        free_bytes=known.memory_bytes * free_hundredths // WHOLE,
        model=model,
        speed=known.speed,
    )


def _node_kinds(nodes: int, chance: Chance) -> Sequence[tuple[int, str]]:
    """GPUs and model of each node: the trace's proportions, as exactly as ``nodes`` allow, in a random order."""
    exact = [count * nodes / NODES for _, _, count in NODE_KINDS]
    counts = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda kind: counts[kind] - exact[kind])
    for kind in by_rest[: nodes - sum(counts)]:
        counts[kind] += 1
    kinds = [(gpus, model) for (gpus, model, _), count in zip(NODE_KINDS, counts, strict=True) for _ in range(count)]
    return [kinds[place] for place in chance.permutation(nodes)]
