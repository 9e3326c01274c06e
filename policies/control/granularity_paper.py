"""The FlexPipe paper's choice of granularity (arXiv 2510.11938, Eq. 4, 5, 11, 12), kept beside ours to be compared with it.

    g*   = argmax_k [alpha T_k / T_max + (1 - alpha) L_min / L_k] exp(-|nu_t - nu_k| / sigma)      (Eq. 4)
    M_k  = floor(mu_total / mu_k),   mu_k = T_k / (beta1 + beta2 eta_k)                            (Eq. 5)
    m    = floor(G_max / (1 + beta exp(-gamma cv q))),   q = min(Q / Q_max, 1)                     (Eq. 11)
    ((T - S) sum_{k <= m} mu_k) / Q >= r                                                           (Eq. 12)

The paper gives no values of alpha, sigma, nu_k, beta, gamma, Q_max and G_max. What it leaves open is read so:

- nu_t is a variation coefficient in its section 6 and a rate's derivative in its Algorithm 1. Here it is the coefficient of
  inter-arrival times; the trend enters Eq. 5 as a forecast. Without enough arrivals the factor of Eq. 4 is 1.
- nu_k: its rule S ~ sqrt(CV), turned round: a granularity of S stages is best at CV = (S / stages_at_cv1)^2. Its figures (16
  stages at CV 4) put ``stages_at_cv1`` at 8.
- The floor of Eq. 5 may give no instance at all, so at least one; it gives too few, too, which Eq. 12 has to mend.
- Eq. 11's m is how many instances are added under pressure; it is 0 at an empty queue where beta >= G_max.
- Eq. 12's left side is a share (work that m instances do in time, over work that waits), so r is the share to be done in
  time; with no queue it holds. m grows until it does or G_max is reached.
- Eq. 4 ranks granularities, not their numbers: a candidate is worth its granularity's score times how near its number of
  replicas is to M + m (the smaller over the larger). A cost is the inverse of that.

Its Eq. 1, the reason that it gives for depth, takes stages in series for servers in parallel and is used nowhere here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, floor

from .granularity import Score, Shape
from .observation import Observation

EXPONENT_MAX = 600.0
"""|nu_t - nu_k| / sigma beyond this counts as this: a score of 0 would have no inverse."""

SCORE_MIN = 1e-300
"""A worse score counts as this, for the same reason."""

FORECAST_S = 30.0
"""How far Eq. 5 looks ahead along the trend: the paper's "gradient of intensity", whose step it does not give."""


@dataclass(frozen=True, slots=True)
class PaperSettings:
    """The equations' constants: alpha, sigma, beta1, beta2, G_max, beta, gamma, Q_max (requests), T (seconds) and r (a share)."""

    throughput_weight: float = 0.5
    sensitivity: float = 1.0
    stages_at_cv1: float = 8.0
    beta1: float = 1.0
    beta2: float = 0.0
    added_max: int = 4
    beta: float = 9.0
    gamma: float = 1.0
    queue_max: int = 64
    deadline_s: float = 30.0
    share_in_time: float = 1.0


class PaperPolicy:
    """See the module's docstring. Its scores have no ``switch_cost``: the paper weighs none."""

    name = "paper"

    def __init__(self, settings: PaperSettings | None = None) -> None:
        self._settings = settings or PaperSettings()

    def scores(
        self, observation: Observation, present: Shape, candidates: Sequence[Shape], *, forecast: bool
    ) -> tuple[Score, ...]:
        """One score per candidate, in order; terms are the factors of Eq. 4 and the numbers of Eq. 5, 11 and 12."""
        if not candidates:
            return ()
        throughput_max = max(_throughput(shape) for shape in candidates)
        latency_min = min(shape.tpot_s for shape in candidates)
        total = _mu_total(observation, forecast=forecast)
        return tuple(
            self._score(observation, shape, throughput_max, latency_min, total, added_now=not shape.same_as(present))
            for shape in candidates
        )

    def _score(
        self,
        observation: Observation,
        shape: Shape,
        throughput_max: float,
        latency_min: float,
        mu_total: float,
        *,
        added_now: bool,
    ) -> Score:
        settings = self._settings
        throughput, latency = _throughput(shape) / throughput_max, latency_min / shape.tpot_s
        nearness = self._nearness(observation.cv, shape.stages)
        granularity = (settings.throughput_weight * throughput + (1 - settings.throughput_weight) * latency) * nearness
        mu = _throughput(shape) / (settings.beta1 + settings.beta2 * shape.stages)
        instances = max(floor(mu_total / mu), 1)
        added = self._added(observation, mu, shape.startup_s if added_now else 0.0)
        wanted = instances + added
        fit = min(shape.replicas, wanted) / max(shape.replicas, wanted)
        terms = (
            ("throughput_share", throughput),
            ("latency_share", latency),
            ("cv_nearness", nearness),
            ("eq4", granularity),
            ("instances", float(instances)),
            ("added", float(added)),
            ("fit", fit),
        )
        return Score(shape, 1 / max(granularity * fit, SCORE_MIN), terms=terms)

    def _nearness(self, cv: float | None, stages: int) -> float:
        """The factor exp(-|nu_t - nu_k| / sigma) of Eq. 4."""
        if cv is None:
            return 1.0
        best_cv = (stages / self._settings.stages_at_cv1) ** 2
        return exp(-min(abs(cv - best_cv) / self._settings.sensitivity, EXPONENT_MAX))

    def _added(self, observation: Observation, mu: float, startup_s: float) -> int:
        """Instances to add: Eq. 11, raised until Eq. 12 holds, at most G_max."""
        settings = self._settings
        pressure = min(observation.queue / settings.queue_max, 1.0)
        cv = 1.0 if observation.cv is None else observation.cv
        added = floor(settings.added_max / (1 + settings.beta * exp(-settings.gamma * cv * pressure)))
        needed = settings.share_in_time * observation.backlog_tokens
        in_time_s = max(settings.deadline_s - startup_s, 0.0)
        while added < settings.added_max and in_time_s * added * mu < needed:
            added += 1
        return added


def _throughput(shape: Shape) -> float:
    """T_k: tokens/s of one instance."""
    return shape.capacity_tokens_per_s / shape.replicas


def _mu_total(observation: Observation, *, forecast: bool) -> float:
    """The work to be served per second, `FORECAST_S` ahead along a rising trend."""
    rising = max(observation.slope_tokens_per_s2, 0.0) if forecast else 0.0
    return observation.tokens_per_s + rising * FORECAST_S
