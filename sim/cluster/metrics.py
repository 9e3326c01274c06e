"""What a run comes to: goodput per GPU-second held, deadlines met, percentiles, stalls, reservation, start-ups, switches.

Owns the definitions (those of the FlexPipe paper where it gives one). It must never know how a run came about. A request that never
ended, or was refused, has met no deadline and counts as infinitely late where percentiles are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .run_record import RunRecord
from .state import DONE
from .system import Outcome, Reshape, Start

Numbers = NDArray[np.float64]
STALL_RATIO, RECOVERED_RATIO = 1.5, 1.2
"""A response that takes longer than so many baselines is a stall; one below the other ends it. The paper's rule."""
BASELINE_PERCENT = 25
"""The baseline is this percentile of response times in normal operation."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """What a request is promised: its first token within ``ttft_s``, the others ``tpot_s`` apart on average."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """One run in numbers. Percentiles are over all requests, infinite where so many never ended; NaN where there is nothing.

    - ``goodput_per_gpu_s``: requests within both deadlines per GPU-second held while load came; ``attainment``: their share.
    - ``stalls``: how many there were; ``stalled_share``: responses in one; ``stall_recovery_s``: its median length.
    - ``always_on_share``: the least devices held at any time over the most. ``held_peak``, ``held_mean``: devices.
    - ``allocation_p50_s``, ``startup_p50_s``: medians over starts, until the devices were there and until it served;
      ``reshape_p50_s`` likewise. ``switches_per_min``: reshapes done while load came.
    - ``replicas_lost`` with a node; ``replaced_p50_s``: until another served in its place, median. ``refused_actions``: plans that
      the cluster refused.
    """

    requests: int
    done: int
    preempted: int
    attainment: float
    goodput_per_s: float
    goodput_per_gpu_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    e2e_p50_s: float
    e2e_p99_s: float
    e2e_mean_s: float
    stalls: int
    stalled_share: float
    stall_recovery_s: float
    always_on_share: float
    held_peak: int
    held_mean: float
    allocation_p50_s: float
    startup_p50_s: float
    reshape_p50_s: float
    replicas_lost: int
    replaced_p50_s: float
    refused_actions: int
    switches_per_min: float


def metrics(record: RunRecord, deadlines: Sequence[Deadlines]) -> Metrics:
    """The numbers of a run, with the deadlines of each of its models."""
    requests = record.requests
    ttft_s, tpot_s, e2e_s = response_times(record)
    by_model = requests["model"]
    allowed_first = np.array([each.ttft_s for each in deadlines])[by_model]
    allowed_next = np.array([each.tpot_s for each in deadlines])[by_model]
    good = (ttft_s <= allowed_first) & (tpot_s <= allowed_next)
    counts, held_gpu_s = _held(record)
    stalls, recovery_s, stalled = _stalls(requests["end_s"], e2e_s)
    starts = [each for each in record.outcomes if _is_start(each) and each.took_s]
    reshapes = [each for each in record.outcomes if each.kind == "serving" and isinstance(each.action, Reshape)]
    load_s = max(record.load_s, 1e-9)
    return Metrics(
        requests=len(requests),
        done=int((requests["phase"] == DONE).sum()),
        preempted=int(requests["preempted"].sum()),
        attainment=float(good.mean()),
        goodput_per_s=float(good.sum()) / load_s,
        goodput_per_gpu_s=float(good.sum()) / held_gpu_s if held_gpu_s else np.nan,
        ttft_p50_s=percentile(ttft_s, 50),
        ttft_p99_s=percentile(ttft_s, 99),
        tpot_p50_s=percentile(tpot_s, 50),
        tpot_p99_s=percentile(tpot_s, 99),
        e2e_p50_s=percentile(e2e_s, 50),
        e2e_p99_s=percentile(e2e_s, 99),
        e2e_mean_s=float(e2e_s.mean()),
        stalls=stalls,
        stalled_share=stalled,
        stall_recovery_s=recovery_s,
        always_on_share=min(counts) / max(*counts, 1),
        held_peak=max(counts),
        held_mean=held_gpu_s / load_s,
        allocation_p50_s=_median([each.waited_s for each in starts]),
        startup_p50_s=_median([each.took_s for each in starts]),
        reshape_p50_s=_median([each.took_s for each in reshapes]),
        replicas_lost=sum(each.kind == "failed" and each.action is None for each in record.outcomes),
        replaced_p50_s=_median(_replaced_s(record)),
        refused_actions=sum(each.kind == "refused" for each in record.outcomes),
        switches_per_min=60 * sum(each.at_s <= load_s for each in reshapes) / load_s,
    )


def response_times(record: RunRecord) -> tuple[Numbers, Numbers, Numbers]:
    """Seconds to the first token, between tokens (0 for an answer of one) and to the end; infinite without an end."""
    requests = record.requests
    done = requests["phase"] == DONE
    ttft = np.where(done, requests["first_s"] - requests["arrival_s"], np.inf)
    later = np.maximum(requests["output"].astype(np.int64) - 1, 1)
    tpot = np.where(done, (requests["end_s"] - requests["first_s"]) / later, np.inf)
    e2e = np.where(done, requests["end_s"] - requests["arrival_s"], np.inf)
    return ttft, tpot, e2e


def percentile(values: Numbers, percent: float) -> float:
    """The least value that at least so many percent do not exceed; NaN of none."""
    return float(np.percentile(values, percent, method="inverted_cdf")) if len(values) else np.nan


def _held(record: RunRecord) -> tuple[list[int], float]:
    """(devices held at the moments while load came, their integral over that time)."""
    inside = [(at_s, count) for at_s, count in record.timeline if at_s <= record.load_s]
    settled: dict[float, int] = dict(inside)  # the last count of each moment
    times = np.array([*settled, record.load_s])
    counts = list(settled.values())
    return counts, float((np.diff(times) * counts).sum())


def _stalls(end_s: Numbers, e2e_s: Numbers) -> tuple[int, float, float]:
    """(stalls, their median length in seconds, share of responses in one), by the paper's rule over responses in order."""
    ended = np.isfinite(e2e_s)
    if not ended.any():
        return 0, np.nan, np.nan
    order = np.argsort(end_s[ended], kind="stable")
    times, took = end_s[ended][order], e2e_s[ended][order]
    ratios = took / np.percentile(took, BASELINE_PERCENT)
    # What is neither a stall nor a recovery changes nothing: of the others, each run of one kind begins with a change.
    marks = np.flatnonzero((ratios > STALL_RATIO) | (ratios < RECOVERED_RATIO))
    slow = ratios[marks] > STALL_RATIO
    changes = marks[
        np.flatnonzero(np.diff(slow, prepend=False))
    ]  # a stall's first response, then its first recovered one
    begun, over = changes[0::2], changes[1::2]
    ends = np.append(over, len(times)) if len(over) < len(begun) else over
    stalled = int((ends - begun).sum())
    return len(over), _median((times[over] - times[begun[: len(over)]]).tolist()), stalled / len(times)


def _replaced_s(record: RunRecord) -> list[float]:
    """Seconds from the loss of each replica until another, asked for since, served: each counts for one loss."""
    served = iter(sorted(each.at_s for each in record.outcomes if _is_start(each) and each.took_s))
    lost = sorted(each.at_s for each in record.outcomes if each.kind == "failed" and each.action is None)
    found = []
    for at_s in lost:
        next_s = next((moment for moment in served if moment > at_s), None)
        if next_s is None:
            break
        found.append(next_s - at_s)
    return found


def _is_start(outcome: Outcome) -> bool:
    return outcome.kind == "serving" and isinstance(outcome.action, Start)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else np.nan
