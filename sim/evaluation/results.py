"""All runs of an evaluation, by place, system and seed, and what hindsight picks from them.

Owns the grouping and the choice of the best static system. A *place* is one load on one map in one weather: systems are compared
within it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..systems.catalogue import SYSTEMS, static_name, static_of
from .cells import CALM, Cell, Load
from .measures import ATTAINMENT, GOODPUT, GPUS, Measure
from .run_cell import Facts
from .statistics import Interval, interval, ratio
from .weather import weather_of

ENOUGH = 0.99
"""Attainment at which reservations are compared."""
BEST_STATIC = "best-static"
PEAK_STATIC = "peak-static"
"""Names of rows that hindsight makes: the static system with the most goodput per GPU, and the one that is sized for the peak."""


@dataclass(frozen=True, slots=True)
class Row:
    """One system in one place. ``name`` is the row's, ``system`` the run's that stands there: with hindsight, the one picked."""

    name: str
    system: str
    runs: tuple[Facts, ...]

    def values(self, measure: Measure) -> list[float] | None:
        """One value a seed; None where a run has none."""
        known = self._known(measure)
        return known if len(known) == len(self.runs) else None

    def interval(self, measure: Measure) -> Interval | None:
        """Mean and interval over seeds; of a sparse measure over those that have a value."""
        values = self._known(measure) if measure.sparse else self.values(measure)
        return None if values is None else interval(values)

    def mean(self, measure: Measure) -> float | None:
        """The mean over seeds."""
        found = self.interval(measure)
        return None if found is None else found.mean

    def _known(self, measure: Measure) -> list[float]:
        values = [run.metrics.get(measure.name) for run in self.runs]
        return [value for value in values if value is not None]

    def ratio_to(self, other: Row, measure: Measure) -> Interval | None:
        """How many times the other's is this one's, seed by seed; None where there is no ratio."""
        ours, theirs = self.values(measure), other.values(measure)
        return None if ours is None or theirs is None else ratio(ours, theirs)


class Place:
    """The systems of one load on one map in one weather."""

    def __init__(self, load: Load, map_name: str, runs: dict[str, tuple[Facts, ...]], weather: str = CALM) -> None:
        self.load = load
        self.map = map_name
        self.weather = weather
        self._runs = runs

    @property
    def title(self) -> str:
        """As in headings."""
        words = f"{self.load.model}, {self.load.words}, map {self.map}, {span(self.load.duration_s)}"
        return words if self.weather == CALM else f"{words}, {weather_of(self.weather).title}"

    @property
    def seeds(self) -> int:
        """Runs of each system."""
        return max((len(runs) for runs in self._runs.values()), default=0)

    def row(self, name: str) -> Row | None:
        """That system's, or what hindsight picks under that name."""
        if name in self._runs:
            return Row(name, name, self._runs[name])
        if name == BEST_STATIC:
            return _named(name, _most(self._static_rows()))
        if name == PEAK_STATIC:
            return _named(name, self._peak())
        fixed = static_of(name)
        if fixed is not None:
            return _named(name, _most(row for row in self._static_rows() if _depth(row) == fixed[0]))
        return None

    def rows(self) -> list[Row]:
        """All rows of the table: systems, each static depth at its best, and what hindsight picks."""
        depths = sorted({depth for depth in map(_depth, self._static_rows()) if depth is not None})
        names = [*SYSTEMS, *(static_name(depth, 0) for depth in depths), BEST_STATIC, PEAK_STATIC]
        return [row for row in map(self.row, names) if row is not None]

    def static_rows(self) -> list[Row]:
        """Every static system that was tried."""
        return self._static_rows()

    def _static_rows(self) -> list[Row]:
        return [Row(name, name, runs) for name, runs in self._runs.items() if static_of(name) is not None]

    def _peak(self) -> Row | None:
        """The fewest devices with enough attainment; where none has, the one with the most attainment."""
        rows = self._static_rows()
        enough = [row for row in rows if (row.mean(ATTAINMENT) or 0.0) >= ENOUGH]
        if enough:
            return min(enough, key=lambda row: row.mean(GPUS) or 0.0)
        return max(rows, key=lambda row: row.mean(ATTAINMENT) or 0.0, default=None)


def places_of(results: Iterable[tuple[Cell, Facts]]) -> list[Place]:
    """The places, in the order in which their first runs come; seeds ascending."""
    grouped: dict[tuple[Load, str, str], dict[str, dict[int, Facts]]] = {}
    for cell, facts in results:
        grouped.setdefault(cell.place(), {}).setdefault(cell.system, {})[cell.seed] = facts
    return [
        Place(load, name, {system: _by_seed(runs) for system, runs in systems.items()}, weather)
        for (load, name, weather), systems in grouped.items()
    ]


def calm_one(places: Sequence[Place], place: Place) -> Place | None:
    """The place of the same load on the same map in calm weather."""
    wanted = (place.load, place.map, CALM)
    return next((each for each in places if (each.load, each.map, each.weather) == wanted), None)


def span(seconds: float) -> str:
    """A load's length in words; "whole" for a trace as long as it is."""
    if seconds == 0:
        return "whole"
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"


def _by_seed(runs: dict[int, Facts]) -> tuple[Facts, ...]:
    return tuple(runs[seed] for seed in sorted(runs))


def _named(name: str, row: Row | None) -> Row | None:
    return None if row is None else Row(name, row.system, row.runs)


def _most(rows: Iterable[Row]) -> Row | None:
    return max(rows, key=lambda row: row.mean(GOODPUT) or 0.0, default=None)


def _depth(row: Row) -> int | None:
    fixed = static_of(row.system)
    return None if fixed is None else fixed[0]
