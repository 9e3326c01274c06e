"""What a run showed, real or simulated, in the same words: when each request had its first and its last token, and each change.

Owns the measures that are compared. It must never know which run it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ObservedChange:
    """From asking to the end ``took_s``; ``pause_s`` is how late a token came, in the median of requests.

    It is `actors.refactor.Pauses`: None where no request was under way, or where nobody knows single tokens.
    """

    stages: int
    took_s: float
    pause_s: float | None


@dataclass(frozen=True, slots=True)
class Observed:
    """Requests in the order of arrival: ``arrival_s``, ``first_s`` and ``end_s`` float64 [n], ``output_tokens`` int64 [n]."""

    arrival_s: Numbers
    first_s: Numbers
    end_s: Numbers
    output_tokens: NDArray[np.int64]
    changes: tuple[ObservedChange, ...] = ()

    def measures(self) -> dict[str, float]:
        """The figures by name, times in seconds."""
        times = {
            "ttft": self.first_s - self.arrival_s,
            "tpot": (self.end_s - self.first_s) / np.maximum(self.output_tokens - 1, 1),
            "e2e": self.end_s - self.arrival_s,
        }
        found = {
            f"{name}_p{percent}_s": float(np.percentile(values, percent))
            for name, values in times.items()
            for percent in (50, 99)
        }
        found["tokens_per_s"] = float(self.output_tokens.sum() / (self.end_s.max() - self.arrival_s.min()))
        pauses = [change.pause_s for change in self.changes if change.pause_s is not None]
        if pauses:
            found["pause_p50_s"] = float(np.median(pauses))
        return found
