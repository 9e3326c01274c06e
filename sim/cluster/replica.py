"""A replica of the simulated cluster, and a change of it under way: values that `fleet` moves through their steps.

Owns the words. It must never know what moves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .system import Reshape, StageAt, Start, Stop


@dataclass(slots=True, eq=False)
class Change:
    """A start or a reshape. ``step`` is what is transferred now; ``kv_tokens`` the room that there will be."""

    action: Start | Reshape
    asked_s: float
    allocated_s: float = 0.0
    kv_tokens: int = 0
    step: Literal["weights", "kv"] = "weights"

    @property
    def restarts(self) -> bool:
        """Whether all that serves goes first."""
        return isinstance(self.action, Reshape) and self.action.how == "restart"


@dataclass(slots=True, eq=False)
class Replica:
    """One replica. ``stages`` are those that serve, none while it starts or restarts.

    ``slot`` is its record's. ``is_lost``: a device under it is gone, it stands still, and nobody has noticed yet.
    """

    number: int
    model: int
    slot: int
    asked_s: float
    phase: Literal["starting", "serving", "draining"] = "starting"
    stages: tuple[StageAt, ...] = ()
    kv_tokens: int = 0
    change: Change | None = None
    is_lost: bool = False
    stop: Stop | None = None
    stop_asked_s: float = 0.0

    @property
    def devices(self) -> frozenset[int]:
        """Where it is, or is about to be."""
        coming = self.change.action.stages if self.change else ()
        return frozenset(stage.device for stage in (*self.stages, *coming))

    def stage_on(self, device: int) -> StageAt:
        """What it has on this device; an empty stage where nothing."""
        return next((stage for stage in self.stages if stage.device == device), StageAt(device, 0, 0))
