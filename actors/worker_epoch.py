"""One epoch at one worker: how far it has come there, and what may come next. Values of `stage_machine`, which decides."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from .messages import Abort, Cut, Loaded, Open, Prepared, Release, Released, Switched
from .stage_events import ActivationArrived, EpochOpened, PagesCrossed, WeightsLoaded


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


LEGAL: dict[type, frozenset[Phase]] = {
    WeightsLoaded: frozenset({Phase.LOADING}),
    Open: frozenset({Phase.LOADED}),
    EpochOpened: frozenset({Phase.OPENING}),
    Cut: frozenset({Phase.PREPARED}),
    PagesCrossed: frozenset({Phase.SWITCHING}),
    Release: frozenset({Phase.SWITCHED, Phase.RELEASED}),
    Abort: frozenset({Phase.LOADING, Phase.LOADED, Phase.OPENING, Phase.PREPARED}),
}
"""In which phase of the epoch that it names an event may come, where it is not the second time of one that did."""


@dataclass(slots=True)
class WorkerEpoch:
    """One epoch at this worker. ``atoms`` is empty where it only gives pages away."""

    epoch: int
    phase: Phase
    atoms: range = range(0)
    stage: int = -1
    has_upstream: bool = False
    has_transfers: bool = False
    activations: deque[ActivationArrived] = field(default_factory=deque)
    loaded: Loaded | None = None
    prepared: Prepared | None = None
    cut_step: int = -1
    switched: Switched | None = None
    released: Released | None = None
