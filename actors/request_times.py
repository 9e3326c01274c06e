"""Where one request's time goes, for the log: waiting, prefilled, decoding, and which tokens came late.

Told what happens and when; knows no clock and writes nothing. A few additions a token: this runs for every row of every step.
"""

from __future__ import annotations

STALL_RATIO = 8.0
"""A gap so many times as long as the request's usual one is a stall; a step with somebody's prompt in it is 2 to 5."""
STALL_S_MIN = 0.02
"""Gaps below this are nobody's business."""
STALL_TOKENS_MIN = 4
"""Tokens before a request has a usual gap."""
USUAL_WEIGHT = 0.1
"""Weight of the newest gap in the usual one."""


class RequestTimes:
    """One request at one scheduler, which has it from ``opened_s`` on. All times are seconds of the caller's clock."""

    def __init__(self, opened_s: float) -> None:
        self._since_s = opened_s
        self._phase = "queue"
        self._spent_s = {"queue": 0.0, "prefill": 0.0, "decode": 0.0}
        self._last_token_s: float | None = None
        self._usual_gap_s = 0.0
        self._gaps = 0
        self._gap_s_max = 0.0
        self._first_step = -1
        self._steps = 0
        self._requeues = 0

    def planned(self, step: int, now_s: float) -> bool:
        """It is in a step; whether it was admitted with that."""
        self._steps += 1
        if self._phase != "queue":
            return False
        if self._first_step < 0:
            self._first_step = step
        self._enter("prefill", now_s)
        return True

    def token(self, now_s: float) -> tuple[bool, float]:
        """It has a token: whether the first since it was admitted, and the gap before it where that was a stall, else 0."""
        is_prefilled = self._phase == "prefill"
        if is_prefilled:
            self._enter("decode", now_s)
        last_s, self._last_token_s = self._last_token_s, now_s
        return is_prefilled, 0.0 if last_s is None else self._stall_s(now_s - last_s)

    def requeued(self, now_s: float) -> None:
        """It waits again."""
        self._requeues += 1
        self._enter("queue", now_s)

    def ended(self, now_s: float) -> dict[str, float]:
        """The fields that every event of its end has."""
        self._enter(self._phase, now_s)
        return {
            **{f"{phase}_s": round(spent_s, 6) for phase, spent_s in self._spent_s.items()},
            "gap_s_max": round(self._gap_s_max, 6),
            "first_step": self._first_step,
            "steps": self._steps,
            "requeues": self._requeues,
        }

    def _enter(self, phase: str, now_s: float) -> None:
        self._spent_s[self._phase] += now_s - self._since_s
        self._phase, self._since_s = phase, now_s

    def _stall_s(self, gap_s: float) -> float:
        """``gap_s`` where it is a stall, else 0; what is none is part of the usual gap."""
        self._gap_s_max = max(self._gap_s_max, gap_s)
        if self._gaps >= STALL_TOKENS_MIN and gap_s >= max(STALL_S_MIN, STALL_RATIO * self._usual_gap_s):
            return gap_s
        self._gaps += 1
        self._usual_gap_s += (gap_s - self._usual_gap_s) * max(USUAL_WEIGHT, 1 / self._gaps)
        return 0.0
