"""What befalls a cluster while it serves: nodes fail, devices straggle, tenants come and go, allocation takes as long as it does.

Owns the rates. They are those of a bad day, many times what a cluster sees in the half hour that a run lasts, so that each run
meets several; what is read off is how a system comes through one, not how often there is one. The draws are of a run's seed
and know nothing of the system: all systems of a seed meet the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...policies.cluster.cluster_map import ClusterMap
from ..cluster.incidents import Incident, node_failures, stragglers, tenant_churn
from ..cluster.startup import AT_ONCE, OPENB_ALLOCATION_S, Quantiles
from .cells import CALM

NODE_LIFE_S, REPAIR_S = 4 * 3600.0, 600.0
"""A node fails so often, on average, and is back empty after that."""
STEADY_S, STRAGGLE_S, STRAGGLE_SLOWDOWN = 2 * 3600.0, 180.0, 1.0
"""A device straggles so often, for so long, and takes 1 + this times as long meanwhile."""
TENANCY_S = 1800.0
"""So long the tenants of a device stay, on average."""
Draw = Callable[[ClusterMap, float, int], Sequence[Incident]]
"""(map, seconds, seed) to what happens."""


class UnknownWeatherError(ValueError):
    """There is no weather of that name."""


@dataclass(frozen=True, slots=True)
class Weather:
    """One kind of trouble; ``allocation`` is how long devices that are not held are waited for."""

    title: str
    means: str
    draw: Draw
    allocation: Quantiles = AT_ONCE


def _nothing(_cluster: ClusterMap, _duration_s: float, _seed: int) -> Sequence[Incident]:
    return ()


def _failures(cluster: ClusterMap, duration_s: float, seed: int) -> Sequence[Incident]:
    return node_failures(cluster, NODE_LIFE_S, REPAIR_S, duration_s, seed)


def _stragglers(cluster: ClusterMap, duration_s: float, seed: int) -> Sequence[Incident]:
    return stragglers(cluster, STEADY_S, STRAGGLE_S, STRAGGLE_SLOWDOWN, duration_s, seed)


def _tenants(cluster: ClusterMap, duration_s: float, seed: int) -> Sequence[Incident]:
    return tenant_churn(cluster, TENANCY_S, duration_s, seed)


WEATHERS: dict[str, Weather] = {
    CALM: Weather("calm", "nothing happens beside the load, and a free device is allocated at once", _nothing),
    "failures": Weather(
        "nodes fail",
        f"each node fails every {NODE_LIFE_S / 3600:g} h on average, with its host memory, and is back empty after "
        f"{REPAIR_S / 60:g} min",
        _failures,
    ),
    "stragglers": Weather(
        "devices straggle",
        f"each device takes {1 + STRAGGLE_SLOWDOWN:g} times as long for {STRAGGLE_S / 60:g} min, every {STEADY_S / 3600:g} h "
        "on average",
        _stragglers,
    ),
    "tenants": Weather(
        "tenants come and go",
        f"every {TENANCY_S / 60:g} min on average the free memory of each device changes, and a device is waited for as GPU pods "
        "of a production cluster are (openb: median 2 s, one in ten over two minutes), so that plans are refused where the "
        "room has gone meanwhile",
        _tenants,
        OPENB_ALLOCATION_S,
    ),
}


def weather_of(name: str) -> Weather:
    """The weather of that name. Raises `UnknownWeatherError`."""
    try:
        return WEATHERS[name]
    except KeyError:
        raise UnknownWeatherError(f"no weather is called {name}; there are: {', '.join(WEATHERS)}") from None
