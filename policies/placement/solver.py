"""Where a model runs: how many replicas, cut where, on which devices, together; or why nowhere.

Owns the strategy. What a plan costs is `pricing`'s, the search among a few dozen devices `search`'s, to be
read, and `kernels`', to be fast. A map of few devices with room is one such search (`small`); in a large one
the regions that look best are searched, and what is found is remembered until an event touches it (`regions`).
Pure values: the same map and request have the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..cluster.cluster_map import ClusterMap
from ..types import NS_PER_S
from .effort import Engine, kernels
from .pricing import price
from .problem import NEVER, ProblemMaker
from .reasons import explain
from .regions import LargeMap
from .small import SmallMap
from .survey import Surveyor
from .values import NoPlacement, PlacedReplica, Placement, PlacementRequest


def place(cluster: ClusterMap, request: PlacementRequest, engine: Engine | None = None) -> Placement | NoPlacement:
    """The cheapest plan that the search finds, or the reason why there is none."""
    return PlacementSolver(cluster, request, engine).solve()


class PlacementSolver:
    """Solves one request on one map again and again while the map changes; only what an event touched is searched anew."""

    def __init__(self, cluster: ClusterMap, request: PlacementRequest, engine: Engine | None = None) -> None:
        self._cluster, self._request = cluster, request
        self._search, floors = engine or kernels()
        self._maker = ProblemMaker(cluster, request)
        self._surveyor = Surveyor(cluster, request, self._maker, floors)
        self._large = LargeMap(cluster, request, self._search, self._maker, self._surveyor)

    def solve(self) -> Placement | NoPlacement:
        """The plan for the map as it is now."""
        small = SmallMap(self._cluster, self._request, self._search, self._maker, self._surveyor)
        return self._on_small(small) if small.is_small() else self._on_large()

    def _on_small(self, small: SmallMap) -> Placement | NoPlacement:
        wanted = self._request.replicas
        runs, floor = small.place(wanted)
        if not runs:
            return explain(self._cluster, self._request, wanted, proved=floor >= NEVER)
        replicas = [price(self._cluster, self._request, number, each) for number, each in enumerate(runs)]
        while self._more_wanted(replicas):
            another = small.place_another(len(replicas), _taken(replicas))
            if not another:
                break
            replicas.append(price(self._cluster, self._request, len(replicas), another))
        return self._placement(replicas, floor if len(replicas) == wanted else 0)

    def _on_large(self) -> Placement | NoPlacement:
        replicas: list[PlacedReplica] = []
        bound = 0
        while len(replicas) < self._request.replicas or self._more_wanted(replicas):
            region, floor = self._large.place(len(replicas), _taken(replicas))
            if not region.runs:
                if len(replicas) < self._request.replicas:
                    return explain(self._cluster, self._request, self._request.replicas, proved=False)
                break
            replicas.append(price(self._cluster, self._request, len(replicas), region.runs))
            bound += floor
        return self._placement(replicas, bound)

    def _more_wanted(self, replicas: Sequence[PlacedReplica]) -> bool:
        made = sum(NS_PER_S / max(replica.terms.bottleneck_ns, 1) for replica in replicas)
        return len(replicas) < self._request.replicas_max and made < self._request.steps_per_s

    def _placement(self, replicas: Sequence[PlacedReplica], bound: int) -> Placement:
        cost = sum(replica.terms.cost(self._request.weights) for replica in replicas)
        return Placement(tuple(replicas), cost, min(bound, cost), self._cluster.seen(sorted(_taken(replicas))))


def _taken(replicas: Sequence[PlacedReplica]) -> frozenset[int]:
    return frozenset(stage.device for replica in replicas for stage in replica.stages)
