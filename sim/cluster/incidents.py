"""What happens to a cluster beside its load: co-tenants come, grow and go, devices straggle, nodes fail and come back.

Owns the draws. It must never know who serves. Co-tenants share a GPU in time: what computes beside a share u of the time makes ours
take 1 + u times as long. That is a model; what the tenants' memory traffic costs is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...policies.cluster.cluster_map import ClusterMap
from .startup import Quantiles

PAPER_SUBSCRIPTION = 2.16
"""Services per GPU in the FlexPipe paper's production clusters, ours included."""
PAPER_UTILISATION = Quantiles((0.0, 0.3, 0.5, 0.52, 0.83, 0.95, 1.0), (0.0, 0.02, 0.0916, 0.1, 0.3, 0.8053, 1.0))
"""What share of time a GPU's SMs compute there (its cluster C1): median 9.16 %, 31 % of GPUs from 10 to 30 %, 80.53 % at P95. The
mean of this table is 19 %, theirs 16.91 %."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Devices vanish with what is on them and come back empty. ``nodes`` are those whose host memory goes with them."""

    at_s: float
    devices: tuple[int, ...]
    back_s: float
    nodes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TenantsChange:
    """Co-tenants leave so many bytes of a device to served models, at least what these hold, and slow it so; None: as before."""

    at_s: float
    device: int
    free_bytes: int | None = None
    slowdown: float | None = None


Incident = Lost | TenantsChange


def cotenant_slowdowns(cluster: ClusterMap, seed: int, subscription: float = PAPER_SUBSCRIPTION) -> ClusterMap:
    """The map with slowdowns by a Poisson number of other services on each device, as busy as the paper's GPUs are."""
    chance = np.random.default_rng(seed)
    slowed = cluster.copy()
    for device, others in enumerate(chance.poisson(max(0.0, subscription - 1.0), cluster.devices)):
        busy = sum(PAPER_UTILISATION.draw(chance) for _ in range(others))
        slowed.update(device, slowdown=float(min(busy, others * 1.0)))
    return slowed


def node_failures(cluster: ClusterMap, mean_s: float, repair_s: float, duration_s: float, seed: int) -> list[Incident]:
    """Each node fails after an exponential time of mean ``mean_s``, again and again, and is back after ``repair_s``."""
    chance = np.random.default_rng(seed)
    found: list[Incident] = []
    for node in range(cluster.nodes):
        rows = cluster.devices_of_node(node)
        at_s = float(chance.exponential(mean_s))
        while at_s < duration_s:
            found.append(Lost(at_s, tuple(range(rows.start, rows.stop)), at_s + repair_s, (node,)))
            at_s += repair_s + float(chance.exponential(mean_s))
    return sorted(found, key=lambda incident: incident.at_s)


def stragglers(
    cluster: ClusterMap, mean_s: float, lasts_s: float, slowdown: float, duration_s: float, seed: int
) -> list[Incident]:
    """Each device is slowed by ``slowdown`` more for ``lasts_s`` after an exponential time of mean ``mean_s``, again and again."""
    chance = np.random.default_rng(seed)
    found: list[Incident] = []
    for device in range(cluster.devices):
        usual = float(cluster.slowdown[device])
        at_s = float(chance.exponential(mean_s))
        while at_s < duration_s:
            found.append(TenantsChange(at_s, device, slowdown=usual + slowdown))
            found.append(TenantsChange(at_s + lasts_s, device, slowdown=usual))
            at_s += lasts_s + float(chance.exponential(mean_s))
    return sorted(found, key=lambda incident: incident.at_s)


def tenant_churn(cluster: ClusterMap, mean_s: float, duration_s: float, seed: int) -> list[Incident]:
    """Now and then, every ``mean_s`` on each device, its tenants change: it gets the free memory that another of its model has.

    So the map's distribution stays as it is while its places change, which is what makes plans stale.
    """
    chance = np.random.default_rng(seed)
    alike: dict[int, list[int]] = {}
    for device in range(cluster.devices):
        alike.setdefault(int(cluster.total_bytes[device]), []).append(device)
    times = np.sort(chance.uniform(0.0, duration_s, chance.poisson(duration_s / mean_s * cluster.devices)))
    found: list[Incident] = []
    for at_s, device in zip(times.tolist(), chance.integers(0, cluster.devices, len(times)).tolist(), strict=True):
        like = _pick(chance, alike[int(cluster.total_bytes[device])])
        found.append(TenantsChange(at_s, device, int(cluster.free_bytes[like]), float(cluster.slowdown[like])))
    return found


def _pick(chance: np.random.Generator, devices: Sequence[int]) -> int:
    return devices[int(chance.integers(0, len(devices)))]
