"""The shapes that a served model could take now, each planned as a refactoring would plan it, with what it would cost and give.

Owns the joining of routes, planner and cost model into the candidates of `control.controller`. What no refactoring could do is
a refused candidate that says why. Reads nothing, starts nothing and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .actors.refactor import RefactorRefusedError, RefactorRequest, SameShapeRefusedError
from .actors.route import Route, StagePlacement
from .planning import LOCAL_LINK
from .policies.cluster.cluster_map import cluster_map
from .policies.cluster.device_facts import DeviceFacts
from .policies.cluster.fragmentation import StageMix, fragmentation
from .policies.control.granularity import Shape
from .policies.memory_fit import UNLIMITED_BYTES, room_of
from .policies.types import NS_PER_S, AtomCost
from .refactor_planning import RefactorPlanner

STAGE_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Depths that are weighed: the paper's range of 2 to 32, in steps of a third to a half, and 1."""
REPLICAS_MAX = 8
"""Replicas that are weighed."""
WORKER_START_S = 0.5
"""From a change's begin until a new worker has its weights mapped: 0.1 to 0.5 s were measured with a forked worker."""
COPY_BYTES_PER_S = 40e6
"""KV pages copied before the cut, at 2 % of a core (`HandoffLimits.copy_share_max`): a guess, between what busy machines showed."""
STAGE_OVERHEAD_S = 0.004
"""What a stage adds to a step besides computing: its plan, its batch, two messages."""


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """What shapes are compared under. ``rows`` requests in each step; the atoms' costs were made for as many."""

    rows: int
    prompt_weight: float
    kv_tokens_max: int


@dataclass(frozen=True, slots=True)
class Running:
    """What is there: the routes of the replicas, oldest first, and the tokens of context that their requests hold."""

    routes: tuple[Route, ...]
    live_tokens: int = 0

    @property
    def devices(self) -> frozenset[str]:
        """The devices in use."""
        return frozenset(stage.device for route in self.routes for stage in route.stages)


class ShapePlanner:
    """See the module. May be called from any thread.

    ``stated_bytes`` are the memories that the user stated for devices; ``cores`` is what CPU workers share.
    """

    def __init__(
        self,
        atoms: tuple[AtomCost, ...],
        planner: RefactorPlanner,
        load: DecodeLoad,
        devices: Sequence[str],
        stated_bytes: Mapping[str, int],
        cores: int | None = None,
    ) -> None:
        self.load = load
        self._atoms = atoms
        self._planner = planner
        self._devices = tuple(devices)
        self._stated_bytes = stated_bytes
        self._cores = len(os.sched_getaffinity(0)) if cores is None else cores

    def present(self, running: Running) -> Shape:
        """The shape that serves; that of the oldest replica where they differ."""
        return self._shape([route.stages for route in running.routes])

    def candidates(self, running: Running) -> tuple[Shape, ...]:
        """Every other shape that the devices may have room for, ascending in stages, then replicas."""
        present = (len(running.routes[0].stages), len(running.routes))
        limit = len(self._devices)
        return tuple(
            self._candidate(running, stages, replicas)
            for stages in STAGE_COUNTS
            if stages <= min(limit, len(self._atoms))
            for replicas in range(1, min(limit // stages, REPLICAS_MAX) + 1)
            if (stages, replicas) != present
        )

    def steps_at_once(self, stages: int, replicas: int) -> int:
        """Steps under way over all replicas: no more in one than stages can compute at once."""
        return replicas * (min(stages, self._cores) if self._on_cpu else stages)

    def _candidate(self, running: Running, stages: int, replicas: int) -> Shape:
        try:
            pipelines = self._planned(running, stages, replicas)
        except RefactorRefusedError as refusal:
            return Shape(stages, replicas, refused=str(refusal))
        shape = self._shape(pipelines)
        here = {(stage.device, atom) for route in running.routes for stage in route.stages for atom in stage.atoms}
        wanted = {(stage.device, atom) for pipeline in pipelines for stage in pipeline for atom in stage.atoms}
        moved = [self._atoms[atom] for _, atom in wanted - here]
        kv_bytes = running.live_tokens * sum(atom.kv_bytes_per_token for atom in moved)
        return replace(
            shape,
            startup_s=WORKER_START_S + kv_bytes / COPY_BYTES_PER_S,
            fragmentation_share=self._fragments(pipelines)
            - self._fragments([route.stages for route in running.routes]),
            switch_s=shape.tpot_s,  # about one step, as measured; see `flexpipe bench refactor`
            moved_bytes=kv_bytes + sum(atom.weight_bytes for atom in moved),
        )

    def _planned(self, running: Running, stages: int, replicas: int) -> list[tuple[StagePlacement, ...]]:
        """The stages of each replica, as the reshaper would have them: retire first, then change, then start."""
        kept = running.routes[:replicas]
        pipelines: list[tuple[StagePlacement, ...]] = []
        for place, route in enumerate(kept):
            others = [*pipelines, *(later.stages for later in kept[place + 1 :])]
            pipelines.append(self._reshaped(route, stages, running.live_tokens, _devices(others)))
        first = Route(0, pipelines[0])
        while len(pipelines) < replicas:
            pipelines.append(self._planner.copy(first, taken_devices=_devices(pipelines)))
        return pipelines

    def _reshaped(
        self, route: Route, stages: int, live_tokens: int, taken: frozenset[str]
    ) -> tuple[StagePlacement, ...]:
        next_worker = max(route.workers) + 1
        try:
            return self._planner.plan(
                RefactorRequest(stages=stages),
                route,
                next_worker=next_worker,
                live_tokens=live_tokens,
                taken_devices=taken,
            )
        except SameShapeRefusedError:
            return route.stages

    def _shape(self, pipelines: Sequence[tuple[StagePlacement, ...]]) -> Shape:
        """What these pipelines would give, all of them shaped like the first."""
        stages, replicas = len(pipelines[0]), len(pipelines)
        step_s = self._step_s(pipelines[0])
        at_once = self.steps_at_once(stages, replicas)
        # Steps beyond what the cores can compute at once wait for each other.
        queued = max(1.0, at_once / self._slots(pipelines)) if self._on_cpu else 1.0
        tpot_s = step_s * queued
        return Shape(
            stages,
            replicas,
            tpot_s=tpot_s,
            capacity_tokens_per_s=at_once * self.load.rows / tpot_s,
            kv_tokens=sum(self._kv_tokens(pipeline) for pipeline in pipelines),
        )

    def _step_s(self, pipeline: Sequence[StagePlacement]) -> float:
        """One step's way through all stages, alone."""
        computing_s = sum(
            sum(self._atoms[atom].compute_ns for atom in stage.atoms) / stage.threads / NS_PER_S for stage in pipeline
        )
        hops_s = sum(
            LOCAL_LINK.send_ns(self._atoms[stage.end_atom - 1].activation_bytes) / NS_PER_S for stage in pipeline[:-1]
        )
        return computing_s + hops_s + STAGE_OVERHEAD_S * len(pipeline)

    def _slots(self, pipelines: Sequence[Sequence[StagePlacement]]) -> float:
        """How many stages the cores can compute at once."""
        threads = max(stage.threads for pipeline in pipelines for stage in pipeline)
        return max(1.0, self._cores / threads)

    def _fragments(self, pipelines: Sequence[Sequence[StagePlacement]]) -> float:
        """The share of all stated memory that lies free beside these pipelines and is of no use for another stage."""
        if not self._stated_bytes:
            return 0.0
        held = {stage.device: self._weight_bytes(stage.atoms) for pipeline in pipelines for stage in pipeline}
        cluster = cluster_map(
            [
                DeviceFacts(device, "here", size, max(0, size - held.get(device, 0)), "cpu")
                for device, size in self._stated_bytes.items()
            ]
        )
        whole = self._weight_bytes(range(len(self._atoms)))
        mix = StageMix.of_sizes([whole // stages for stages in STAGE_COUNTS if stages <= len(self._devices)])
        return fragmentation(cluster, mix) / sum(self._stated_bytes.values())

    def _weight_bytes(self, atoms: Iterable[int]) -> int:
        return sum(self._atoms[atom].weight_bytes for atom in atoms)

    def _kv_tokens(self, pipeline: Sequence[StagePlacement]) -> int:
        """Tokens of context that fit the tightest stage, at most as many as the server allows."""
        return min((self._stage_kv_tokens(stage) for stage in pipeline), default=0)

    def _stage_kv_tokens(self, stage: StagePlacement) -> int:
        per_token = sum(self._atoms[atom].kv_bytes_per_token for atom in stage.atoms)
        room = room_of(stage.device, self._stated_bytes)
        if per_token == 0 or room == UNLIMITED_BYTES:
            return self.load.kv_tokens_max
        left = room - self._weight_bytes(stage.atoms)
        return max(0, min(left // per_token, self.load.kv_tokens_max))

    @property
    def _on_cpu(self) -> bool:
        return all(device.startswith("cpu") for device in self._devices)


def _devices(pipelines: Sequence[Sequence[StagePlacement]]) -> frozenset[str]:
    return frozenset(stage.device for pipeline in pipelines for stage in pipeline)
