"""What is measured of a run: names, units, and which way is better. Definitions are the paper's where it has one.

Owns the words. The values are computed by `sim.cluster.metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure: ``better`` says which way, ``decimals`` how many are shown of value times ``scale``, in ``unit``.

    A ``sparse`` one has a value only in runs where there was something to measure: its mean is over those.
    """

    name: str
    title: str
    unit: str
    better: Literal["more", "less", "neither"]
    means: str
    scale: float = 1.0
    decimals: int = 2
    sparse: bool = False

    def text(self, value: float | None) -> str:
        """As in a table; "-" for nothing."""
        return "-" if value is None else f"{value * self.scale:.{self.decimals}f}"


GOODPUT = Measure(
    "goodput_per_gpu_s",
    "goodput",
    "/GPU h",
    "more",
    "requests that met both deadlines, per hour of each GPU that was held",
    scale=3600,
    decimals=0,
)
ATTAINMENT = Measure(
    "attainment",
    "in time",
    "%",
    "more",
    "requests that met both deadlines, of all that arrived; one that was refused or never ended met none",
    scale=100,
    decimals=1,
)
GPUS = Measure("held_mean", "GPUs", "", "less", "GPUs held, on average over time", decimals=1)
GPUS_PEAK = Measure("held_peak", "at most", "", "less", "the most GPUs held at any time", decimals=0)
ALWAYS_ON = Measure(
    "always_on_share",
    "always on",
    "%",
    "less",
    "the fewest GPUs held at any time, as a share of the most",
    scale=100,
    decimals=0,
)
E2E_MEAN = Measure("e2e_mean_s", "latency", "s", "less", "from arrival to the last token, mean", decimals=1)
E2E_P50 = Measure("e2e_p50_s", "latency p50", "s", "less", "from arrival to the last token, median", decimals=1)
E2E_P99 = Measure(
    "e2e_p99_s", "latency p99", "s", "less", "from arrival to the last token, 99th percentile", decimals=1
)
TTFT_P50 = Measure("ttft_p50_s", "TTFT p50", "s", "less", "from arrival to the first token, median")
TTFT_P99 = Measure("ttft_p99_s", "TTFT p99", "s", "less", "from arrival to the first token, 99th percentile")
TPOT_P50 = Measure("tpot_p50_s", "TPOT p50", "ms", "less", "mean time between a request's tokens, median", 1000, 0)
TPOT_P99 = Measure(
    "tpot_p99_s", "TPOT p99", "ms", "less", "mean time between a request's tokens, 99th percentile", 1000, 0
)
STALL = Measure(
    "stall_recovery_s",
    "stall",
    "ms",
    "less",
    "stall recovery by the paper's rule: from a latency above 1.5 times the 25th percentile to one below 1.2 times, median; the "
    "rule does not divide by an answer's length, so that a long answer is a stall and the next short one its end",
    scale=1000,
    decimals=0,
    sparse=True,
)
STALLED = Measure(
    "stalled_share",
    "stalled",
    "%",
    "less",
    "responses that came within a stall, by the same rule",
    scale=100,
    decimals=0,
)
ALLOCATION = Measure(
    "allocation_p50_s",
    "allocation",
    "s",
    "less",
    "from asking for a replica to having its devices, median over starts",
    sparse=True,
)
STARTUP = Measure(
    "startup_p50_s",
    "start-up",
    "s",
    "less",
    "from asking for a replica to its serving, median over starts",
    decimals=1,
    sparse=True,
)
STARTS = Measure("starts_per_min", "starts", "/min", "neither", "replicas started while load came, per minute")
SWITCHES = Measure("switches_per_min", "reshapes", "/min", "neither", "replicas that changed their stages, per minute")
REFUSED = Measure("refused_actions", "refused", "", "less", "plans that the cluster refused", decimals=0)
LOST = Measure("replicas_lost", "lost", "", "less", "replicas that went with a node under them", decimals=0)
REPLACED = Measure(
    "replaced_p50_s",
    "replaced",
    "s",
    "less",
    "from the loss of a replica until another served in its place, median",
    decimals=1,
    sparse=True,
)
REQUESTS = Measure("requests", "requests", "", "neither", "requests that arrived", decimals=0)

MEASURES = (
    *(
        GOODPUT,
        ATTAINMENT,
        GPUS,
        GPUS_PEAK,
        ALWAYS_ON,
        E2E_MEAN,
        E2E_P50,
        E2E_P99,
        TTFT_P50,
        TTFT_P99,
        TPOT_P50,
        TPOT_P99,
    ),
    *(STALL, STALLED, ALLOCATION, STARTUP, STARTS, SWITCHES, REFUSED, LOST, REPLACED, REQUESTS),
)
"""All, in the order of tables."""
MAIN = (GOODPUT, ATTAINMENT, GPUS, E2E_MEAN, TTFT_P99, TPOT_P99)
"""Those of the table in the terminal."""
