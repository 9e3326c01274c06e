"""When each request's tokens left, for as long as somebody may ask: the gaps between them, before and during a change.

Owns the measure of a pause (issue 3: longest gap that overlaps the change less the median gap before it). Knows no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from statistics import median

TIMES_MAX = 8192
"""Latest tokens of one request whose times are kept."""
BEFORE_S = 30.0
"""How far before a change its requests' usual gaps are taken from."""


class TokenTimes:
    """Seconds of some clock, ascending within each request. Requests that end while a change is watched stay until its end."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._ended: set[int] = set()
        self._watchers = 0

    def token(self, request: int, time_s: float) -> None:
        """A token of ``request`` leaves."""
        times = self._times.get(request)
        if times is None:
            times = self._times[request] = deque(maxlen=TIMES_MAX)
        times.append(time_s)

    def ended(self, request: int) -> None:
        """No more tokens of ``request``."""
        if self._watchers:
            self._ended.add(request)
        else:
            self._times.pop(request, None)

    def watch(self, on: bool) -> None:
        """Somebody begins or ends to watch a change."""
        self._watchers += 1 if on else -1
        if not self._watchers:
            for request in self._ended:
                self._times.pop(request, None)
            self._ended.clear()

    def is_owed(self, since_s: float) -> bool:
        """Whether some request that goes on had its last token before ``since_s``: its gap is not over."""
        return any(times[-1] <= since_s for request, times in self._times.items() if request not in self._ended)

    def gap_s(self, begin_s: float, end_s: float) -> float | None:
        """Median gap that ends within the window, over all requests; None without one."""
        return _median(gap for times in self._times.values() for gap in _gaps(times, begin_s, end_s))

    def pauses_s(self, begin_s: float, end_s: float) -> list[float]:
        """For each request that went on after ``begin_s``: its longest gap that overlaps the window less its usual one."""
        pauses = []
        for times in self._times.values():
            usual = _median(_gaps(times, begin_s - BEFORE_S, begin_s))
            overlapping = [b - a for a, b in pairwise(times) if b > begin_s and a < end_s]
            if usual is not None and overlapping:
                pauses.append(max(overlapping) - usual)
        return pauses


def _gaps(times: Iterable[float], begin_s: float, end_s: float) -> Iterable[float]:
    return (b - a for a, b in pairwise(times) if begin_s <= a and b <= end_s)


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return median(found) if found else None
