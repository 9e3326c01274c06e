"""A map of few devices with room: one region, searched until the answer is proved or costs too much to prove.

Owns what is exact: for one replica mostly proved, for several as good as some rounds of prices make it.
"""

from __future__ import annotations

import numpy as np

from ..cluster.cluster_map import ClusterMap
from .effort import NOTHING, STATES_MAX, Search, widened
from .pricing import Run
from .problem import CANDIDATES_MAX, NEVER, Integers, ProblemMaker
from .search import Found
from .survey import Surveyor
from .together import Alone, Prices, Together, place_together
from .values import PlacementRequest

STATES_MAX_TOGETHER = 60_000
"""The same as `STATES_MAX`, for each of the many searches that replicas with prices take."""


class SmallMap:
    """Places replicas on a map as it is now, if that `is_small`."""

    def __init__(
        self, cluster: ClusterMap, request: PlacementRequest, search: Search, maker: ProblemMaker, surveyor: Surveyor
    ) -> None:
        self._cluster, self._request, self._search = cluster, request, search
        self._maker, self._surveyor = maker, surveyor
        self._rows: dict[int, Integers] = {}

    def is_small(self) -> bool:
        """Whether one search takes all devices that have room for the first replica."""
        if self._surveyor.rows_at_least() > CANDIDATES_MAX:
            return False
        return len(self._open_rows(0)) <= CANDIDATES_MAX

    def place(self, count: int) -> Together:
        """The first ``count`` replicas. Without a plan, the floor is `NEVER` where none exists."""
        if count > 1:
            return place_together(count, self._one_of_many)
        runs, found = self._one(0, frozenset(), {}, STATES_MAX)
        return Together((runs,) if runs else (), found.floor)

    def place_another(self, number: int, taken: frozenset[int]) -> tuple[Run, ...]:
        """One replica more; nothing where it has no place."""
        return self._one(number, taken, {}, STATES_MAX)[0]

    def _one_of_many(self, number: int, taken: frozenset[int], prices: Prices) -> Alone:
        runs, found = self._one(number, taken, prices, STATES_MAX_TOGETHER)
        fees = sum(prices.get(row, 0) for row, _ in runs)
        return Alone(runs, found.cost - fees, found.floor)

    def _one(
        self, number: int, taken: frozenset[int], prices: Prices, states_max: int
    ) -> tuple[tuple[Run, ...], Found]:
        rows = self._open_rows(number)
        rows = rows[~np.isin(rows, list(taken))][:CANDIDATES_MAX]
        if not len(rows):
            return (), NOTHING._replace(floor=NEVER)
        problem = self._maker.problem(number, rows)
        fee = np.array([prices.get(int(row), 0) for row in rows], np.int64)
        found = widened(self._search, problem._replace(fee=fee), states_max)
        return tuple((int(rows[device]), end) for device, end in zip(found.devices, found.ends, strict=True)), found

    def _open_rows(self, number: int) -> Integers:
        if number not in self._rows:
            self._rows[number] = self._surveyor.survey(number, frozenset()).rows
        return self._rows[number]
