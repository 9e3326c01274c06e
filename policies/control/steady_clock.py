"""Steady time out of the times that events carry: it never goes back, and does not pass while nobody observes.

Owns what becomes of clocks that jump. It must never read a clock itself.
"""

from __future__ import annotations

TIME_MAX_S = 1e12
"""Beyond this, some 30,000 years, a number is no time: it would not even tell seconds apart."""


class SteadyClock:
    """Turns event times into steady times, remembering only the latest and an offset.

    An event up to ``late_s_max`` older than the latest is merely late and counts as now. Older ones mean that the clock went
    back, and more than ``gap_s_max`` without any event that it went forward (or that the process stood still): either way time
    goes on from where it was. Whoever wants silence to count says that it looked, by an event at least that often.
    """

    def __init__(self, *, late_s_max: float, gap_s_max: float) -> None:
        self._late_s_max = late_s_max
        self._gap_s_max = gap_s_max
        self._offset_s = 0.0
        self.now_s: float | None = None

    def read(self, at_s: float) -> tuple[float | None, str | None]:
        """(steady time of an event at ``at_s``, what was wrong with it). No time where ``at_s`` is no number."""
        if not abs(at_s) <= TIME_MAX_S:
            return None, f"an event came at {at_s}, which is no time"
        if self.now_s is None:
            self.now_s = at_s
            return at_s, None
        ahead_s = at_s + self._offset_s - self.now_s
        fault = None
        if ahead_s < -self._late_s_max or ahead_s > self._gap_s_max:
            self._offset_s -= ahead_s
            way = "back" if ahead_s < 0 else "forward"
            fault = f"the clock went {way} by {abs(ahead_s):.1f} s; time goes on from where it was"
            ahead_s = 0.0
        self.now_s += max(ahead_s, 0.0)
        return self.now_s, fault
