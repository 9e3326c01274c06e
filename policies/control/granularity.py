"""Granularity: into how many stages and replicas a model is cut, and the interface of the policies that weigh it.

Owns the candidate (`Shape`), what a policy says of it (`Score`) and the contract of a policy. It must never know how a
candidate was placed, nor when a change is allowed (`control.controller`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .observation import PLAUSIBLE_MAX, Observation

PLAUSIBLE_MIN = 1e-9
"""A capacity or a token time below this is none."""

Term = tuple[str, float]
"""One summand or factor of a score, by name; the unit ends the name."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A pipeline's shape, as it is or as it could become.

    ``tpot_s`` is the time from one token of a request to its next at the planned batch: all stages and hops.
    ``capacity_tokens_per_s`` is over all replicas, in the unit of the signals' work. ``startup_s`` passes from the decision until
    the shape serves, ``switch_s`` is how long each running request stands still for it in all; both are 0 for the present shape.
    ``fragmentation_share`` is the growth of expected fragmentation as a share of the cluster's free memory (may be
    negative), ``moved_bytes`` the KV and weights that travel, ``kv_tokens`` the KV room of all replicas. ``refused`` says why the
    shape cannot be had, as a placement solver named it; its other fields mean nothing then.
    """

    stages: int
    replicas: int
    tpot_s: float = 0.0
    capacity_tokens_per_s: float = 0.0
    startup_s: float = 0.0
    switch_s: float = 0.0
    fragmentation_share: float = 0.0
    moved_bytes: int = 0
    kv_tokens: int = 0
    refused: str | None = None

    @property
    def devices(self) -> int:
        """How many devices it holds: no two stages of a model share one."""
        return self.stages * self.replicas

    @property
    def words(self) -> str:
        """As in a sentence: "2 replicas of 4 stages"."""
        stages = "1 stage" if self.stages == 1 else f"{self.stages} stages"
        return stages if self.replicas == 1 else f"{self.replicas} replicas of {stages}"

    def same_as(self, other: Shape) -> bool:
        """Whether both are cut alike, whatever they cost."""
        return (self.stages, self.replicas) == (other.stages, other.replicas)

    def flaw(self) -> str | None:
        """Why this is no candidate: what its placement said, or which of its numbers is none; None where it is one."""
        if self.refused is not None:
            return self.refused
        if self.stages < 1 or self.replicas < 1:
            return f"{self.stages} stages times {self.replicas} replicas serve nothing"
        for name in _NUMBERS:
            value = getattr(self, name)
            if not abs(value) <= PLAUSIBLE_MAX:
                return f"its {name} is {value}"
            if value < 0 and name != "fragmentation_share":
                return f"its {name} is {value}, which is less than nothing"
        if min(self.tpot_s, self.capacity_tokens_per_s) < PLAUSIBLE_MIN:
            return f"it serves nothing: {self.capacity_tokens_per_s} tokens/s, {self.tpot_s} s from one to the next"
        return None


_NUMBERS = (
    "tpot_s",
    "capacity_tokens_per_s",
    "startup_s",
    "switch_s",
    "fragmentation_share",
    "moved_bytes",
    "kv_tokens",
)


@dataclass(frozen=True, slots=True)
class Score:
    """What a policy thinks of one shape. ``cost`` is lower where better and None where ``refused`` says why it is out.

    ``switch_cost`` is what changing to the shape costs, in units of cost times seconds: a change pays once the cost it saves,
    summed over time, exceeds it. ``terms`` are all that went in.
    """

    shape: Shape
    cost: float | None
    switch_cost: float = 0.0
    terms: tuple[Term, ...] = ()
    refused: str | None = None


class GranularityPolicy(Protocol):
    """Weighs shapes against a load. Pure: the same values give the same scores."""

    @property
    def name(self) -> str:
        """As logged and as chosen in settings."""

    def scores(
        self, observation: Observation, present: Shape, candidates: Sequence[Shape], *, forecast: bool
    ) -> tuple[Score, ...]:
        """One score per candidate, in order. All costs are positive and of one unit.

        ``observation``, ``present`` and ``candidates`` have no flaw. Without ``forecast`` the trend of the load is left out.
        """
