"""Regions of a large map: searched where a replica may stand well, and remembered until an event touches them.

Owns what stays true after an event. Every rack has a floor under what a replica within it costs. The most promising racks, and
a choice of devices across all racks, are scouted with a narrow beam; the best of them are searched in earnest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .cluster_map import ClusterMap
from .placement_effort import SCOUT, SETTLE, Search, deepened, mended
from .placement_pricing import Run
from .placement_problem import NEVER, Integers, ProblemMaker
from .placement_search import Found
from .placement_survey import Survey, Surveyor, choose
from .placement_values import PlacementRequest

WHOLE_MAP = -1
"""The region of all racks; others are racks."""
CANDIDATES = 32
"""Devices chosen from a region."""
RACKS_SCOUTED = 8
REGIONS_SETTLED = 2
DIRTY_RACKS_MAX = 32
"""Above this, the whole map is surveyed again."""
WANTED_MAX = 16
"""Devices that are always candidates."""


class Region(NamedTuple):
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
    regions: dict[int, Region] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """The region with the cheapest chain."""
        return min(self.regions, key=lambda name: (self.regions[name].cost, name))


class LargeMap:
    """Places replicas on one map, of which it remembers what no event has touched since."""

    def __init__(
        self,
        cluster: ClusterMap,
        request: PlacementRequest,
        search: Search,
        maker: ProblemMaker,
        surveyor: Surveyor,
    ) -> None:
        self._cluster, self._request, self._search = cluster, request, search
        self._maker, self._surveyor = maker, surveyor
        self._known: dict[int, _Knowledge] = {}

    def place(self, number: int, taken: frozenset[int]) -> tuple[Region, int]:
        """The best region for replica ``number`` beside ``taken``, and what it costs at least with the map for itself."""
        known = self._knowledge(number, taken)
        self._scout(number, known)
        for name in sorted(known.regions, key=lambda name: (known.regions[name].cost, name))[:REGIONS_SETTLED]:
            if not known.regions[name].settled:
                known.regions[name] = self._settled(number, known.regions[name])
        survey = self._surveyor.survey(number, frozenset()) if taken else known.survey
        return known.regions[known.best], self._surveyor.floor(survey) - self._surveyor.discount(survey)

    def _scout(self, number: int, known: _Knowledge) -> None:
        """Search the regions that look best and are not known yet."""
        floors = known.survey.rack_floor
        wanted = self._wanted(number)
        near = {int(self._cluster.rack_of[self._cluster.node_of[row]]) for row in wanted}
        discount = self._surveyor.discount(known.survey)
        for rack in dict.fromkeys([*map(int, np.argsort(floors, kind="stable")[:RACKS_SCOUTED]), *sorted(near)]):
            best = known.regions[known.best].cost if known.regions else NEVER
            if rack not in known.regions and floors[rack] < NEVER and floors[rack] - discount < best:
                part = slice(int(known.survey.bounds[rack]), int(known.survey.bounds[rack + 1]))
                known.regions[rack] = self._scouted(number, known.survey, part, wanted)
        if WHOLE_MAP not in known.regions:
            known.regions[WHOLE_MAP] = self._scouted(number, known.survey, slice(None), wanted)

    def _scouted(self, number: int, survey: Survey, part: slice, wanted: list[int]) -> Region:
        rows = choose(survey, part, wanted, CANDIDATES, self._request.stages_max)
        return Region(rows, deepened(self._search, self._maker.problem(number, rows), SCOUT), settled=False)

    def _settled(self, number: int, region: Region) -> Region:
        problem = self._maker.problem(number, region.rows)
        found = mended(self._search, problem, deepened(self._search, problem, SETTLE, region.found))
        return Region(region.rows, found, settled=True)

    def _wanted(self, number: int) -> list[int]:
        """Devices that are worth a look wherever they are: those of the present stages, and of nodes with warm weights."""
        request, cluster = self._request, self._cluster
        present = request.present[number] if number < len(request.present) else ()
        warm = [range(*cluster.devices_of_node(node).indices(cluster.devices)) for node in sorted(request.warm)]
        rows = [*(stage.device for stage in present), *(row for rows in warm for row in rows)]
        return list(dict.fromkeys(rows))[:WANTED_MAX]

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
            if gone:
                del known.regions[WHOLE_MAP]
