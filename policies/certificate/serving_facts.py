"""What is certified of a serving configuration: its router's and its controller's numbers, and what makes them none.

Owns the values. It must never know what is claimed of them (`certificate.serving_certificate`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RouterFacts:
    """How requests are shared among replicas.

    - ``sharpness_per_s``: a replica's share falls by e for each ``1/sharpness`` seconds that its queue takes longer to drain;
      ``math.inf`` is least-work routing, which is what FlexPipe does (`policies.dispatch`).
    - ``report_age_s``: how old the router's view of the queues is; 0 where it counts them itself, as FlexPipe's does.
    - ``spread_s``: the region of the certificate, how far apart the replicas' drain times may be.
    - ``speed_error``: by what share of its capacity a replica's true speed may differ from what the router believes.
    - ``speed_drift_per_s``: how fast the logarithms of the speeds that it believes in move.
    - ``service_fall_per_s``: how much slower a replica may get as its queue grows (KV exhaustion, preemption), the largest -ds/dq.
    """

    sharpness_per_s: float = math.inf
    report_age_s: float = 0.0
    spread_s: float = 10.0
    speed_error: float = 0.0
    speed_drift_per_s: float = 0.0
    service_fall_per_s: float = 0.0

    def flaw(self) -> str | None:
        """Why these are no facts, or None."""
        if not self.sharpness_per_s > 0:
            return f"sharpness_per_s is {self.sharpness_per_s}; a router that ignores queues balances nothing, give one above 0"
        if not 0 < self.spread_s < math.inf:
            return f"spread_s is {self.spread_s}; give the region of the certificate, above 0"
        return _below_zero(self, "report_age_s", "speed_error", "speed_drift_per_s", "service_fall_per_s")


@dataclass(frozen=True, slots=True)
class ControllerFacts:
    """A running configuration.

    - ``capacities``, ``arriving``: what each replica can do and what comes, in one unit of work, per second.
    - ``drain_s``: within how long the controller wants a backlog gone.
    - ``startup_s``: from its decision until new capacity serves. ``lag_s``: how old its view of the load is.
    - ``dwell_s``: time between two changes, each of which multiplies the imbalance of queues by at most ``growth``; infinite: none.
    """

    capacities: tuple[float, ...]
    arriving: float
    drain_s: float
    startup_s: float
    lag_s: float
    dwell_s: float = math.inf
    growth: float = 1.0
    router: RouterFacts = RouterFacts()

    @property
    def load(self) -> float:
        """Work that arrives as a share of what can be done."""
        return self.arriving / sum(self.capacities)

    @property
    def share(self) -> float:
        """The slowest replica's share of all capacity."""
        return min(self.capacities) / sum(self.capacities)

    @property
    def balances(self) -> bool:
        """Whether there is anything to balance: several replicas, and work that arrives."""
        return len(self.capacities) > 1 and self.arriving > 0

    def flaw(self) -> str | None:
        """Why nothing can be certified, or None."""
        if not self.capacities or not all(0 < capacity < math.inf for capacity in self.capacities):
            return f"capacities are {self.capacities}; give each replica's, above 0"
        if not 0 < self.drain_s < math.inf:
            return f"drain_s is {self.drain_s}; no backlog drains at once, give a time above 0"
        if not self.dwell_s >= 0:
            return f"dwell_s is {self.dwell_s}; give the time between two changes"
        if not 1 <= self.growth < math.inf:
            return f"growth is {self.growth}; a change that does not make queues less even counts as 1"
        return _below_zero(self, "arriving", "startup_s", "lag_s") or self.router.flaw()


def _below_zero(facts: RouterFacts | ControllerFacts, *names: str) -> str | None:
    for name in names:
        value = getattr(facts, name)
        if not 0 <= value < math.inf:
            return f"{name} is {value}; it must be 0 or more and finite"
    return None
