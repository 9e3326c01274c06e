"""One comparison: a trace, the stages at its begin, and the changes made while it runs; values only, and the draws from seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrival_trace import ArrivalTrace

PROMPT_TOKENS, PROMPT_SPREAD = 48.0, 0.8
"""Median of the synthetic prompts' lengths, and the standard deviation of its logarithm."""
OUTPUT_TOKENS, OUTPUT_SPREAD = 20.0, 0.5
PROMPT_TOKENS_MAX, OUTPUT_TOKENS_MIN, OUTPUT_TOKENS_MAX = 256, 4, 60


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """So many stages from ``at_s`` on, or as soon as the change before is over."""

    at_s: float
    stages: int


@dataclass(frozen=True, slots=True)
class Case:
    """``policy`` is what is done under ``load``, both by name: what they are together is said by the rest."""

    load: str
    policy: str
    trace: ArrivalTrace
    stages: int
    changes: tuple[PlannedChange, ...] = ()


def synthetic_trace(seed: int, requests_per_s: float, seconds: float) -> ArrivalTrace:
    """Poisson arrivals of requests with log-normal lengths."""
    chance = np.random.default_rng(seed)
    count = max(2, round(requests_per_s * seconds))
    arrivals = np.sort(chance.uniform(0.0, seconds, count))
    prompts = np.exp(chance.normal(np.log(PROMPT_TOKENS), PROMPT_SPREAD, count))
    outputs = np.exp(chance.normal(np.log(OUTPUT_TOKENS), OUTPUT_SPREAD, count))
    return ArrivalTrace(
        arrivals - arrivals[0],
        np.clip(np.rint(prompts), 1, PROMPT_TOKENS_MAX).astype(np.int64),
        np.clip(np.rint(outputs), OUTPUT_TOKENS_MIN, OUTPUT_TOKENS_MAX).astype(np.int64),
    )


def evenly(sequence: tuple[int, ...], seconds: float) -> tuple[PlannedChange, ...]:
    """These numbers of stages one after the other, spread evenly over the time."""
    step_s = seconds / (len(sequence) + 1)
    return tuple(PlannedChange((place + 1) * step_s, stages) for place, stages in enumerate(sequence))
