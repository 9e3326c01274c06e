"""When to say "I am here" and when to call a peer lost. Pure: it is told the time and never asks for it.

Rules. A heartbeat is due when this end has sent nothing for one interval (any frame says "here"). The peer is lost when
nothing was heard of it for the limit of silence. An end that was itself asleep (a stopped process, a blocked event loop)
cannot tell a silent peer from its own sleep, so a tick that comes more than one interval late gives the peer one interval more.
"""

from __future__ import annotations

from enum import Enum, auto


class LivenessAction(Enum):
    """What the caller of `Liveness.tick` is to do."""

    WAIT = auto()
    SEND_HEARTBEAT = auto()
    DECLARE_LOST = auto()


class Liveness:
    """The clock work of one end. Times are seconds on any monotonic clock, the same one for every call."""

    def __init__(self, *, heartbeat_interval_s: float, silence_s_max: float, now: float) -> None:
        if not 0 < heartbeat_interval_s <= silence_s_max / 2:
            raise ValueError(
                f"heartbeat_interval_s {heartbeat_interval_s} must be above 0 and at most half of silence_s_max {silence_s_max}"
            )
        self._interval_s = heartbeat_interval_s
        self._silence_s_max = silence_s_max
        self._heard_at = now
        self._sent_at = now
        self._tick_due_at = now + heartbeat_interval_s

    def heard(self, now: float) -> None:
        """Something valid came from the peer."""
        self._heard_at = now

    def sent(self, now: float) -> None:
        """Something was sent to the peer."""
        self._sent_at = now

    @property
    def next_tick_at(self) -> float:
        """When `tick` has to be called at the latest; calling it earlier is harmless."""
        return min(self._sent_at + self._interval_s, self._heard_at + self._silence_s_max)

    def silence_s(self, now: float) -> float:
        """How long the peer has been silent."""
        return now - self._heard_at

    def tick(self, now: float) -> LivenessAction:
        """What is due at ``now``. Hand in everything that has arrived (`heard`) before asking."""
        if now - self._tick_due_at > self._interval_s:
            self._heard_at = max(self._heard_at, now - self._silence_s_max + self._interval_s)
        action = self._due(now)
        if action is LivenessAction.SEND_HEARTBEAT:
            self._sent_at = now
        self._tick_due_at = max(self.next_tick_at, now)
        return action

    def _due(self, now: float) -> LivenessAction:
        # Compared as `next_tick_at` computes it: sleeping until exactly that time must find something to do.
        if now >= self._heard_at + self._silence_s_max:
            return LivenessAction.DECLARE_LOST
        if now >= self._sent_at + self._interval_s:
            return LivenessAction.SEND_HEARTBEAT
        return LivenessAction.WAIT
