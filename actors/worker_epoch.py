"""One epoch at one worker: how far it has come there, and what may come next. Values of `stage_machine`, which decides."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from .messages import Loaded, Prepared, Released, Switched
from .stage_events import ActivationArrived
from .transitions import Transitions


class Phase(enum.Enum):
    """Where one epoch is at this worker."""

    LOADING = "loading"
    LOADED = "loaded"
    OPENING = "opening"
    PREPARED = "prepared"
    CUT = "cut"
    SWITCHING = "switching"
    SWITCHED = "switched"
    RELEASED = "released"
    DISCARDED = "discarded"


EPOCH_TRANSITIONS = Transitions(
    "one epoch at one worker",
    Phase.LOADING,
    {
        (Phase.LOADING, "WeightsLoaded"): Phase.LOADED,
        (Phase.LOADED, "Open"): Phase.OPENING,
        (Phase.OPENING, "EpochOpened"): Phase.PREPARED,
        (Phase.PREPARED, "Cut"): Phase.CUT,
        (Phase.CUT, "last step before it"): Phase.SWITCHING,
        (Phase.SWITCHING, "PagesCrossed"): Phase.SWITCHED,
        (Phase.SWITCHED, "Release"): Phase.RELEASED,
        (Phase.RELEASED, "Release"): Phase.RELEASED,
        **{
            (phase, cause): Phase.DISCARDED
            for phase in (Phase.LOADING, Phase.LOADED, Phase.OPENING, Phase.PREPARED)
            for cause in ("Abort", "EpochFailed", "newer Prepare")
        },
    },
)
"""Phases of the epoch that an event names. A worker that only gives pages away begins at OPENING."""


@dataclass(slots=True)
class WorkerEpoch:
    """One epoch at this worker. ``atoms`` is empty where it only gives pages away."""

    epoch: int
    phase: Phase
    atoms: range = range(0)
    stage: int = -1
    kv_blocks: int = 0
    has_upstream: bool = False
    has_transfers: bool = False
    takes_pages: bool = False
    activations: deque[ActivationArrived] = field(default_factory=deque)
    loaded: Loaded | None = None
    prepared: Prepared | None = None
    cut_step: int = -1
    switched: Switched | None = None
    released: Released | None = None
