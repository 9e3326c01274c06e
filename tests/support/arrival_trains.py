"""Seeded arrival times with the statistics of public traces, for tests of what measures or controls a load."""

import numpy as np


def poisson(rate_per_s, duration_s, seed):
    """Arrival times without any burst: an index of dispersion of 1 at every scale."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0, duration_s, rng.poisson(rate_per_s * duration_s)))


def bursty(duration_s, seed, *, bursts_per_s=0.03, burst_requests=85, burst_s=6.5):
    """Bursts that come at random, of geometric size, each spread over ``burst_s`` on average.

    The defaults have the mean rate of Azure's LLM code trace of 2023 (2.57/s) and its dispersion curve (CC-BY 4.0, measured over
    its 57 minutes: 13 over 1 s, 72 over 10 s, 164 over 60 s, 138 over 300 s).
    """
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, duration_s, rng.poisson(bursts_per_s * duration_s))
    times = [start + rng.exponential(burst_s, rng.geometric(1 / burst_requests)) for start in starts]
    return np.sort(np.concatenate([*times, [0.0]]))
