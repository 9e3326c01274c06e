"""Regions of a large map: searched where a replica may stand well, and remembered until an event touches them.

Owns what stays true after an event. Every rack has a floor under what a replica within it costs. The most promising racks, and
a choice of devices across all racks, are scouted with a narrow beam; the best of them are searched in earnest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..cluster.cluster_map import ClusterMap
from .effort import (
    NOTHING,
    REPAIR,
    ROOMY,
    SCOUT,
    SETTLE,
    Search,
    better,
    bottleneck_guesses,
    deepened,
    mended,
)
from .pricing import Run
from .problem import CANDIDATES_MAX, NEVER, Integers, ProblemMaker
from .search import Effort, Found
from .survey import Survey, Surveyor, choose
from .values import PlacementRequest

WHOLE_MAP = -1
"""The region of all racks; others are racks."""
CANDIDATES = 48
"""Devices chosen from a region."""
RACKS_SCOUTED = 8
REGIONS_SETTLED = 2
DIRTY_RACKS_MAX = 32
"""Above this, the whole map is surveyed again."""
WORN_MAX = 16
"""Changed candidates of a region, above which they are chosen again."""
WANTED_MAX = 16
"""Devices that are always candidates."""


class Region(NamedTuple):
    """What a search of a region found: its candidates, the best chain of them, and whether it was searched in earnest.

    ``worn`` is how many of its candidates have changed since they were chosen.
    """

    rows: Integers
    found: Found
    settled: bool
    worn: int = 0

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
    """What is known of one replica's placement, beside which devices of other replicas, and as of which epochs.

    ``floor`` is what it costs at least with the map for itself. Where devices only lose, the old one stays true; where one
    gains, none is known, since a new one would take longer than all else that an event asks for.
    """

    survey: Survey
    taken: frozenset[int]
    now: int
    rack_epoch: Integers
    floor: int
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
        # After an event there is no time for a search in earnest: what was scouted is mended.
        effort = SCOUT if known.regions else SETTLE
        for attempt in (self._scout, self._scout_anew, self._look_for_room):
            attempt(number, known)
            for name in sorted(known.regions, key=lambda name: (known.regions[name].cost, name))[:REGIONS_SETTLED]:
                if not known.regions[name].settled:
                    known.regions[name] = self._settled(number, known.regions[name], effort)
            if known.regions[known.best].found.devices:
                break
            effort = SETTLE
        return known.regions[known.best], known.floor

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

    def _scout_anew(self, number: int, known: _Knowledge) -> None:
        """Choose all candidates again: those that were chosen before the last events may have no room left."""
        known.regions.clear()
        self._scout(number, known)

    def _look_for_room(self, number: int, known: _Knowledge) -> None:
        """Where no chain was found among good devices, search the largest of the whole map, good or not."""
        if not len(known.survey.rows):
            return
        largest = np.argsort(-known.survey.room, kind="stable")[:CANDIDATES_MAX]
        rows = known.survey.rows[np.sort(largest)]
        found = deepened(self._search, self._maker.problem(number, rows), ROOMY)
        known.regions[WHOLE_MAP] = Region(rows, found, settled=False)

    def _scouted(self, number: int, survey: Survey, part: slice, wanted: list[int]) -> Region:
        rows = choose(survey, part, wanted, CANDIDATES, self._request.stages_max)
        if not len(rows):
            return Region(rows, NOTHING, settled=True)
        return Region(rows, deepened(self._search, self._maker.problem(number, rows), SCOUT), settled=False)

    def _settled(self, number: int, region: Region, effort: Effort) -> Region:
        """The region searched with more effort than it was scouted with, where there is more, and its chain mended."""
        problem, found = self._maker.problem(number, region.rows), region.found
        if effort != SCOUT:
            found = deepened(self._search, problem, effort, found)
        return region._replace(found=mended(self._search, problem, found), settled=True)

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
            alone = self._surveyor.survey(number, frozenset())
            survey = self._surveyor.survey(number, taken) if taken else alone
            floor = self._surveyor.floor(alone) - self._surveyor.discount(alone)
            known = _Knowledge(survey, taken, cluster.now, cluster.rack_epoch.copy(), floor)
        elif dirty:
            self._update(number, known, taken, dirty)
        self._known[number] = known
        return known

    def _dirty_racks(self, known: _Knowledge, taken: frozenset[int]) -> set[int]:
        cluster = self._cluster
        changed = set(map(int, np.flatnonzero(cluster.rack_epoch != known.rack_epoch)))
        return changed | {int(cluster.rack_of[cluster.node_of[row]]) for row in taken ^ known.taken}

    def _update(self, number: int, known: _Knowledge, taken: frozenset[int], dirty: set[int]) -> None:
        """Survey the racks anew, and repair the regions that changed devices are in or would be of use to."""
        cluster, survey = self._cluster, known.survey
        changed = set(taken ^ known.taken)
        for rack in dirty:
            rows = cluster.devices_of_rack(rack)
            changed |= {rows.start + int(place) for place in np.flatnonzero(cluster.epoch[rows] > known.now)}
        before = {row: survey.worth(row) for row in changed}
        for rack in dirty:
            survey.replace_rack(rack, self._surveyor.survey_rack(number, taken, rack))
        gained = {
            row for row in changed if any(now > was for now, was in zip(survey.worth(row), before[row], strict=True))
        }
        known.taken, known.now, known.rack_epoch = taken, cluster.now, cluster.rack_epoch.copy()
        known.floor = 0 if gained else known.floor
        for name, region in list(known.regions.items()):
            near = {row for row in gained if name in {WHOLE_MAP, int(cluster.rack_of[cluster.node_of[row]])}}
            useful = {row for row in near if _is_useful(survey, region, row)}
            worn = region.worn + len(changed & set(region.rows.tolist()))
            if worn > WORN_MAX:
                del known.regions[name]
            elif useful or any(row in changed for row, _ in region.runs):
                known.regions[name] = self._repaired(number, survey, region, useful, changed)._replace(worn=worn)
            else:
                known.regions[name] = region._replace(worn=worn)

    def _repaired(self, number: int, survey: Survey, region: Region, added: set[int], changed: set[int]) -> Region:
        """The region with devices ``added``: its chain as it was, but for ``changed`` devices, which may be any."""
        candidates = [row for row in sorted({*region.rows.tolist(), *added}) if survey.has(row)][:CANDIDATES_MAX]
        rows = np.array(candidates, np.int64)
        if not candidates:
            return Region(rows, NOTHING, region.settled)
        problem = self._maker.problem(number, rows)
        place = {row: number for number, row in enumerate(candidates)}
        order = tuple(-1 if row in changed else place.get(row, -1) for row, _ in region.runs)
        guesses = bottleneck_guesses(problem)
        found = self._search(problem, guesses, REPAIR, NEVER, order)
        if not found.devices:
            return Region(rows, deepened(self._search, problem, SCOUT), region.settled)
        for newcomer in (place[row] for row in sorted(added) if row in place and place[row] not in found.devices):
            for stage, device in enumerate(found.devices):
                if problem.speed[newcomer] < problem.speed[device]:
                    continue
                swapped = (*found.devices[:stage], newcomer, *found.devices[stage + 1 :])
                found = better(found, self._search(problem, guesses, SCOUT, found.cost, swapped))
        return Region(rows, found, region.settled)


def _is_useful(survey: Survey, region: Region, row: int) -> bool:
    """Whether a device could hold what the region's least device holds."""
    least = min((survey.worth(device)[0] for device, _ in region.runs), default=0)
    return survey.worth(row)[0] >= max(least, 1)
