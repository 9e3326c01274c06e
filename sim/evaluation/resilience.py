"""How each system comes through bad weather: the same load on the same map and seeds, with and without it.

Owns the comparison of two places that differ in their weather alone. It must never know what the weather does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .measures import ALLOCATION, ATTAINMENT, GOODPUT, LOST, REFUSED, REPLACED, STALL, STALLED
from .results import Place, Row, calm_one
from .statistics import Interval


@dataclass(frozen=True, slots=True)
class Through:
    """One system in bad weather. Pairs are (calm, bad); ``goodput`` is bad over calm, seed by seed.

    ``stalled`` are shares of responses, ``recovery_s`` the median stall. What has no pair is of the bad weather alone: replicas
    lost and plans refused for each run, and the median waits for another replica and for devices.
    """

    row: Row
    attainment: tuple[Interval | None, Interval | None]
    goodput: Interval | None
    stalled: tuple[Interval | None, Interval | None]
    recovery_s: tuple[Interval | None, Interval | None]
    lost: Interval | None
    replaced_s: Interval | None
    allocation_s: Interval | None
    refused: Interval | None


def troubled(places: Sequence[Place]) -> list[tuple[Place, list[Through]]]:
    """Each place in bad weather of which there is a calm one, with what its systems made of it."""
    found = []
    for place in places:
        calm = calm_one(places, place)
        if calm is not None and calm is not place:
            found.append((place, through(place, calm)))
    return found


def through(bad: Place, calm: Place) -> list[Through]:
    """Every system of the bad place that ran in the calm one, on as many seeds; static ones at what was best in the bad weather."""
    found = []
    for row in bad.rows():
        before = calm.row(row.system)
        if before is None or before.system != row.system or len(before.runs) != len(row.runs):
            continue
        found.append(
            Through(
                row,
                attainment=(before.interval(ATTAINMENT), row.interval(ATTAINMENT)),
                goodput=row.ratio_to(before, GOODPUT),
                stalled=(before.interval(STALLED), row.interval(STALLED)),
                recovery_s=(before.interval(STALL), row.interval(STALL)),
                lost=row.interval(LOST),
                replaced_s=row.interval(REPLACED),
                allocation_s=row.interval(ALLOCATION),
                refused=row.interval(REFUSED),
            )
        )
    return found
