"""Replicas that want the same devices: prices on devices, raised while two replicas want one.

Owns the decomposition. Without the rule that no two stages share a device, replicas would be independent; a price per device
in the place of that rule keeps them so (Lagrangian relaxation, Held and Karp 1971). At any prices, what the replicas cost at
least, fees included, less the prices, is a floor under every joint plan; and replicas placed one after the other at these
prices leave each other what the other needs more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from .pricing import Run
from .problem import NEVER

ROUNDS_MAX = 16
PATIENCE_ROUNDS = 2
"""Without a better floor, after which prices move half as far."""

Prices = Mapping[int, int]
"""By row; rows without one are free."""


class Alone(NamedTuple):
    """One replica, others' devices apart: its stages (none where it has no place), true cost, and floor, fees included."""

    runs: tuple[Run, ...]
    cost: int
    floor: int


class PlaceOne(Protocol):
    """Places one replica beside ``taken`` devices, at these prices."""

    def __call__(self, number: int, taken: frozenset[int], prices: Prices) -> Alone:
        """The best that is found."""


class Together(NamedTuple):
    """All replicas' stages (none where no joint plan was found), and a floor under every joint plan (`NEVER`: there is none)."""

    runs: tuple[tuple[Run, ...], ...]
    floor: int


def place_together(count: int, place_one: PlaceOne) -> Together:
    """The best joint plan of ``count`` replicas that some rounds of prices lead to."""
    prices: dict[int, int] = {}
    best: tuple[Alone, ...] = ()
    floor, pace, stale_rounds = -NEVER, 1.0, 0
    for _ in range(ROUNDS_MAX):
        alone = [place_one(number, frozenset(), prices) for number in range(count)]
        lower = sum(each.floor for each in alone) - sum(prices.values())
        if any(not each.runs for each in alone):
            return Together((), NEVER if any(each.floor >= NEVER for each in alone) else floor)
        stale_rounds = 0 if lower > floor else stale_rounds + 1
        floor = max(floor, lower)
        best = _cheaper(best, _improved(place_one, _one_by_one(count, place_one, prices)))
        if best and floor >= _cost(best):
            break
        if stale_rounds >= PATIENCE_ROUNDS:
            pace, stale_rounds = pace / 2, 0
        prices = _moved(prices, alone, (_cost(best) if best else lower + lower // 4) - lower, pace)
    return Together(tuple(each.runs for each in best), floor)


def _one_by_one(count: int, place_one: PlaceOne, prices: Prices) -> tuple[Alone, ...]:
    """Each replica beside those before it; none where one finds no place."""
    placed: list[Alone] = []
    for number in range(count):
        placed.append(place_one(number, _taken(placed), prices))
        if not placed[-1].runs:
            return ()
    return tuple(placed)


def _improved(place_one: PlaceOne, plan: tuple[Alone, ...]) -> tuple[Alone, ...]:
    """Each replica anew beside all others, at no price, as long as that helps."""
    improving = bool(plan)
    while improving:
        improving = False
        for number, present in enumerate(plan):
            anew = place_one(number, _taken([*plan[:number], *plan[number + 1 :]]), {})
            if anew.runs and anew.cost < present.cost:
                plan = (*plan[:number], anew, *plan[number + 1 :])
                improving = True
    return plan


def _moved(prices: Prices, alone: list[Alone], gap: int, pace: float) -> dict[int, int]:
    """Prices after a step along the excess of demand, as long as Polyak's rule has it for this gap."""
    wanted: dict[int, int] = dict.fromkeys(prices, 0)
    for each in alone:
        for row, _ in each.runs:
            wanted[row] = wanted.get(row, 0) + 1
    excess = {row: demand - 1 for row, demand in wanted.items() if demand > 1 or prices.get(row)}
    length = sum(each * each for each in excess.values())
    step = int(pace * max(gap, 1) / length) if length else 0
    moved = {row: max(prices.get(row, 0) + step * each, 0) for row, each in excess.items()}
    return {row: price for row, price in moved.items() if price}


def _taken(plan: list[Alone]) -> frozenset[int]:
    return frozenset(row for each in plan for row, _ in each.runs)


def _cost(plan: tuple[Alone, ...]) -> int:
    return sum(each.cost for each in plan)


def _cheaper(plan: tuple[Alone, ...], other: tuple[Alone, ...]) -> tuple[Alone, ...]:
    return other if other and (not plan or _cost(other) < _cost(plan)) else plan
