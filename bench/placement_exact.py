"""The exact judge of placement: the whole problem as a mixed integer programme, solved by HiGHS, for small maps.

Owns a formulation that shares nothing with the search but the meaning of costs (`placement_pricing`): one binary per replica,
device and run of atoms, a flow over cuts that makes runs a chain, hops by what neighbouring runs have in common, one
variable for the slowest stage and one for the longest load. Needs scipy, an extra.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from ..policies.cluster.cluster_map import ClusterMap
from ..policies.placement.pricing import (
    Run,
    effective_speed,
    fragmentation_growth,
    free_bytes,
    load_ns,
    move_bytes_ns,
    price,
)
from ..policies.placement.values import PlacedReplica, PlacementRequest

SECONDS_MAX = 20.0
"""Given to one instance; what is not closed by then is not judged."""
OBJECTIVE_UNIT = 1e9
"""Thousandths of a nanosecond's worth in one unit of the programme's objective: a microsecond's worth."""


class ExactLibraryError(Exception):
    """There is nothing to solve with; the sentence says how to get it."""


class Verdict(NamedTuple):
    """What HiGHS says. ``closed``: it proved its answer. ``replicas`` is empty where there is no plan."""

    closed: bool
    replicas: tuple[PlacedReplica, ...]
    seconds: float


def require_exact_library() -> None:
    """Raise `ExactLibraryError` where scipy is not installed."""
    if find_spec("scipy") is None:
        raise ExactLibraryError("the exact judge needs scipy: pip install 'flexpipe-serve[bench]'")


class _Option(NamedTuple):
    """Replica ``replica`` may have atoms ``[first, end)`` on ``device``; times in ns, cost in thousandths of one's worth."""

    replica: int
    device: int
    first: int
    end: int
    compute_ns: int
    load_ns: int
    extra_cost: int


@dataclass(slots=True)
class _Programme:
    """Columns and rows of a mixed integer programme, collected one by one."""

    cost: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def column(self, cost: float, upper: float, *, whole: bool) -> int:
        self.cost.append(cost)
        self.upper.append(upper)
        self.whole.append(int(whole))
        return len(self.cost) - 1

    def row(self, low: float, terms: Iterable[tuple[int, float]], high: float) -> None:
        self.entries += [(len(self.low), column, factor) for column, factor in terms if factor]
        self.low.append(low)
        self.high.append(high)

    def solve(self, seconds_max: float) -> Any:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        rows, columns, factors = zip(*self.entries, strict=True)
        matrix = coo_array((factors, (rows, columns)), shape=(len(self.low), len(self.cost))).tocsr()
        return milp(
            np.array(self.cost),
            integrality=np.array(self.whole),
            bounds=Bounds(np.zeros(len(self.upper)), np.array(self.upper)),
            constraints=LinearConstraint(matrix, self.low, self.high),
            options={"time_limit": seconds_max, "mip_rel_gap": 0.0},
        )


def solve_exactly(cluster: ClusterMap, request: PlacementRequest, seconds_max: float = SECONDS_MAX) -> Verdict:
    """The cheapest plan of exactly ``request.replicas`` replicas, or that there is none.

    Raises ValueError where a hop between nearer devices can cost more than one between farther: the formulation rewards
    nearness, and would be wrong. Raises `ExactLibraryError`.
    """
    import time

    require_exact_library()
    began = time.perf_counter()
    options = _options(cluster, request)
    programme = _Programme()
    columns = [programme.column(option.extra_cost / OBJECTIVE_UNIT, 1, whole=True) for option in options]
    for device in range(cluster.devices):
        programme.row(0, [(c, 1) for c, option in zip(columns, options, strict=True) if option.device == device], 1)
    for replica in range(request.replicas):
        mine = [(c, option) for c, option in zip(columns, options, strict=True) if option.replica == replica]
        _chain(programme, request, mine)
        _times(programme, cluster, request, mine)
        _loads(programme, cluster, request, mine)
    if not options:
        return Verdict(closed=True, replicas=(), seconds=time.perf_counter() - began)
    answer = programme.solve(seconds_max)
    seconds = time.perf_counter() - began
    if answer.status == 2 or answer.x is None:  # infeasible, or nothing found in time
        return Verdict(answer.status == 2, (), seconds)
    chosen = [option for c, option in zip(columns, options, strict=True) if answer.x[c] > 0.5]
    replicas = tuple(price(cluster, request, r, _runs(chosen, r)) for r in range(request.replicas))
    return Verdict(answer.status == 0, replicas, seconds)


def _runs(chosen: Sequence[_Option], replica: int) -> list[Run]:
    mine = sorted((option for option in chosen if option.replica == replica), key=lambda option: option.first)
    return [(option.device, option.end) for option in mine]


def _options(cluster: ClusterMap, request: PlacementRequest) -> list[_Option]:
    atoms, options = request.atoms, []
    for replica in range(request.replicas):
        for device in set(range(cluster.devices)) - request.occupied:
            free, speed = free_bytes(cluster, request, replica, device), effective_speed(cluster, device)
            loads = load_ns(cluster, request, replica, device, range(len(atoms)))
            moves = [ns for _, ns in move_bytes_ns(cluster, request, replica, device, range(len(atoms)))]
            for first in range(len(atoms)):
                need, work, load, move = request.workspace_bytes, 0, 0, 0
                for end in range(first + 1, len(atoms) + 1):
                    need += request.memory_bytes(atoms[end - 1])
                    work += atoms[end - 1].compute_ns
                    load += loads[end - 1]
                    move += moves[end - 1]
                    if need > free:
                        break
                    growth = fragmentation_growth(request.fragment_mix, free, need)
                    extra = request.weights.move * move + request.weights.fragmentation * growth
                    options.append(_Option(replica, device, first, end, round(work / speed), load, extra))
    return options


def _chain(programme: _Programme, request: PlacementRequest, mine: Sequence[tuple[int, _Option]]) -> None:
    """Runs begin where others end, from the first atom to the last, so many at least and at most."""
    last = len(request.atoms)
    programme.row(1, [(c, 1) for c, option in mine if option.first == 0], 1)
    for cut in range(1, last):
        ends = [(c, 1.0) for c, option in mine if option.end == cut]
        begins = [(c, -1.0) for c, option in mine if option.first == cut]
        programme.row(0, ends + begins, 0)
    programme.row(request.stages_min, [(c, 1) for c, _ in mine], request.stages_max)


def _times(
    programme: _Programme, cluster: ClusterMap, request: PlacementRequest, mine: Sequence[tuple[int, _Option]]
) -> None:
    """The way of a token in microseconds, and the slowest stage: compute and hop of the run that ends at each cut."""
    weights, unit = request.weights, OBJECTIVE_UNIT / 1e3
    most = np.inf if request.step_ns_max is None else request.step_ns_max / 1e3
    slowest = programme.column(weights.bottleneck / unit, most, whole=False)
    way: list[tuple[int, float]] = []
    for cut in range(1, len(request.atoms) + 1):
        step = [(c, option.compute_ns / 1e3) for c, option in mine if option.end == cut]
        if cut < len(request.atoms):
            step += _hop(programme, cluster, request, mine, cut)
        programme.row(-np.inf, [*step, (slowest, -1)], 0)
        way += step
    longest = np.inf if request.tpot_ns_max is None else request.tpot_ns_max / 1e3
    token = programme.column(weights.tpot / unit, longest, whole=False)
    programme.row(-np.inf, [*way, (token, -1)], 0)


def _hop(
    programme: _Programme,
    cluster: ClusterMap,
    request: PlacementRequest,
    mine: Sequence[tuple[int, _Option]],
    cut: int,
) -> list[tuple[int, float]]:
    """The hop's microseconds at a cut: the farthest hop's, less what both runs' being in one rack, node and island saves."""
    sends = [link.send_ns(request.atoms[cut - 1].activation_bytes) for link in cluster.links.by_distance()]
    if sends != sorted(sends):
        raise ValueError("a hop to a nearer device costs more than one to a farther: these links cannot be judged")
    ends = [(c, option) for c, option in mine if option.end == cut]
    begins = [(c, option) for c, option in mine if option.first == cut]
    terms = [(c, sends[-1] / 1e3) for c, _ in ends]
    rack = cluster.rack_of[cluster.node_of]
    for level, group in enumerate((cluster.island_of, cluster.node_of, rack)):
        saved = (sends[level + 1] - sends[level]) / 1e3
        for place in {int(group[option.device]) for _, option in ends} if saved else ():
            both = programme.column(0, 1, whole=False)
            for side in (ends, begins):
                here = [(c, -1.0) for c, option in side if group[option.device] == place]
                programme.row(-np.inf, [(both, 1.0), *here], 0)
            terms.append((both, -saved))
    return terms


def _loads(
    programme: _Programme, cluster: ClusterMap, request: PlacementRequest, mine: Sequence[tuple[int, _Option]]
) -> None:
    """The start-up in milliseconds is no shorter than any node's loading."""
    startup = programme.column(request.weights.startup * 1e6 / OBJECTIVE_UNIT, np.inf, whole=False)
    for node in range(cluster.nodes):
        here = [(c, option.load_ns / 1e6) for c, option in mine if cluster.node_of[option.device] == node]
        programme.row(-np.inf, [*here, (startup, -1)], 0)
