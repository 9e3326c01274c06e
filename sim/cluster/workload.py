"""What is asked of the cluster: requests with their arrival, model and lengths, drawn from a seed or taken from a trace.

Owns the draws and what makes a workload none. It must never know who serves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arrival_trace import ArrivalTrace


class WorkloadError(ValueError):
    """What was asked for is no workload; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests: ``arrival_s`` float64 [n] ascending; ``input_tokens``, ``output_tokens``, at least 1, and ``model``, int64 [n]."""

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    model: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Refuse what no clients could send. Raises `WorkloadError`."""
        lengths = {len(values) for values in (self.arrival_s, self.input_tokens, self.output_tokens, self.model)}
        if lengths == {0} or len(lengths) != 1:
            raise WorkloadError("a workload needs requests, each with an arrival, a model and two lengths")
        if not (np.isfinite(self.arrival_s).all() and self.arrival_s[0] >= 0 and (np.diff(self.arrival_s) >= 0).all()):
            raise WorkloadError("the requests of a workload arrive at or after time 0, in this order")
        if min(self.input_tokens.min(), self.output_tokens.min()) < 1 or self.model.min() < 0:
            raise WorkloadError("a request has at least one token in and one out, and a model")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def ends_s(self) -> float:
        """The last arrival."""
        return float(self.arrival_s[-1])

    def at_most(self, tokens_max: int) -> Workload:
        """The same with prompts cut so that prompt and answer fit a context of ``tokens_max``."""
        outputs = np.minimum(self.output_tokens, max(1, tokens_max - 1))
        return Workload(self.arrival_s, np.clip(self.input_tokens, 1, tokens_max - outputs), outputs, self.model)

    def answering(self, output_tokens: NDArray[np.int64]) -> Workload:
        """The same with answers of so many tokens [n]: ones for a model that only reads (embeddings)."""
        return Workload(self.arrival_s, self.input_tokens, output_tokens, self.model)

    def asking(self, input_tokens: NDArray[np.int64]) -> Workload:
        """The same with prompts of so many tokens [n]."""
        return Workload(self.arrival_s, input_tokens, self.output_tokens, self.model)


def of_trace(trace: ArrivalTrace, model: int = 0) -> Workload:
    """A trace as it is."""
    return Workload(trace.arrival_s, trace.input_tokens, trace.output_tokens, np.full(len(trace), model))


def gamma_workload(
    lengths: ArrivalTrace, rate_per_s: float, cv: float, duration_s: float, seed: int, model: int = 0
) -> Workload:
    """Gamma inter-arrival times of mean 1 / ``rate_per_s`` and variation ``cv``; lengths drawn in pairs from a trace's requests.

    The count within ``duration_s`` is random, as it is for a renewal process: at CV 8 it varies much between seeds, and a
    comparison of systems belongs within one seed. Raises `WorkloadError`.
    """
    if not (rate_per_s > 0 and cv > 0 and 0 < duration_s < np.inf):
        raise WorkloadError(
            f"{rate_per_s} requests/s at CV {cv} for {duration_s} s is no workload; give numbers above 0"
        )
    chance = np.random.default_rng(seed)
    arrivals = _renewal(chance, rate_per_s, cv, duration_s)
    if len(arrivals) == 0:
        raise WorkloadError(f"no request arrives in {duration_s} s at {rate_per_s}/s; ask for a longer time")
    picked = chance.integers(0, len(lengths), len(arrivals))
    return Workload(
        arrivals, lengths.input_tokens[picked], lengths.output_tokens[picked], np.full(len(arrivals), model)
    )


def merged(workloads: Sequence[Workload]) -> Workload:
    """All requests of several workloads, in order of arrival."""
    order = np.argsort(np.concatenate([each.arrival_s for each in workloads]), kind="stable")

    def joined(name: str) -> NDArray[np.int64]:
        values: NDArray[np.int64] = np.concatenate([getattr(each, name) for each in workloads])[order]
        return values

    arrivals = np.concatenate([each.arrival_s for each in workloads])[order]
    return Workload(arrivals, joined("input_tokens"), joined("output_tokens"), joined("model"))


def _renewal(chance: np.random.Generator, rate_per_s: float, cv: float, duration_s: float) -> NDArray[np.float64]:
    shape = 1.0 / cv**2
    chunk = int(rate_per_s * duration_s) + 1000
    times = np.zeros(0)
    last_s = 0.0
    while last_s < duration_s:
        more = last_s + np.cumsum(chance.gamma(shape, 1.0 / (rate_per_s * shape), chunk))
        times, last_s = np.concatenate([times, more]), float(more[-1])
    return times[times < duration_s]
