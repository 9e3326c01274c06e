"""What several seeds say together: means with confidence intervals, and how two systems compare on the same seeds.

Owns the arithmetic of uncertainty. Student's t over seeds: each seed is one independent replication of the whole simulation, which
is what makes the values independent; requests of one run are not. Systems are compared in pairs, seed by seed, since both saw
the same arrivals: what a seed does to both drops out. It must never know what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log, sqrt

T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t at 97.5 % for 1, 2, ... 30 degrees of freedom."""
Z_975 = 1.960
"""Its limit, used above 30 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the 95 % confidence interval around it; ``low`` and ``high`` are infinite where one value stands alone."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    def excludes(self, value: float) -> bool:
        """Whether ``value`` is not in the interval."""
        return value < self.low or value > self.high


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and interval of independent values; None without any. Values that are no numbers make none."""
    if not values or not all(map(isfinite, values)):
        return None
    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return Interval(mean, -inf, inf, 1)
    deviation = sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = _t(count - 1) * deviation / sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """How many times theirs is ours, pair by pair: the geometric mean, with its interval from the logarithms.

    None where a pair has no ratio: a value of zero, or less, or none. Raises ValueError where there are not as many of one as
    of the other.
    """
    pairs = list(zip(ours, theirs, strict=True))
    if any(not (isfinite(our) and isfinite(their) and our > 0 and their > 0) for our, their in pairs):
        return None
    found = interval([log(our / their) for our, their in pairs])
    if found is None:
        return None
    low, high = (exp(end) if isfinite(end) else (0.0 if end < 0 else inf) for end in (found.low, found.high))
    return Interval(exp(found.mean), low, high, found.count)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """By how much ours is more than theirs, pair by pair. Raises ValueError as `ratio`."""
    return interval([our - their for our, their in zip(ours, theirs, strict=True)])


def _t(freedom: int) -> float:
    return T_975[freedom - 1] if freedom <= len(T_975) else Z_975
