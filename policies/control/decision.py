"""What the controller decides, within which limits, and who may refuse it: values and signatures.

Owns the vocabulary between `control.controller`, the actor that drives it, the certificate that guards it and the log that
explains it. It must never know how a decision is reached. Decisions hold plain finite values only, so that a log event can
carry them and give them back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .granularity import Score, Shape
from .observation import Observation

HOUR_S = 3600.0

Action = Literal["hold", "change"]

Leaning = Literal["grow", "shrink"]
"""What is better than the present: capacity that the load asks for, or anything else (fewer devices, less time per token)."""

Reason = Literal[
    "worth-it",  # the only one that goes with "change"
    "bad-signals",
    "bad-present",
    "clock-went-back",
    "not-observed",
    "change-under-way",
    "too-little-seen",
    "no-candidate",
    "best-already",
    "gain-too-small",
    "not-yet-confirmed",
    "not-yet-paid",
    "dwelling",
    "pause-after-failure",
    "budget-spent",
    "budget-kept-to-grow",
    "guard",
]
"""Why the controller holds or changes, for programs; `Decision.sentence` says it with its numbers."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What keeps the controller from thrashing.

    - ``gain_min``: a change must save this share of the present cost; one of the number of replicas alone, which moves no
      running pipeline, ``gain_replicas_min`` (None: the same). Where that is given, shrinking goes no lower than the most that
      was advised while it was confirmed: to release a fleet in steps costs little, to cut it to one moment's need much.
    - ``confirm_grow_s``, ``confirm_shrink_s``: for how long without a break growing, or anything else, must have been better.
      Asymmetric, since too little capacity hurts at once and too much only costs.
    - ``dwell_s_min``: from the end of one change to the next.
    - ``changes_per_hour_max``: changes begun in any hour; the last of them is kept for growing.
    - ``drain_s``: within how long a backlog is to be gone; growth asks for no more capacity than that takes, times
      ``overshoot_max``, or for the least candidate that has enough.
    - ``observed_s_min``: no change before this much history.
    - ``gap_s_max``: a longer time between two decisions was not observed: it counts for nothing.
    - ``failure_pause_s``: after a change that failed, doubled for each further failure, at most ``failure_pause_s_max``.
    - ``forecast``: whether policies may look ahead by the load's trend.
    """

    gain_min: float = 0.15
    confirm_grow_s: float = 8.0
    confirm_shrink_s: float = 120.0
    dwell_s_min: float = 60.0
    changes_per_hour_max: int = 12
    drain_s: float = 60.0
    overshoot_max: float = 1.5
    observed_s_min: float = 10.0
    gap_s_max: float = 30.0
    failure_pause_s: float = 30.0
    failure_pause_s_max: float = 960.0
    forecast: bool = True
    gain_replicas_min: float | None = None

    def __post_init__(self) -> None:
        """Refuse limits that limit nothing by mistake (a comparison with NaN is never true)."""
        for name in self.__slots__:
            value = getattr(self, name)
            if name != "forecast" and value is not None and not value >= 0:
                raise ValueError(f"{name} is {value}; it must be 0 or more")
        if self.gain_min >= 1:
            raise ValueError(f"gain_min is {self.gain_min}, and no change saves all of a cost; give a share below 1")
        if self.drain_s == 0:
            raise ValueError("drain_s is 0, and no capacity drains a backlog at once; give a time")

    def gain_for(self, present: Shape, wanted: Shape) -> float:
        """The share of the present cost that a change between these must save."""
        if self.gain_replicas_min is not None and wanted.stages == present.stages:
            return self.gain_replicas_min
        return self.gain_min


@dataclass(frozen=True, slots=True)
class GuardInputs:
    """What a change is judged by before it is begun.

    ``lag_s`` is how long the controller takes to believe that a load grows; ``dwell_s`` how long the pipeline has kept its shape
    (None: since it began); ``drain_s`` within how long the controller wants a backlog gone.
    """

    observation: Observation
    present: Shape
    wanted: Shape
    drain_s: float
    startup_s: float
    lag_s: float
    dwell_s: float | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A guard's no. ``condition`` names the rule that would be broken, ``sentence`` says it with its numbers."""

    condition: str
    sentence: str


Guard = Callable[[GuardInputs], Refusal | None]
"""Lets a change pass with None. Pure, and never raises."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision with all that led to it. ``wanted`` is the best shape known, None where none could be told.

    ``action`` "change" says: make it ``wanted`` now. ``asked_tokens_per_s`` is the capacity that the load asks for. ``scores`` are
    the alternatives', the present shape's first.
    """

    at_s: float
    action: Action
    reason: Reason
    sentence: str
    policy: str
    present: Shape
    wanted: Shape | None
    asked_tokens_per_s: float
    scores: tuple[Score, ...]
    observation: Observation


@dataclass(frozen=True, slots=True)
class ControllerMemory:
    """What the controller remembers of one pipeline between decisions; a new one for a new pipeline.

    ``leaning`` is what has been better than the present shape since ``leaning_since_s``, and ``regret`` the cost that staying
    has lost since; ``advised_tokens_per_s`` is the most capacity that was advised since. ``begun_s`` are the times of the changes
    begun within the last hour; ``settled_s`` is the end of the last.
    """

    at_s: float | None = None
    leaning: Leaning | None = None
    leaning_since_s: float = 0.0
    regret: float = 0.0
    advised_tokens_per_s: float = 0.0
    under_way: bool = False
    settled_s: float | None = None
    begun_s: tuple[float, ...] = ()
    failures: int = 0
