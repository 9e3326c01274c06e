"""What is measured of a pipeline's load: events in, an `Observation` out, in bounded memory and O(1) per event.

Owns the history (arrivals per bin, the last gaps, service times and start-ups) and its forgetting. It must never read a clock,
each event brings its time, nor know what is decided. Wrong events are named in the next observation and change nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .dispersion import Bins, dispersion_curve, envelope, trend
from .observation import Observation
from .steady_clock import SteadyClock


@dataclass(frozen=True, slots=True)
class SignalSettings:
    """Time scales of the signals; a demonstration that runs faster than life divides all times by the same number.

    ``history_s`` is how far back the dispersion curve looks, ``envelope_s`` the envelope. ``windows_min`` disjoint windows and
    ``arrivals_min`` arrivals are needed before a dispersion means something; ``gaps`` and ``gaps_short`` are how many
    inter-arrival times the two variations look at. Events up to ``late_s_max`` late are let pass; more than ``gap_s_max`` without
    any event is not silence but a clock that jumped.
    """

    bin_s: float = 1.0
    history_s: float = 3600.0
    envelope_s: float = 900.0
    rate_window_s: float = 10.0
    slope_window_s: float = 60.0
    taus_s: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
    envelope_windows_s: tuple[float, ...] = (
        *(1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0),
        *(120.0, 160.0, 240.0, 320.0, 480.0, 640.0, 900.0),
    )
    windows_min: int = 5
    arrivals_min: int = 50
    gaps: int = 512
    gaps_short: int = 64
    late_s_max: float = 2.0
    gap_s_max: float = 30.0


AMOUNT_MAX = 1e9
"""Tokens, requests or seconds beyond this are a mistake of whoever feeds."""

SERVICE_TIMES = 256
START_UPS = 16
FAULTS_MAX = 8
"""How many of the last service times and start-ups are kept, and how many different faults between two observations."""


class Signals:
    """The signals of one pipeline. Call `sample` about once a second, also when nothing happens: silence must be seen."""

    def __init__(self, settings: SignalSettings | None = None) -> None:
        self._settings = settings or SignalSettings()
        self._clock = SteadyClock(late_s_max=self._settings.late_s_max, gap_s_max=self._settings.gap_s_max)
        bins = round(self._settings.history_s / self._settings.bin_s)
        self._counts = np.zeros(bins)
        self._work = np.zeros(bins)
        self._first_bin: int | None = None
        self._bin = 0
        self._last_arrival_s: float | None = None
        self._gaps: deque[float] = deque(maxlen=self._settings.gaps)
        self._service: deque[float] = deque(maxlen=SERVICE_TIMES)
        self._startups: deque[float] = deque(maxlen=START_UPS)
        self._queue = 0
        self._running = 0
        self._kv_used_share = 0.0
        self._rows = 0
        self._faults: dict[str, int] = {}

    def arrived(self, at_s: float, tokens: float) -> None:
        """A request that weighs ``tokens`` of work arrived."""
        now_s = self._advance(at_s)
        if now_s is None or not self._sound("a request's tokens", tokens):
            return
        slot = self._bin % len(self._counts)
        self._counts[slot] += 1
        self._work[slot] += tokens
        if self._last_arrival_s is not None:
            self._gaps.append(now_s - self._last_arrival_s)
        self._last_arrival_s = now_s

    def finished(self, at_s: float, service_s: float) -> None:
        """A request left after ``service_s`` in service (from its first step to its end, waiting not counted)."""
        if self._advance(at_s) is not None and self._sound("a service time", service_s):
            self._service.append(service_s)

    def started_up(self, at_s: float, seconds: float) -> None:
        """New capacity served ``seconds`` after it was decided."""
        if self._advance(at_s) is not None and self._sound("a start-up time", seconds):
            self._startups.append(seconds)

    def sample(self, at_s: float, queue: int, running: int, kv_used_share: float, rows: int = 0) -> None:
        """How many requests wait and run now, the share of KV blocks in use (0 to 1), and how many fill all steps."""
        if self._advance(at_s) is None:
            return
        named = (
            ("the queue", queue),
            ("the requests running", running),
            ("the KV share in use", kv_used_share),
            ("the rows", rows),
        )
        if all(self._sound(name, value) for name, value in named):
            self._queue, self._running, self._rows = queue, running, rows
            self._kv_used_share = min(kv_used_share, 1.0)

    def observe(self, at_s: float) -> Observation:
        """All signals now. Bins that have passed count, the one that is being filled does not."""
        settings = self._settings
        now_s = self._advance(at_s)
        if now_s is None:
            now_s = self._clock.now_s or 0.0
        counts, work = self._history(self._counts), self._history(self._work)
        recent = max(round(settings.rate_window_s / settings.bin_s), 1)
        rate, tokens_rate = _rate(counts[-recent:], settings.bin_s), _rate(work[-recent:], settings.bin_s)
        arrivals = int(counts.sum())
        service_s, service_cv2 = _mean_and_cv2(self._service)
        return Observation(
            at_s=now_s,
            observed_s=len(counts) * settings.bin_s,
            arrivals=arrivals,
            rate_per_s=rate,
            tokens_per_s=tokens_rate,
            slope_tokens_per_s2=trend(work[-round(settings.slope_window_s / settings.bin_s) :], settings.bin_s),
            tokens_per_request=float(work.sum()) / arrivals if arrivals else 0.0,
            cv=self._variation(settings.gaps),
            cv_short=self._variation(settings.gaps_short),
            dispersion=dispersion_curve(
                counts, work, settings.bin_s, settings.taus_s, settings.windows_min, settings.arrivals_min
            ),
            envelope=envelope(
                work[-round(settings.envelope_s / settings.bin_s) :], settings.bin_s, settings.envelope_windows_s
            ),
            queue=self._queue,
            running=self._running,
            kv_used_share=self._kv_used_share,
            rows=self._rows,
            service_s=service_s,
            service_cv2=service_cv2,
            startup_s=float(np.median(self._startups)) if self._startups else None,
            startup_least_s=min(self._startups, default=None),
            faults=self._take_faults(),
        )

    def _advance(self, at_s: float) -> float | None:
        """Steady time of an event, with the bins between the last one and it emptied; None where it carries no time."""
        now_s, fault = self._clock.read(at_s)
        if fault is not None:
            self._blame(fault)
        if now_s is None:
            return None
        arrived_at = int(now_s // self._settings.bin_s)
        if self._first_bin is None:
            self._first_bin = self._bin = arrived_at
        passed = min(arrived_at - self._bin, len(self._counts))
        for number in range(arrived_at - passed + 1, arrived_at + 1):
            self._counts[number % len(self._counts)] = self._work[number % len(self._counts)] = 0.0
        self._bin = arrived_at
        return now_s

    def _history(self, ring: Bins) -> Bins:
        """The bins that have passed, oldest first; the one being filled takes a place in the ring, so one less than it holds."""
        if self._first_bin is None:
            return ring[:0]
        known = min(self._bin - self._first_bin, len(ring) - 1)
        end = self._bin % len(ring)
        return np.concatenate([ring, ring])[len(ring) + end - known : len(ring) + end]

    def _variation(self, last: int) -> float | None:
        """Coefficient of variation of the ``last`` inter-arrival times; None with under ``arrivals_min`` or no time between."""
        gaps = np.array(self._gaps)[-last:]
        if len(gaps) < min(self._settings.arrivals_min, last) or gaps.mean() <= 0:
            return None
        return float(gaps.std() / gaps.mean())

    def _sound(self, what: str, value: float) -> bool:
        if 0 <= value <= AMOUNT_MAX:
            return True
        self._blame(f"{what} came as {value}, which is none")
        return False

    def _blame(self, fault: str) -> None:
        if fault in self._faults or len(self._faults) < FAULTS_MAX:
            self._faults[fault] = self._faults.get(fault, 0) + 1

    def _take_faults(self) -> tuple[str, ...]:
        faults, self._faults = self._faults, {}
        return tuple(fault if times == 1 else f"{fault} ({times} times)" for fault, times in faults.items())


def _rate(bins: Bins, bin_s: float) -> float:
    return float(bins.sum()) / (len(bins) * bin_s) if len(bins) else 0.0


def _mean_and_cv2(values: Iterable[float]) -> tuple[float | None, float | None]:
    """(mean, squared coefficient of variation); None, None without values."""
    array = np.array(list(values))
    if len(array) == 0 or array.mean() <= 0:
        return None, None
    return float(array.mean()), float(array.std() / array.mean()) ** 2
