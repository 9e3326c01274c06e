"""What the signals of one pipeline say at one moment: the controller's only view of the load.

Owns the values and what makes one unusable. It must never know how they were measured (`control.signals`) nor what is made
of them. Work is counted in tokens, in the same unit as a shape's capacity (`control.granularity`): whoever feeds the signals
decides what a request weighs, a prompt's tokens plus those that it is expected to make, say.
"""

from __future__ import annotations

from dataclasses import dataclass

PLAUSIBLE_MAX = 1e15
"""Numbers beyond this are wrong, and would make sums that are no numbers."""


@dataclass(frozen=True, slots=True)
class Dispersion:
    """How bursty arrivals are over windows of ``tau_s``: one point of the dispersion curve.

    ``idc`` is the index of dispersion for counts, Var A(tau) / E A(tau), 1 for Poisson arrivals; ``idw`` the same for work,
    Var Y(tau) / (E[tokens] E Y(tau)) (Fendick & Whitt). ``windows`` is how many disjoint windows the history holds.
    """

    tau_s: float
    idc: float
    idw: float
    windows: int


@dataclass(frozen=True, slots=True)
class EnvelopePoint:
    """The most work that arrived within any ``window_s`` of the recent past: A(t) of network calculus."""

    window_s: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Observation:
    """One pipeline's load. A None says that too little was seen to mean something.

    ``at_s`` is steady time: it never goes back, and does not pass while nobody observes. ``observed_s`` is how much history
    stands behind this, ``arrivals`` how many requests are in it. ``rate_per_s`` and ``tokens_per_s`` are means over the rate
    window (`SignalSettings`), ``slope_tokens_per_s2`` is the trend of work over the slope window, 0 where it is not
    significant. ``cv`` and ``cv_short`` are the variation of inter-arrival times over the last many and the last few arrivals.
    ``queue`` and ``running`` are requests at the last sample, ``kv_used_share`` is the share of KV blocks in use (0 to 1),
    ``rows`` how many requests fill all steps of the present shape (0: not told).
    ``service_s`` is a request's mean time in service and ``service_cv2`` its squared variation. ``startup_s`` is the median and
    ``startup_least_s`` the least of the start-ups observed. ``faults`` are sentences on what was wrong with the events since
    the observation before.
    """

    at_s: float
    observed_s: float = 0.0
    arrivals: int = 0
    rate_per_s: float = 0.0
    tokens_per_s: float = 0.0
    slope_tokens_per_s2: float = 0.0
    tokens_per_request: float = 0.0
    cv: float | None = None
    cv_short: float | None = None
    dispersion: tuple[Dispersion, ...] = ()
    envelope: tuple[EnvelopePoint, ...] = ()
    queue: int = 0
    running: int = 0
    kv_used_share: float = 0.0
    rows: int = 0
    service_s: float | None = None
    service_cv2: float | None = None
    startup_s: float | None = None
    startup_least_s: float | None = None
    faults: tuple[str, ...] = ()

    @property
    def backlog_tokens(self) -> float:
        """Work that waits."""
        return self.queue * self.tokens_per_request

    @property
    def idle(self) -> bool:
        """No request arrives, waits or runs."""
        return self.rate_per_s == 0 and self.queue == 0 and self.running == 0

    def idc_at(self, tau_s: float) -> float | None:
        """The index of dispersion over windows of about ``tau_s``: that of the nearest window measured, None without any."""
        nearest = min(self.dispersion, key=lambda point: abs(point.tau_s - tau_s), default=None)
        return None if nearest is None else nearest.idc

    def flaw(self) -> str | None:
        """Why nothing can be decided on this; None where something can."""
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and not abs(value) <= PLAUSIBLE_MAX:
                return f"the signals' {name} is {value}"
            if value is not None and value < 0 and name not in _SIGNED:
                return f"the signals' {name} is {value}, which is less than nothing"
        if not all(
            0 <= point.tokens <= PLAUSIBLE_MAX and 0 < point.window_s <= PLAUSIBLE_MAX for point in self.envelope
        ):
            return "the signals' envelope holds something that is no amount of work"
        return None


_SIGNED = ("at_s", "slope_tokens_per_s2")
_NUMBERS = (
    "at_s",
    "observed_s",
    "rate_per_s",
    "tokens_per_s",
    "slope_tokens_per_s2",
    "tokens_per_request",
    "cv",
    "cv_short",
    "queue",
    "running",
    "kv_used_share",
    "rows",
    "service_s",
    "service_cv2",
    "startup_s",
    "startup_least_s",
)
