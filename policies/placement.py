"""Where a model runs: how many replicas, cut where, on which devices, together; or why nowhere.

Owns the strategy: which regions of the map are searched, how hard, and what of it stays true after an event. What a plan
costs is `placement_pricing`'s, the search of one region `placement_search`'s. Pure values; a solver keeps what it has found,
and asks its map's epochs what of that is out of date.

Replicas are placed one after the other, each at its best given those before it. A map of few devices is one region, searched
wider and wider until the answer is proved or costs too much to prove. In a large one, every rack has a floor under what a
replica within it costs; the most promising racks, and a choice of devices across all racks, are scouted with a narrow beam; the
best of them are searched with a wider one, and the winner's chain is mended: all its cuts anew, then each of its devices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from .cluster_map import ClusterMap
from .placement_pricing import Run, price
from .placement_problem import CANDIDATES_MAX, NEVER, Integers, ProblemMaker, ReplicaProblem
from .placement_reasons import explain
from .placement_search import Effort, Found
from .placement_survey import Floors, Survey, Surveyor, choose
from .placement_values import NoPlacement, PlacedReplica, Placement, PlacementRequest
from .types import NS_PER_S

WHOLE_MAP = -1
"""The region of all racks; others are racks."""
CANDIDATES = 32
"""Devices chosen from a large region."""
RACKS_SCOUTED = 8
DIRTY_RACKS_MAX = 32
"""Above this, the whole map is surveyed again."""
WANTED_MAX = 16
REGIONS_SETTLED = 2
SCOUT, SETTLE, MEND = (
    Effort(12, 6, every_device=False),
    Effort(64, 8, every_device=False),
    Effort(24, 1 << 20, every_device=True),
)
WIDTHS = (16, 128, 1024, 8192)
STATES_MAX = 200_000
"""States that may be looked at to prove a small map's answer; a wider beam is not begun where it would probably need more."""
GUESSES = (2.2, 1.6, 1.3, 1.15, 1.06, 1.0)
"""Bottlenecks to fill stages up to, as multiples of the least that there could be."""


STAGES_HALVED_MIN = 3
NOTHING = Found(NEVER, (), (), 0, 0)


class Search(Protocol):
    """`placement_search.search`, or its twin in `placement_kernels`."""

    def __call__(
        self,
        problem: ReplicaProblem,
        guesses: Integers,
        effort: Effort,
        incumbent: int = NEVER,
        order: tuple[int, ...] = (),
    ) -> Found:
        """Find the best chain."""


class Engine(NamedTuple):
    """Who does the heavy work. All engines give the same answers."""

    search: Search
    floors: Floors


def kernels() -> Engine:
    """The compiled engine; compiles at its first use on a machine, for some seconds."""
    from . import placement_kernels

    return Engine(placement_kernels.search, placement_kernels.floors)


def place(cluster: ClusterMap, request: PlacementRequest, engine: Engine | None = None) -> Placement | NoPlacement:
    """The cheapest plan that the search finds, or the reason why there is none. The same input has the same answer."""
    return PlacementSolver(cluster, request, engine).solve()


class _Region(NamedTuple):
    """What a search of a region found: its candidates, the best chain of them, and whether it was searched in earnest."""

    rows: Integers
    found: Found
    settled: bool

    @property
    def runs(self) -> tuple[Run, ...]:
        """The chain by rows of the map."""
        return tuple((int(self.rows[c]), end) for c, end in zip(self.found.devices, self.found.ends, strict=True))

    @property
    def cost(self) -> int:
        """`NEVER` where there is no chain."""
        return self.found.cost if self.found.devices else NEVER


@dataclass(slots=True)
class _Knowledge:
    """What is known of one replica's placement, beside which devices of other replicas, and as of which epochs."""

    survey: Survey
    taken: frozenset[int]
    now: int
    rack_epoch: Integers
    regions: dict[int, _Region] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """The region with the cheapest chain."""
        return min(self.regions, key=lambda name: (self.regions[name].cost, name))


class PlacementSolver:
    """Solves one request on one map again and again while the map changes; only what an event touched is searched anew."""

    def __init__(self, cluster: ClusterMap, request: PlacementRequest, engine: Engine | None = None) -> None:
        self._cluster, self._request = cluster, request
        self._engine = engine or kernels()
        self._maker = ProblemMaker(cluster, request)
        self._surveyor = Surveyor(cluster, request, self._maker, self._engine.floors)
        self._known: dict[int, _Knowledge] = {}

    def solve(self) -> Placement | NoPlacement:
        """The plan for the map as it is now."""
        request = self._request
        replicas: list[PlacedReplica] = []
        bound, taken = 0, frozenset[int]()
        for number in range(max(request.replicas, request.replicas_max)):
            if number >= request.replicas and _steps_per_s(replicas) >= request.steps_per_s:
                break
            known = self._knowledge(number, taken)
            region, floor = self._small(number, known) if _is_small(known.survey) else self._large(number, known)
            if not region.found.devices:
                if number >= request.replicas:
                    break
                return explain(self._cluster, request, number, taken, proved=floor >= NEVER)
            replicas.append(price(self._cluster, request, number, region.runs))
            bound += floor if not taken else self._floor_alone(number)
            taken |= {device for device, _ in region.runs}
        cost = sum(replica.terms.cost(request.weights) for replica in replicas)
        return Placement(tuple(replicas), cost, min(bound, cost), self._cluster.seen(sorted(taken)))

    # ----- what is known already -----

    def _knowledge(self, number: int, taken: frozenset[int]) -> _Knowledge:
        """What is known of a replica, after racks in which anything has changed were surveyed again and forgotten."""
        cluster = self._cluster
        known = self._known.get(number)
        dirty = set[int]() if known is None else self._dirty_racks(known, taken)
        if known is None or len(dirty) > DIRTY_RACKS_MAX:
            survey = self._surveyor.survey(number, taken)
            known = _Knowledge(survey, taken, cluster.now, cluster.rack_epoch.copy())
        elif dirty:
            self._forget(known, taken, dirty)
            for rack in dirty:
                known.survey.replace_rack(rack, self._surveyor.survey_rack(number, taken, rack))
            known.taken, known.now, known.rack_epoch = taken, cluster.now, cluster.rack_epoch.copy()
        self._known[number] = known
        return known

    def _dirty_racks(self, known: _Knowledge, taken: frozenset[int]) -> set[int]:
        cluster = self._cluster
        changed = set(map(int, np.flatnonzero(cluster.rack_epoch != known.rack_epoch)))
        return changed | {int(cluster.rack_of[cluster.node_of[row]]) for row in taken ^ known.taken}

    def _forget(self, known: _Knowledge, taken: frozenset[int], dirty: set[int]) -> None:
        for rack in dirty:
            known.regions.pop(rack, None)
        whole = known.regions.get(WHOLE_MAP)
        if whole is not None:
            gone = (self._cluster.epoch[whole.rows] > known.now).any() or (taken ^ known.taken) & set(
                map(int, whole.rows)
            )
            if gone or _is_small(known.survey):
                del known.regions[WHOLE_MAP]

    def _floor_alone(self, number: int) -> int:
        """What a replica costs at least if it had the map for itself."""
        survey = self._surveyor.survey(number, frozenset())
        return self._surveyor.floor(survey) - self._surveyor.discount(survey)

    # ----- small maps -----

    def _small(self, number: int, known: _Knowledge) -> tuple[_Region, int]:
        region = known.regions.get(WHOLE_MAP)
        if region is None:
            region = known.regions[WHOLE_MAP] = _Region(
                known.survey.rows, self._widened(number, known.survey), settled=True
            )
        return region, region.found.floor

    def _widened(self, number: int, survey: Survey) -> Found:
        best = NOTHING
        if not len(survey.rows):
            return best._replace(floor=NEVER)
        problem = self._maker.problem(number, survey.rows)
        guesses, looked_at = bottleneck_guesses(problem), 0
        for width in WIDTHS:
            found = self._engine.search(problem, guesses, Effort(width, 16, every_device=True), best.cost)
            looked_at += found.states
            best = _better(best, found)
            if best.floor >= best.cost or looked_at + 4 * found.states > STATES_MAX:
                break
        return best if best.floor >= best.cost else self._mended(problem, guesses, best)

    # ----- large maps -----

    def _large(self, number: int, known: _Knowledge) -> tuple[_Region, int]:
        self._scout(number, known)
        for name in sorted(known.regions, key=lambda name: (known.regions[name].cost, name))[:REGIONS_SETTLED]:
            if not known.regions[name].settled:
                known.regions[name] = self._settled(number, known.regions[name])
        floor = self._surveyor.floor(known.survey) - self._surveyor.discount(known.survey)
        return known.regions[known.best], floor

    def _scout(self, number: int, known: _Knowledge) -> None:
        """Search the regions that look best and are not known yet."""
        floors = known.survey.rack_floor
        wanted = self._wanted(number)
        near = {int(self._cluster.rack_of[self._cluster.node_of[row]]) for row in wanted}
        discount = self._surveyor.discount(known.survey)
        for rack in dict.fromkeys([*map(int, np.argsort(floors, kind="stable")[:RACKS_SCOUTED]), *sorted(near)]):
            best = known.regions[known.best].cost if known.regions else NEVER
            if rack not in known.regions and floors[rack] - discount < best:
                part = slice(int(known.survey.bounds[rack]), int(known.survey.bounds[rack + 1]))
                known.regions[rack] = self._scouted(number, known.survey, part, wanted)
        if WHOLE_MAP not in known.regions:
            known.regions[WHOLE_MAP] = self._scouted(number, known.survey, slice(None), wanted)

    def _scouted(self, number: int, survey: Survey, part: slice, wanted: list[int]) -> _Region:
        rows = choose(survey, part, wanted, CANDIDATES, self._request.stages_max)
        problem = self._maker.problem(number, rows)
        return _Region(rows, self._deepened(problem, bottleneck_guesses(problem), SCOUT, NOTHING), settled=False)

    def _settled(self, number: int, region: _Region) -> _Region:
        problem = self._maker.problem(number, region.rows)
        guesses = bottleneck_guesses(problem)
        found = self._deepened(problem, guesses, SETTLE, region.found)
        return _Region(region.rows, self._mended(problem, guesses, found), settled=True)

    def _deepened(self, problem: ReplicaProblem, guesses: Integers, effort: Effort, best: Found) -> Found:
        """A search with few stages allowed, then with twice as many, and so on: a beam that may use many forgets short chains."""
        for stages in _stage_limits(problem):
            limits = problem.limits.copy()
            limits[1] = stages
            best = _better(best, self._engine.search(problem._replace(limits=limits), guesses, effort, best.cost))
        return best

    def _mended(self, problem: ReplicaProblem, guesses: Integers, found: Found) -> Found:
        """The chain with all cuts anew, then with each device in turn free to be another."""
        if not found.devices:
            return found
        best = _better(found, self._engine.search(problem, guesses, MEND, found.cost, found.devices))
        for stage in range(len(best.devices)):
            order = (*best.devices[:stage], -1, *best.devices[stage + 1 :])
            best = _better(best, self._engine.search(problem, guesses, SCOUT, best.cost, order))
        return best

    def _wanted(self, number: int) -> list[int]:
        """Devices that are worth a look wherever they are: those of the present stages, and of nodes with warm weights."""
        request, cluster = self._request, self._cluster
        present = request.present[number] if number < len(request.present) else ()
        warm = [range(*cluster.devices_of_node(node).indices(cluster.devices)) for node in sorted(request.warm)]
        rows = [*(stage.device for stage in present), *(row for rows in warm for row in rows)]
        return list(dict.fromkeys(rows))[:WANTED_MAX]


def bottleneck_guesses(problem: ReplicaProblem) -> Integers:
    """Bottlenecks to fill stages up to, descending from none at all."""
    fastest = problem.speed[problem.by_speed[: int(problem.limits[1])]]
    least = max(float(problem.work[-1]) / float(fastest.sum()), float(np.diff(problem.work).max()) / float(fastest[0]))
    return np.array([NEVER, *(int(least * factor) for factor in GUESSES)], np.int64)


def _stage_limits(problem: ReplicaProblem) -> list[int]:
    """Numbers of stages to allow, ascending: halves of the most, as long as the largest devices could hold the model."""
    least, most = int(problem.limits[0]), int(problem.limits[1])
    held = np.cumsum(problem.room[problem.by_room])
    least = max(least, int(np.searchsorted(held, problem.need[-1])) + 1)
    limits = [most]
    while limits[0] // 2 >= max(least, STAGES_HALVED_MIN):
        limits.insert(0, limits[0] // 2)
    return limits


def _better(found: Found, other: Found) -> Found:
    """The cheaper, with the better floor and the states of both."""
    best = other if other.devices and other.cost < found.cost else found
    return best._replace(states=found.states + other.states, floor=min(max(found.floor, other.floor), best.cost))


def _is_small(survey: Survey) -> bool:
    return len(survey.rows) <= CANDIDATES_MAX


def _steps_per_s(replicas: list[PlacedReplica]) -> float:
    return sum(NS_PER_S / max(replica.terms.bottleneck_ns, 1) for replica in replicas)
