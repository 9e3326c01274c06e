"""Where the stages of one replica go: as the product places them, and as a system does that takes the first devices with room.

Owns the turning of a model and a map into `StageAt` rows, and the memory that a stage is given at least. It must never know
when or why something is placed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...policies.cluster.cluster_map import ClusterMap
from ...policies.partition import PartitionProblem, partition
from ...policies.placement.solver import place
from ...policies.placement.values import NoPlacement, PlacementRequest
from ...policies.types import InfeasiblePartition, StageLimit
from ..cluster.served_model import PLANNED_CONTEXT, ServedModel
from ..cluster.system import StageAt

WORKSPACE_BYTES = 1 << 30
"""What a stage's engine takes beside weights and KV."""

Stages = tuple[StageAt, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """What is known of the moment: the map, devices that are not to be used, and layers in nodes' host memory."""

    cluster: ClusterMap
    taken: frozenset[int] = frozenset()
    warm: Mapping[int, frozenset[int]] = field(default_factory=dict)

    def without(self, stages: Stages) -> Site:
        """The same with the devices of ``stages`` taken."""
        return replace(self, taken=self.taken | {stage.device for stage in stages})

    def free_bytes(self) -> NDArray[np.int64]:
        """[devices] what is free; nothing where taken."""
        free = self.cluster.free_bytes.copy()
        free[list(self.taken)] = 0
        return free


class Placer(Protocol):
    """Finds devices for one replica; None where there are none."""

    def __call__(self, model: ServedModel, stages: int, site: Site) -> Stages | None:
        """Stages on devices that are not taken, each with room for its weights and `kv_tokens_min`."""


def kv_tokens_min(model: ServedModel) -> int:
    """KV room that a replica is given at least: the requests of one planned step."""
    return model.running_max * PLANNED_CONTEXT


def stage_need_bytes(model: ServedModel, stages: int) -> int:
    """Free memory that each stage needs where layers are shared out evenly: that of the largest."""
    per_stage = -(-model.layers // stages)
    weights = max(model.stage_bytes(0, per_stage), model.stage_bytes(model.layers - per_stage, model.layers))
    return weights + kv_tokens_min(model) * model.stage_kv_bytes(0, per_stage) + WORKSPACE_BYTES


def first_fit(model: ServedModel, stages: int, site: Site) -> Stages | None:
    """Even stages on the first devices with room, on nodes with most such devices first: what a plain scheduler does."""
    cluster = site.cluster
    rows = np.flatnonzero(site.free_bytes() >= stage_need_bytes(model, stages))
    if len(rows) < stages:
        return None
    mates = np.bincount(cluster.node_of[rows], minlength=cluster.nodes)[cluster.node_of[rows]]
    chosen = rows[np.lexsort((rows, cluster.node_of[rows], -np.minimum(mates, stages)))][:stages]
    return on_devices(model, [int(row) for row in chosen], site)


def planned(model: ServedModel, stages: int, site: Site) -> Stages | None:
    """As the product places: cuts, devices and hops together (`placement.solver`)."""
    if stages > model.layers:
        return None
    request = PlacementRequest(
        model.atoms(),
        stages_min=stages,
        stages_max=stages,
        kv_tokens=kv_tokens_min(model),
        workspace_bytes=WORKSPACE_BYTES,
        occupied=site.taken,
        warm=site.warm,
    )
    found = place(site.cluster, request)
    if isinstance(found, NoPlacement):
        return None
    return tuple(
        StageAt(stage.device, stage.cost.first_atom, stage.cost.end_atom) for stage in found.replicas[0].stages
    )


def on_devices(model: ServedModel, devices: list[int], site: Site) -> Stages | None:
    """The model's layers over these devices in this order, cut for the least bottleneck; None where they do not fit."""
    cluster = site.cluster
    free = site.free_bytes()
    limits = tuple(
        StageLimit(int(free[row]), WORKSPACE_BYTES, float(cluster.speed[row] / (1 + cluster.slowdown[row])))
        for row in devices
    )
    problem = PartitionProblem(model.atoms(), limits, cluster.links.rack, kv_tokens_min(model))
    try:
        found = partition(problem)
    except InfeasiblePartition:
        return None
    return tuple(
        StageAt(row, stage.first_atom, stage.end_atom) for row, stage in zip(devices, found.stages, strict=True)
    )
