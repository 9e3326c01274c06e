"""What placement is measured on: small tight instances for the exact judge, and models for large maps.

Owns the seeds. Nothing here looks at a solver.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..policies.cluster.cluster_map import ClusterMap, cluster_map
from ..policies.cluster.device_facts import DeviceFacts, LinkClasses, NodeFacts
from ..policies.placement.values import ObjectiveWeights, PlacementRequest, PresentStage
from ..policies.types import AtomCost, Link

GIB = 1 << 30
BANDWIDTH_BYTES_PER_S = 600e9
"""Of the device whose speed is 1: decoding reads every weight once a step."""
DECODE_BATCH = 64
LINKS = (
    LinkClasses(Link(9_000, 358e9), Link(17_000, 50e9), Link(33_000, 34e9), Link(101_000, 8e9)),
    LinkClasses(Link(10_000, 50e9), Link(30_000, 20e9), Link(136_000, 3.9e9), Link(287_000, 2.3e9)),
    LinkClasses(Link(20_000, 20e9), Link(60_000, 10e9), Link(300_000, 1.2e9), Link(900_000, 0.6e9)),
)
"""Fast, middling (an A40 cluster as Vidur's tables have it) and slow (Ethernet); nearer is never dearer."""


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder: ``gigabytes`` of weights in ``blocks`` blocks of an attention and an MLP each."""

    name: str
    gigabytes: float
    blocks: int
    hidden: int
    kv_bytes_per_token: int

    def atoms(self) -> tuple[AtomCost, ...]:
        """Embedding, two atoms a block, head; times by memory bandwidth, activations in bfloat16."""
        whole = self.gigabytes * 1e9
        ends, block = round(whole * 0.015), whole * 0.97 / self.blocks
        sizes = [
            ("embedding", 0, ()),
            *(each for b in range(self.blocks) for each in self._block(b, block)),
            ("head", ends, ()),
        ]
        activation = self.hidden * 2 * DECODE_BATCH
        return tuple(
            AtomCost(
                name=name,
                compute_ns=round(size / BANDWIDTH_BYTES_PER_S * 1e9),
                weight_bytes=size if name != "embedding" else ends,
                kv_bytes_per_token=self.kv_bytes_per_token // self.blocks if name.endswith("attention") else 0,
                activation_bytes=activation if name != "head" else 0,
                blocks=blocks,
            )
            for name, size, blocks in sizes
        )

    def _block(self, number: int, size: float) -> list[tuple[str, int, tuple[int, ...]]]:
        return [
            (f"block.{number}.attention", round(size / 3), (number,)),
            (f"block.{number}.mlp", round(size * 2 / 3), (number,)),
        ]


MODELS = (
    Model("7B", 14, 32, 4096, 131_072),
    Model("13B", 26, 40, 5120, 819_200),
    Model("34B", 68, 48, 8192, 196_608),
    Model("70B", 140, 80, 8192, 327_680),
)


def request_for(model: Model, stages_max: int, replicas: int = 1) -> PlacementRequest:
    """A model as a service asks for it: KV for 8,192 tokens and half a GiB of workspace."""
    return PlacementRequest(model.atoms(), stages_max, kv_tokens=8192, workspace_bytes=GIB // 2, replicas=replicas)


def small_case(seed: int) -> tuple[ClusterMap, PlacementRequest]:
    """Instance number ``seed``: 6 to 12 unlike devices in up to 3 racks, 6 to 12 unlike atoms, little room to spare.

    A third have warm nodes, a third a present placement that could be kept, a third a fragment mix; one in five wants two
    replicas. Links are fast, middling or slow.
    """
    chance = np.random.default_rng(seed)
    cluster = _small_map(chance)
    count = int(chance.integers(6, 13))
    atoms = [_atom(chance, number, count) for number in range(count)]
    replicas = 2 if seed % 5 == 0 else 1
    stages = int(chance.integers(2, min(5, cluster.devices // replicas) + 1))
    room = np.sort(cluster.free_bytes)[::-1][: stages * replicas].sum() / replicas
    scale = room * float(chance.uniform(0.55, 0.92)) / sum(atom.weight_bytes for atom in atoms)
    scaled = tuple(
        AtomCost(
            a.name,
            a.compute_ns,
            int(a.weight_bytes * scale * 0.9),
            int(a.weight_bytes * scale * 0.1 / 4096),
            a.activation_bytes,
        )
        for a in atoms
    )
    warm = {int(chance.integers(cluster.nodes)): frozenset(range(count // 2))} if seed % 3 == 0 else {}
    present = (_present(chance, cluster, count),) if seed % 3 == 1 else ()
    mix = ((2 * GIB, 400_000), (6 * GIB, 300_000), (14 * GIB, 300_000)) if seed % 3 == 2 else ()
    return cluster, PlacementRequest(
        scaled,
        stages_max=stages,
        kv_tokens=4096,
        workspace_bytes=GIB // 8,
        replicas=replicas,
        warm=warm,
        present=present,
        held_kv_tokens=2000 if present else 0,
        fragment_mix=mix,
        weights=ObjectiveWeights(fragmentation=int(chance.choice([0, 100, 1000]))),
    )


def _small_map(chance: np.random.Generator) -> ClusterMap:
    devices: list[DeviceFacts] = []
    nodes: list[NodeFacts] = []
    wanted = int(chance.integers(6, 13))
    while len(devices) < wanted:
        name = f"node-{len(nodes)}"
        nodes.append(NodeFacts(name, f"rack-{int(chance.integers(3))}", 20e9, float(chance.choice([3e9, 10e9]))))
        speed, total = float(chance.choice([0.5, 1.0, 1.2, 3.4])), int(chance.choice([16, 24, 32])) * GIB
        devices += [
            DeviceFacts(
                f"{name}/{place}",
                name,
                total,
                int(total * chance.uniform(0.05, 1.0)),
                island=str(place // 2),
                speed=speed,
                slowdown=float(chance.choice([0.0, 0.0, 0.1, 0.4])),
            )
            for place in range(min(int(chance.choice([1, 2, 4])), wanted - len(devices)))
        ]
    return cluster_map(devices, nodes, LINKS[int(chance.integers(len(LINKS)))])


def _atom(chance: np.random.Generator, number: int, count: int) -> AtomCost:
    size = int(chance.uniform(0.4, 2.0) * 1e9)
    compute = round(size / BANDWIDTH_BYTES_PER_S * 1e9 * chance.uniform(0.7, 1.5))
    activation = int(chance.choice([1 << 20, 2 << 20])) if number < count - 1 else 0
    return AtomCost(f"atom.{number}", compute, size, 0, activation)


def _present(chance: np.random.Generator, cluster: ClusterMap, count: int) -> tuple[PresentStage, ...]:
    first, second = (int(device) for device in chance.choice(cluster.devices, 2, replace=False))
    return PresentStage(first, 0, count // 2, GIB // 4), PresentStage(second, count // 2, count, GIB // 4)
