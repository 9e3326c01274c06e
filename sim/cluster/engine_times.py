"""How long one step of a model takes, from measured tables with interpolation: by its tokens, its context and its depth.

Owns the tables' meaning and the published numbers behind them. It must never know a replica, a device or a link.
A step of ``n`` tokens costs the same whether they decode or belong to prompts, since both read all weights once and multiply
by them ``n`` times: one table from a single decode row to the longest prompt has the knee where a step ceases to be bound by
memory. Attention comes on top: reading the context of decoding rows, and the prompt's square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

TABLE_TOKENS_MAX = 16_384


@dataclass(frozen=True, slots=True)
class StepTimes:
    """A whole model on devices of speed 1, as if all its layers followed each other on one.

    ``tokens`` (ascending from at most 1) and ``seconds`` are the table. A token of context that a step's decoding rows read costs
    ``context_s``; a prompt of p tokens costs ``square_s`` p² beside the table. ``depths`` and ``depth_factors`` say by what
    computing grows when the model is cut into so many stages; between them it is interpolated in the logarithm of the depth.
    ``crowded`` is for devices that share cores or memory: the same table where 2, 3, ... steps are under way, the last for all
    that are more; without it steps do not slow each other.
    """

    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    context_s: float = 0.0
    square_s: float = 0.0
    depths: tuple[int, ...] = (1,)
    depth_factors: tuple[float, ...] = (1.0,)
    crowded: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        """Refuse tables that are none."""
        if len(self.tokens) != len(self.seconds) or not self.tokens or len(self.depths) != len(self.depth_factors):
            raise ValueError("a table of step times needs as many times as token counts, and a factor for each depth")
        if any(len(seconds) != len(self.tokens) or min(seconds) <= 0 for seconds in self.crowded):
            raise ValueError("times of crowded steps are for the same token counts, and above 0")
        if any(b <= a for a, b in zip(self.tokens, self.tokens[1:], strict=False)) or min(self.seconds) <= 0:
            raise ValueError("a table of step times needs ascending token counts and times above 0")

    def step_s(self, tokens: float, context: float = 0.0, stages: int = 1) -> float:
        """One step of so many tokens whose decoding rows have ``context`` tokens of context together."""
        seconds = self._interpolated(np.array([tokens]), self.seconds)[0]
        return float(seconds + context * self.context_s) * self.depth_factor(stages)

    def depth_factor(self, stages: int) -> float:
        """By what computing grows at this depth."""
        return float(np.interp(np.log2(stages), np.log2(self.depths), self.depth_factors))

    def table(self, tokens_max: int = TABLE_TOKENS_MAX) -> NDArray[np.float64]:
        """[K, tokens_max + 1] seconds of a step of 0, 1, 2, ... tokens, without context, where 1, 2, ... K steps are under way."""
        tokens = np.arange(tokens_max + 1, dtype=np.float64)
        return np.array([self._interpolated(tokens, seconds) for seconds in (self.seconds, *self.crowded)])

    def scaled(self, factor: float) -> StepTimes:
        """The same table for a model or device that takes ``factor`` times as long."""
        return replace(
            self,
            seconds=tuple(factor * seconds for seconds in self.seconds),
            context_s=self.context_s * factor,
            square_s=self.square_s * factor,
            crowded=tuple(tuple(factor * each for each in seconds) for seconds in self.crowded),
        )

    def _interpolated(self, tokens: NDArray[np.float64], times_s: Sequence[float]) -> NDArray[np.float64]:
        """Between the table's points a straight line; beyond the last one the last segment goes on; below the first its time."""
        known, seconds = np.array(self.tokens), np.array(times_s)
        inside: NDArray[np.float64] = np.interp(tokens, known, seconds)
        if len(known) > 1:
            slope = (seconds[-1] - seconds[-2]) / (known[-1] - known[-2])
            inside = np.where(tokens > known[-1], seconds[-1] + (tokens - known[-1]) * slope, inside)
        return inside
