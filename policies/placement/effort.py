"""How hard a problem is searched: wider and wider on a small one, narrow and then mended on a large one's choice.

Owns the numbers that trade time for cost. Knows neither maps nor requests.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from .problem import NEVER, Integers, ReplicaProblem
from .search import Effort, Found
from .survey import Floors

SCOUT = Effort(12, 6, every_device=False)
SETTLE = Effort(64, 8, every_device=False)
ROOMY = Effort(256, 8, every_device=False)
MEND = Effort(24, 1 << 20, every_device=True)
REPAIR = Effort(16, 8, every_device=True)
WIDTHS = (64, 1024, 8192)
STATES_MAX = 400_000
"""States that may be looked at to prove a small map's answer; a wider beam is not begun where it would probably need more."""
EVERY_END_MAX = 16
GUESSES = (2.2, 1.6, 1.3, 1.15, 1.06, 1.0)
"""Bottlenecks to fill stages up to, as multiples of the least that there could be."""
STAGES_HALVED_MIN = 3
"""No fewer stages are allowed on the way to as many as may be."""
NOTHING = Found(NEVER, (), (), 0, 0)


class Search(Protocol):
    """`search.search`, or its twin in `kernels`."""

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
    from . import kernels as compiled

    return Engine(compiled.search, compiled.floors)


def readable() -> Engine:
    """The engine to be read, which needs no compiling."""
    from .search import search
    from .survey import floors

    return Engine(search, floors)


def widened(search: Search, problem: ReplicaProblem, states_max: int = STATES_MAX) -> Found:
    """The best chain by wider and wider beams, until it is proved or would cost too much to prove; then mended."""
    guesses, best = bottleneck_guesses(problem), NOTHING
    for width in WIDTHS:
        found = search(problem, guesses, Effort(width, EVERY_END_MAX, every_device=True), best.cost)
        best = better(best, found)
        if best.floor >= best.cost or best.states + 4 * found.states > states_max:
            break
    return best if best.floor >= best.cost else mended(search, problem, best)


def deepened(search: Search, problem: ReplicaProblem, effort: Effort, best: Found = NOTHING) -> Found:
    """A search with few stages allowed, then with twice as many, and so on: a beam that may use many forgets short chains."""
    guesses = bottleneck_guesses(problem)
    for stages in _stage_limits(problem):
        limits = problem.limits.copy()
        limits[1] = stages
        best = better(best, search(problem._replace(limits=limits), guesses, effort, best.cost))
    return best


def mended(search: Search, problem: ReplicaProblem, found: Found) -> Found:
    """The chain with all cuts anew, then with each device in turn free to be another."""
    if not found.devices:
        return found
    guesses = bottleneck_guesses(problem)
    best = better(found, search(problem, guesses, MEND, found.cost, found.devices))
    for stage in range(len(best.devices)):
        order = (*best.devices[:stage], -1, *best.devices[stage + 1 :])
        best = better(best, search(problem, guesses, SCOUT, best.cost, order))
    return best


def bottleneck_guesses(problem: ReplicaProblem) -> Integers:
    """Bottlenecks to fill stages up to, descending from none at all."""
    fastest = problem.speed[problem.by_speed[: int(problem.limits[1])]]
    least = max(float(problem.work[-1]) / float(fastest.sum()), float(np.diff(problem.work).max()) / float(fastest[0]))
    return np.array([NEVER, *(int(least * factor) for factor in GUESSES)], np.int64)


def better(found: Found, other: Found) -> Found:
    """The cheaper, with the better floor and the states of both."""
    best = other if other.devices and other.cost < found.cost else found
    return best._replace(states=found.states + other.states, floor=min(max(found.floor, other.floor), best.cost))


def _stage_limits(problem: ReplicaProblem) -> list[int]:
    """Numbers of stages to allow, ascending: halves of the most, as long as the largest devices could hold the model."""
    held = np.cumsum(problem.room[problem.by_room])
    least = max(int(problem.limits[0]), int(np.searchsorted(held, problem.need[-1])) + 1, STAGES_HALVED_MIN)
    limits = [int(problem.limits[1])]
    while limits[0] // 2 >= least:
        limits.insert(0, limits[0] // 2)
    return limits
