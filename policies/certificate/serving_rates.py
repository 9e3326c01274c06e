"""How fast replicas' queues even out, and how fast a backlog may be drained: the rates behind the serving certificate.

Owns the fluid model's formulas. It must never know where their numbers come from. Work is in tokens; replica i holds a queue
that takes it ``x_i`` seconds to drain at its capacity ``C_i``, and has the share ``pi_i`` of all capacity. Work arrives at ``load``
times the total capacity and goes to replica i with the share ``p_i``, proportional to ``pi_i e^(-beta x_i)``:

    x_i' = load p_i / pi_i - s_i / C_i,        Jacobian -load beta diag(1/pi) (diag(p) - p p^T) - diag(s_i').

Its first term does not see the same delay added to every replica; orthogonally to that it is negative in the norm
``sqrt(sum pi_i x_i^2)``, *at any load, overload too*. What is left, the total backlog, no router can contract: that is the
controller's part, an integrator behind dead time. ``beta`` infinite is least-work routing. ``spread_s`` is max x - min x.

Only the equal-capacity forms and the drain rule are checked in the tests against the fluid model; real queues are stochastic,
integer and never negative, so these are rules for not thrashing, not promises of latency. Derivations: ``docs/contraction.md``.
"""

from __future__ import annotations

import math

DRAIN_FACTOR = 1.3
"""A backlog drained no faster than this times (start-up + lag) leaves 45 degrees of phase margin."""


def least_weight(share: float, sharpness_per_s: float, spread_s: float) -> float:
    """The least that ``p_i / pi_i`` can be while queues are within ``spread_s``, where the least share is ``share``."""
    return 1 / (share + (1 - share) * _exp(sharpness_per_s * spread_s))


def greatest_weight(share: float, sharpness_per_s: float, spread_s: float) -> float:
    """The most that ``p_i / pi_i`` can be while queues are within ``spread_s``, where the least share is ``share``."""
    return 1 / (share + (1 - share) * math.exp(-sharpness_per_s * spread_s))


def balance_rate(load: float, share: float, sharpness_per_s: float, spread_s: float) -> float:
    """How fast delays even out while they are within ``spread_s``, at least. Per second; ``share`` is the least of capacity.

    Finite sharpness: ``load beta min p_i / pi_i``, a rate of contraction between any two courses, since
    ``Var_p(x) >= min(p_i / pi_i) Var_pi(x)``. Least work: ``load / spread``, the rate towards even delays only, since the
    variance falls by ``2 load (mean - min)`` a second and is at most ``(mean - min) spread`` (Bhatia and Davis); its flow is
    monotone, so two courses never part, but they need not meet exponentially.
    """
    if math.isinf(sharpness_per_s):
        return load / spread_s
    return load * sharpness_per_s * least_weight(share, sharpness_per_s, spread_s)


def ball_radius_s(share: float, spread_s: float) -> float:
    """Distance from even delays within which no two delays differ by more than ``spread_s``. Seconds, in the norm above."""
    return spread_s * math.sqrt(share / 2)


def sharpness_max_per_s(load: float, report_age_s: float, weight: float = 1.0) -> float:
    """Routers as sharp as this, on reports this old, overshoot: ``2 / (load age weight)``; ``math.inf`` where none does.

    ``weight`` is the most that ``p_i / pi_i`` can be: 1 at balance, `greatest_weight` away from it. With n equal replicas and
    queues counted in seconds of one replica's work this is ``2 n / (lambda age)`` at balance.
    """
    product = load * report_age_s * weight
    return 2 / product if product > 0 else math.inf


def pause_growth(share: float, pause_s: float, spread_s: float) -> float:
    """By how much a change multiplies the imbalance of queues, where each replica stands still for ``pause_s`` at its time.

    Those that have stood still so far are behind by the pause, which is at most half of it in the norm above; and it is set against
    the distance that the region allows, `ball_radius_s`.
    """
    return 1 + pause_s / (2 * ball_radius_s(share, spread_s))


def drain_s_min(startup_s: float, lag_s: float) -> float:
    """The least time within which a controller may want a backlog gone, by how late its capacity comes. Seconds."""
    return DRAIN_FACTOR * (startup_s + lag_s)


def phase_margin_deg(drain_s: float, startup_s: float, lag_s: float) -> float:
    """Of the loop ``e^(-s startup) / (s drain (1 + s lag))``: how far it is from oscillating. Degrees; negative: it grows.

    The gain is 1 where ``w drain sqrt(1 + (w lag)^2) = 1``, a quadratic in ``w^2``.
    """
    crossover = math.sqrt(2 / drain_s / (drain_s + math.hypot(drain_s, 2 * lag_s)))
    return 90 - math.degrees(math.atan(crossover * lag_s) + crossover * startup_s)


def tracking_sensitivity(load: float, share: float, sharpness_per_s: float, spread_s: float) -> float:
    """How much the field changes, at most, with the logarithms of the speeds that the router believes in."""
    return load * greatest_weight(share, sharpness_per_s, spread_s)


def _exp(power: float) -> float:
    return math.exp(power) if power < 700 else math.inf
