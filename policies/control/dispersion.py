"""From counts per bin to the dispersion curve, the arrival envelope and the trend: what bursts look like at each time scale.

Owns the arithmetic on a history of equal bins, oldest first. One number does not describe a load: the code trace of Azure has
an index of dispersion of 13 over 1 s and of 160 over 60 s, so every scale has its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .observation import Dispersion, EnvelopePoint

Bins = NDArray[np.float64]

TREND_T_MIN = 2.0
"""A trend counts when it is this many of its standard errors from 0 (about 95 % of the time it is real)."""


def dispersion_curve(
    counts: Bins, work: Bins, bin_s: float, taus_s: Sequence[float], windows_min: int, arrivals_min: int
) -> tuple[Dispersion, ...]:
    """The points of the curve that mean something: at least ``windows_min`` disjoint windows and ``arrivals_min`` arrivals.

    ``counts`` and ``work`` are arrivals and tokens per bin. Windows overlap, which wastes nothing of a short history.
    """
    arrivals, tokens = counts.sum(), work.sum()
    if arrivals < arrivals_min or tokens <= 0:
        return ()
    all_counts, all_work = _running_sums(counts), _running_sums(work)
    points = []
    for tau_s in taus_s:
        width = round(tau_s / bin_s)
        if width < 1 or len(counts) < width * windows_min:
            continue
        a, y = all_counts[width:] - all_counts[:-width], all_work[width:] - all_work[:-width]
        if a.mean() > 0 and y.mean() > 0:
            idw = y.var() / y.mean() / (tokens / arrivals)
            points.append(Dispersion(tau_s, float(a.var() / a.mean()), float(idw), len(counts) // width))
    return tuple(points)


def envelope(work: Bins, bin_s: float, windows_s: Sequence[float]) -> tuple[EnvelopePoint, ...]:
    """The most work within any window of each length that the history holds."""
    total = _running_sums(work)
    widths = [(window_s, round(window_s / bin_s)) for window_s in windows_s]
    return tuple(
        EnvelopePoint(window_s, float((total[width:] - total[:-width]).max()))
        for window_s, width in widths
        if 1 <= width <= len(work)
    )


def _running_sums(bins: Bins) -> Bins:
    """[n + 1] the sum of the first 0 to n bins."""
    sums: Bins = np.concatenate([[0.0], np.cumsum(bins)])
    return sums


def trend(work: Bins, bin_s: float) -> float:
    """Least-squares slope of the rate of work, tokens/s per s; 0 where it is within noise or there are under 3 bins."""
    n = len(work)
    if n < 3:
        return 0.0
    x = (np.arange(n) - (n - 1) / 2) * bin_s
    rate = work / bin_s
    spread = float(x @ x)
    slope = float(x @ rate) / spread
    residual = rate - rate.mean() - slope * x
    error = float(np.sqrt(residual @ residual / (n - 2) / spread))
    return slope if abs(slope) > TREND_T_MIN * error else 0.0
