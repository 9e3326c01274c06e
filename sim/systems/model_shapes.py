"""The shapes that a simulated model could take on a map, each with what it would cost and give: the candidates of a controller.

Owns the same estimates for modelled devices that `shape_planning` makes for a daemon's: one step's time, profiled capacity, KV
room, start-up. It places nothing: how many replicas may be had follows from counting devices with room, and what is
taken as possible here may still be refused when it is placed. Estimates and simulator differ, as a cost model and a machine do;
`control.capacity_correction` is there for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...policies.cluster.cluster_map import ClusterMap
from ...policies.control.granularity import Shape
from ...policies.types import NS_PER_S
from ..cluster.pipeline_times import PipelineTimes
from ..cluster.served_model import PLANNED_CONTEXT, PLANNED_ROWS, ServedModel
from ..cluster.system import Arrived
from .placing import WORKSPACE_BYTES, stage_need_bytes
from .profile import TypicalDevice, work_per_s

STAGE_COUNTS = (1, 2, 4, 8, 16, 32)
"""Depths that are weighed: the paper's 4, 8, 16 and 32, and what a small model needs."""
PROMPT_TOKENS = 1024
"""Length at which a prompt token's weight is told."""
SHRINK_S = 0.1
"""From the decision for fewer replicas until the others have their requests."""


@dataclass(frozen=True, slots=True)
class DepthFacts:
    """One replica of one depth: a planned step's way through it, work per second when full, KV room, largest stage."""

    step_s: float
    capacity: float
    kv_tokens: int
    stage_bytes: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Estimates of one model on one map. Work is in decoded tokens; a prompt's token weighs ``prompt_weight``.

    ``load_bytes_per_s`` is the rate at which a stage's weights come, ``wait_s`` what passes before they begin to.
    """

    model: ServedModel
    prompt_weight: float
    depths: Mapping[int, DepthFacts]
    load_bytes_per_s: float
    wait_s: float = 0.0

    def step_s(self, stages: int) -> float:
        """The time from a request's token to its next, at planned load."""
        return self.depths[stages].step_s

    def capacity(self, stages: int) -> float:
        """Work per second of one replica with as many requests as it can hold."""
        return self.depths[stages].capacity

    def startup_s(self, stages: int) -> float:
        """From the decision until a new replica serves: its largest stage loaded, all at once."""
        return self.wait_s + self.depths[stages].stage_bytes / self.load_bytes_per_s


def model_facts(
    cluster: ClusterMap, model: ServedModel, history: Arrived, load_bytes_per_s: float, wait_s: float = 0.0
) -> ModelFacts:
    """Profiles of every depth that fits, under requests like the history's, on devices as the map's typical one with room is."""
    weight = prompt_weight(model)
    found = {}
    for stages in STAGE_COUNTS:
        roomy = np.flatnonzero(cluster.free_bytes >= stage_need_bytes(model, stages))
        if stages > model.layers or not len(roomy):
            continue
        per_stage = -(-model.layers // stages)
        stage_bytes = model.stage_bytes(0, per_stage)
        device = _typical(cluster, roomy)
        capacity = work_per_s(model, stages, device, history, weight)
        if capacity <= 0:
            continue
        kv_tokens = int(
            (device.free_bytes - stage_bytes - WORKSPACE_BYTES) / max(1, model.stage_kv_bytes(0, per_stage))
        )
        rows = PLANNED_ROWS * stages
        step_s = _usual_pipeline(cluster, model, stages).cycle_s(model, rows, rows * PLANNED_CONTEXT)
        found[stages] = DepthFacts(step_s, capacity, kv_tokens, stage_bytes)
    return ModelFacts(model, weight, found, load_bytes_per_s, wait_s)


def _typical(cluster: ClusterMap, rows: NDArray[np.int64]) -> TypicalDevice:
    """A device with the medians of those in these rows."""
    free = int(np.median(cluster.free_bytes[rows]))
    speed = float(np.median(cluster.speed[rows] / (1 + cluster.slowdown[rows])))
    return TypicalDevice(int(cluster.total_bytes[rows].max()), free, speed, cluster.links)


def prompt_weight(model: ServedModel) -> float:
    """What a prompt's token costs against a decoded one, as `preparation.prompt_weight` has it."""
    times = model.times
    prompt_s = times.step_s(PROMPT_TOKENS) + times.square_s * PROMPT_TOKENS**2
    return (prompt_s / PROMPT_TOKENS) / (times.step_s(PLANNED_ROWS, PLANNED_ROWS * PLANNED_CONTEXT) / PLANNED_ROWS)


def _usual_pipeline(cluster: ClusterMap, model: ServedModel, stages: int) -> PipelineTimes:
    """Even stages on devices of the map's usual speed, a rack's hop apart."""
    slowed = float(np.median((1 + cluster.slowdown) / cluster.speed)) if cluster.devices else 1.0
    factor, link = model.times.depth_factor(stages), cluster.links.rack
    return PipelineTimes(
        stages=stages,
        speed_sum=slowed * factor,
        speed_worst=slowed * factor / stages,
        hop_s=(stages - 1) * link.latency_ns / NS_PER_S,
        hop_token_s=(stages - 1) * model.activation_bytes_per_token / link.bytes_per_s,
    )


class ModelShapes:
    """The shapes of one model on a map that changes. ``depths`` and ``replicas_max`` narrow them."""

    def __init__(
        self, facts: ModelFacts, depths: Sequence[int] = STAGE_COUNTS, replicas_max: int | None = None
    ) -> None:
        self.facts = facts
        self.depths = tuple(depth for depth in depths if depth in facts.depths)
        self._replicas_max = replicas_max
        self._needs = {depth: stage_need_bytes(facts.model, depth) for depth in self.depths}

    def shape(self, stages: int, replicas: int, kv_tokens: int | None = None, startup_s: float = 0.0) -> Shape:
        """A shape that is, or could be, with ``kv_tokens`` of room over all replicas."""
        facts = self.facts
        step_s = facts.step_s(stages)
        return Shape(
            stages,
            replicas,
            tpot_s=step_s,
            capacity_tokens_per_s=replicas * facts.capacity(stages),
            startup_s=startup_s,
            switch_s=step_s if startup_s else 0.0,
            kv_tokens=replicas * facts.depths[stages].kv_tokens if kv_tokens is None else kv_tokens,
        )

    def replicas_with_room(self, cluster: ClusterMap, stages: int, own: frozenset[int] = frozenset()) -> int:
        """How many replicas of this depth the devices have room for, those in ``own`` counted as free."""
        rooms = cluster.free_bytes >= self._needs[stages]
        rooms[list(own)] = True
        most = int(np.count_nonzero(rooms)) // stages
        return most if self._replicas_max is None else min(most, self._replicas_max)

    def candidates(
        self, cluster: ClusterMap, present: Shape, own: frozenset[int], replicas_wanted: Sequence[int] | None = None
    ) -> tuple[Shape, ...]:
        """Every other shape that the devices may have room for; ``own`` are those that the present one is on.

        ``replicas_wanted`` narrows the replica counts that are looked at.
        """
        found: list[Shape] = []
        for depth in self.depths:
            most = self.replicas_with_room(cluster, depth, own)
            for replicas in replicas_wanted or range(1, most + 1):
                if replicas > most or (depth, replicas) == (present.stages, present.replicas):
                    continue
                kept = min(replicas, present.replicas)
                kv_tokens = None
                if depth != present.stages and present.kv_tokens:  # a live change widens no replica's KV room
                    each = min(present.kv_tokens // present.replicas, self.facts.depths[depth].kv_tokens)
                    kv_tokens = kept * each + (replicas - kept) * self.facts.depths[depth].kv_tokens
                grows = replicas > present.replicas or depth != present.stages
                startup_s = self.facts.startup_s(depth) if grows else SHRINK_S
                found.append(self.shape(depth, replicas, kv_tokens, startup_s))
        return tuple(found)
