"""What a pipeline is to be: its model, its first stages, its bounds. Values only; `coordinator_machine` makes them real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from ..runtime.interface import EngineSpec
from .device_name import local_name
from .messages import Prepare
from .route import Route, StagePlacement


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """What the pipeline is to be.

    ``stages`` are those of the first epoch. ``engine`` is every worker's, but for device and threads. ``layers_of[a]`` are the
    layers whose KV atom a owns. ``kv_blocks_max`` bounds the KV blocks; ``context_tokens`` is the model's. ``stated_bytes``
    is what weights and KV may take on a device, for those of which the user stated it.
    """

    engine: EngineSpec
    stages: tuple[StagePlacement, ...]
    layers_of: tuple[tuple[int, ...], ...]
    kv_blocks_max: int
    context_tokens: int
    stated_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def atoms(self) -> int:
        """How many atoms the model has."""
        return len(self.layers_of)

    def prepare_message(self, route: Route, stage: int) -> Prepare:
        """What the worker of ``stage`` is told to hold."""
        placement = route.stages[stage]
        engine = msgspec.structs.replace(
            self.engine,
            device=local_name(placement.device),
            threads=placement.threads,
            memory_bytes=self.stated_bytes.get(placement.device, 0),
        )
        return Prepare(route.epoch, stage, placement.first_atom, placement.end_atom, engine)


@dataclass(frozen=True, slots=True)
class CoordinatorLimits:
    """Bounds, in seconds unless said.

    ``prepare_s_max``: from the plan to the last vote. ``switch_s_max``: from the commit until all are past the cut.
    ``resend_s``: after so long without an answer a command is sent again. After ``restarts_max`` failures without
    ``steady_s`` of service in between the pipeline is given up; the pause before a new try doubles with each.
    ``devices_pause_s``: so often a pipeline without devices looks for some.
    """

    prepare_s_max: float = 600.0
    switch_s_max: float = 60.0
    resend_s: float = 2.0
    restarts_max: int = 5
    restart_pause_s: float = 0.5
    devices_pause_s: float = 1.0
    steady_s: float = 60.0
