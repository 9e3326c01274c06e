"""How much work may come within a time: the envelope of the past, what waits now, and the trend.

Owns the demand curve D(t), work in tokens that may have to be served within t seconds from now, and the capacity that it asks
for. It must never know what serves it. No queueing formula of many servers stands here: with bursts longer than a service
time they are wrong by orders of magnitude (on the code trace of Azure at load 0.6 with 64 servers, Allen-Cunneen says 0.25 s
where the wait is 24 s), while the envelope is what happened.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .observation import Observation

FORECAST_GROWTH_MAX = 2.0
"""A trend is followed until the rate would be this many times today's, and no further."""

DEFAULT_WINDOWS_S = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Where the curve is evaluated while no envelope was measured yet."""


@dataclass(frozen=True, slots=True)
class Demand:
    """D(t) at ``windows_s``, ascending from 0, both float64 [n]; straight between them. D(0) is what waits."""

    windows_s: NDArray[np.float64]
    tokens: NDArray[np.float64]

    def within(self, horizon_s: float) -> float:
        """Work that may have to be served within ``horizon_s``; after the last point, at that point's mean rate."""
        beyond = max(horizon_s / float(self.windows_s[-1]), 1.0)
        return float(np.interp(horizon_s, self.windows_s, self.tokens)) * beyond


def demand(observation: Observation, *, forecast: bool) -> Demand:
    """The larger of what came within each time before, and what waits plus what comes at today's rate.

    With ``forecast`` a rising rate goes on rising, to at most `FORECAST_GROWTH_MAX` times itself; a falling one does not fall.
    """
    windows_s = np.array([0.0, *([point.window_s for point in observation.envelope] or DEFAULT_WINDOWS_S)])
    coming = observation.backlog_tokens + observation.tokens_per_s * windows_s
    slope = observation.slope_tokens_per_s2
    if forecast and slope > 0:
        rising_s = np.minimum(windows_s, (FORECAST_GROWTH_MAX - 1) * observation.tokens_per_s / slope)
        coming += slope * rising_s * (windows_s - rising_s / 2)
    if observation.envelope:
        coming = np.maximum(coming, [0.0, *(point.tokens for point in observation.envelope)])
    return Demand(windows_s, coming)


def asked_tokens_per_s(observation: Observation, drain_s: float, *, forecast: bool) -> float:
    """The capacity that serves all demand of ``drain_s`` within it: today's rate plus backlog / ``drain_s``, or the worst seen."""
    return demand(observation, forecast=forecast).within(drain_s) / drain_s
