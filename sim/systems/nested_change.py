"""Where a replica's stages go when it takes more or fewer of them while it serves: a split or a merge of those that it has.

Owns the choice, made as `refactor_planning` makes it for a daemon: cuts for the least bottleneck, of which the coarse ones are
fine ones too, and each stage where most of its bytes are already (`policies.reassignment`); only what is new goes elsewhere. Old
and new stages have to fit beside each other, weights and KV; where they do not, it says which device lacks how much. It must
never know when a change is wanted.
"""

from __future__ import annotations

import numpy as np

from ...policies.kv_room import NoRoomError
from ...policies.partition import PartitionProblem, partition
from ...policies.reassignment import Devices, HeldStage, ReassignmentError, WantedStage, reassign
from ...policies.types import StageLimit
from ..cluster.pipeline_times import kv_room
from ..cluster.served_model import ServedModel
from ..cluster.system import ReplicaView, StageAt
from .placing import Site, Stages, stage_need_bytes


class NoChangeError(ValueError):
    """The replica cannot take so many stages while it serves; the sentence says what is missing."""


def nested_stages(model: ServedModel, replica: ReplicaView, stages: int, site: Site) -> Stages:
    """The stages that ``replica`` would have. Devices that ``site`` has taken are not used, but for its own.

    Raises `NoChangeError` where there are too few devices, or too little memory for old and new beside each other.
    """
    names = site.cluster.device_names
    present = [HeldStage(at, stage.first, stage.end, names[stage.device]) for at, stage in enumerate(replica.stages)]
    layers = range(model.layers)
    moved = [
        model.stage_bytes(at, at + 1) + replica.kv_used * model.stage_kv_bytes(at, at + 1) for at in layers
    ]  # what is live of KV, not what there is room for
    devices = Devices(tuple(names[row] for row in _offered(model, replica, stages, site)))
    try:
        found = reassign(present, _even(model, stages, site), moved, devices, len(present))
    except ReassignmentError as error:
        raise NoChangeError(str(error)) from error
    return tuple(StageAt(site.cluster.row(stage.device), stage.first_atom, stage.end_atom) for stage in found)


def kv_tokens_after(model: ServedModel, replica: ReplicaView, found: Stages, site: Site) -> int:
    """KV room of the replica with the stages ``found``, taken while the old ones serve. Raises `NoChangeError`."""
    try:
        room = kv_room(site.cluster, model, found, replica.stages, replica.kv_tokens)
    except NoRoomError as error:
        raise NoChangeError(str(error)) from error
    if room < replica.kv_used:
        raise NoChangeError(
            f"beside what serves there is KV room for {room} tokens of context, and its requests hold {replica.kv_used}"
        )
    return room


def _even(model: ServedModel, stages: int, site: Site) -> tuple[WantedStage, ...]:
    if not 1 <= stages <= model.layers:
        raise NoChangeError(f"{model.name} has {model.layers} layers; it cannot be cut into {stages} stages")
    everything = StageLimit(model.weight_bytes)
    cuts = partition(PartitionProblem(model.atoms(), (everything,) * stages, site.cluster.links.rack)).cuts
    return tuple(WantedStage(first, end) for first, end in zip((0, *cuts), (*cuts, model.layers), strict=True))


def _offered(model: ServedModel, replica: ReplicaView, stages: int, site: Site) -> list[int]:
    """Rows of free devices with room for a stage: on nodes that hold weights of the model first, then those with most memory."""
    own = {stage.device for stage in replica.stages}
    free = site.cluster.free_bytes.copy()
    free[list(site.taken | own)] = 0
    rows = np.flatnonzero(free >= stage_need_bytes(model, stages))
    cold = np.array([int(site.cluster.node_of[row]) not in site.warm for row in rows], np.int64)
    return [int(row) for row in rows[np.lexsort((rows, -free[rows], cold))]]
