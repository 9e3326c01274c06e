"""Other ways to place a model, to be compared with: what schedulers and serving systems do, each in a few lines.

Owns no cleverness: each is as its authors describe it, carried over to stages of a chain on single devices. All but Petals cut
the model evenly by compute into 1, 2, 4, ... stages and take the first number that they can place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..cluster.cluster_map import ClusterMap
from ..partition import PartitionProblem, partition
from ..types import AtomCost, Link, StageLimit
from .pricing import Run, free_bytes, price
from .problem import Integers
from .values import PlacedReplica, PlacementRequest

Baseline = Callable[[ClusterMap, PlacementRequest, np.random.Generator], PlacedReplica | None]
"""Places one replica, or gives up. Only one of them draws from the generator."""

Pick = Callable[[Integers, int, npt.NDArray[np.bool_]], int]
"""The device for a stage: from free bytes, what it needs, and which devices may be taken (at least one)."""

_ROOMY = 1 << 60


def first_fit(cluster: ClusterMap, request: PlacementRequest, _chance: np.random.Generator) -> PlacedReplica | None:
    """Each stage on the first device that holds it."""
    return _greedy(cluster, request, lambda _free, _need, fits: int(np.argmax(fits)))


def best_fit(cluster: ClusterMap, request: PlacementRequest, _chance: np.random.Generator) -> PlacedReplica | None:
    """Each stage on the device that it fills best."""
    return _greedy(cluster, request, lambda free, _need, fits: int(np.argmin(np.where(fits, free, _ROOMY))))


def random_fit(cluster: ClusterMap, request: PlacementRequest, chance: np.random.Generator) -> PlacedReplica | None:
    """Each stage on any device that holds it."""
    return _greedy(cluster, request, lambda _free, _need, fits: int(chance.choice(np.flatnonzero(fits))))


def least_fragmentation(
    cluster: ClusterMap, request: PlacementRequest, _chance: np.random.Generator
) -> PlacedReplica | None:
    """Each stage where the expected fragmentation grows least (Weng et al., FGD, ATC'23); of equals, the fullest."""
    sizes = np.array([size for size, _ in request.fragment_mix], np.int64)
    shares = np.array([share for _, share in request.fragment_mix], np.int64)

    def waste(free: Integers) -> Integers:
        larger: Integers = ((sizes[None, :] > free[:, None]) * shares[None, :]).sum(axis=1)
        return (free >> 10) * larger

    def pick(free: Integers, need: int, fits: npt.NDArray[np.bool_]) -> int:
        open_rows = np.flatnonzero(fits)
        here = free[open_rows]
        growth = waste(here - need) - waste(here)
        return int(open_rows[np.lexsort((here, growth))[0]])

    return _greedy(cluster, request, pick)


def alpaserve(cluster: ClusterMap, request: PlacementRequest, _chance: np.random.Generator) -> PlacedReplica | None:
    """Groups of 1, 2, 4, ... neighbouring devices, each cut evenly; the group whose plan costs least (Li et al., OSDI'23)."""
    free = _open_bytes(cluster, request)
    best: PlacedReplica | None = None
    for ends, needs in _even_cuts(request):
        stages = len(ends)
        groups = len(free) // stages
        rows = np.arange(groups * stages).reshape(groups, stages)
        fits = (free[rows] >= needs[None, :]).all(axis=1)
        speed = (cluster.speed / (1.0 + cluster.slowdown))[rows[fits]]
        work = np.diff([0, *np.cumsum([atom.compute_ns for atom in request.atoms])[np.array(ends) - 1]])
        times = work[None, :] / speed
        order = np.argsort(times.sum(axis=1) + times.max(axis=1), kind="stable")[:8]
        for group in rows[fits][order]:
            replica = price(cluster, request, 0, list(zip(map(int, group), ends, strict=True)))
            if best is None or replica.terms.cost(request.weights) < best.terms.cost(request.weights):
                best = replica
    return best


def petals(cluster: ClusterMap, request: PlacementRequest, _chance: np.random.Generator) -> PlacedReplica | None:
    """Devices join one by one, each with the run of atoms that is served worst so far, until a short enough chain covers all.

    A chain goes on where its stage's run reaches farthest (Borzunov et al., Petals, ACL'23).
    """
    atoms = len(request.atoms)
    need = np.concatenate([[0], np.cumsum([request.memory_bytes(atom) for atom in request.atoms])])
    served = np.zeros(atoms + 1)
    farthest: list[Run] = [(-1, first) for first in range(atoms)]
    free = _open_bytes(cluster, request)
    for row in map(int, np.flatnonzero(free >= request.workspace_bytes + int(np.diff(need).min()))):
        room = int(free[row]) - request.workspace_bytes
        ends = np.searchsorted(need, need[:-1] + room, side="right") - 1
        starts = np.flatnonzero(ends > np.arange(atoms))
        if not len(starts):
            continue
        total = np.concatenate([[0.0], np.cumsum(served[:-1])])
        means = (total[ends[starts]] - total[starts]) / (ends[starts] - starts)
        first = int(starts[np.argmin(means)])
        end = int(ends[first])
        served[first:end] += cluster.speed[row] / (1.0 + cluster.slowdown[row])
        for atom in range(first, end):
            if end > farthest[atom][1]:
                farthest[atom] = (row, end)
        chain = _chain(farthest, request)
        if chain is not None:
            return price(cluster, request, 0, chain)
    return None


BASELINES: dict[str, Baseline] = {
    "first-fit": first_fit,
    "best-fit": best_fit,
    "fgd": least_fragmentation,
    "petals": petals,
    "alpaserve": alpaserve,
    "random": random_fit,
}


def _chain(farthest: Sequence[Run], request: PlacementRequest) -> list[Run] | None:
    """From the first atom always as far as any device goes on; None where that ends early or takes too many stages."""
    chain: list[Run] = []
    at = 0
    while at < len(farthest):
        device, end = farthest[at]
        if device < 0 or len(chain) == request.stages_max or device in {row for row, _ in chain}:
            return None
        chain.append((device, end))
        at = end
    return chain


def _greedy(cluster: ClusterMap, request: PlacementRequest, pick: Pick) -> PlacedReplica | None:
    """Stages of an even cut one after the other, each on the device that ``pick`` says; more stages where that fails."""
    free = _open_bytes(cluster, request)
    for ends, needs in _even_cuts(request):
        rows = _picked(free, needs, pick)
        if rows is not None:
            return price(cluster, request, 0, list(zip(rows, ends, strict=True)))
    return None


def _picked(free: Integers, needs: Integers, pick: Pick) -> list[int] | None:
    left, rows = free.copy(), list[int]()
    for need in map(int, needs):
        fits = left >= need
        if not fits.any():
            return None
        rows.append(pick(left, need, fits))
        left[rows[-1]] = -1
    return rows


def _open_bytes(cluster: ClusterMap, request: PlacementRequest) -> Integers:
    """Free bytes by row; none where a stage of the model runs."""
    free = cluster.free_bytes.copy()
    for row in request.occupied:
        free[row] = -1
    for stage in request.present[0] if request.present else ():
        free[stage.device] = free_bytes(cluster, request, 0, stage.device)
    return free


def _even_cuts(request: PlacementRequest) -> Iterator[tuple[tuple[int, ...], Integers]]:
    """Ends and needed bytes of the stages of even cuts: 1, 2, 4, ... stages."""
    stages = 1
    while stages <= min(request.stages_max, len(request.atoms)):
        ends = _even_ends(request.atoms, stages)
        need = np.cumsum([request.memory_bytes(atom) for atom in request.atoms])[np.array(ends) - 1]
        yield ends, np.diff([0, *need]) + request.workspace_bytes
        stages *= 2


@lru_cache(maxsize=64)
def _even_ends(atoms: tuple[AtomCost, ...], stages: int) -> tuple[int, ...]:
    cut = partition(PartitionProblem(atoms, (StageLimit(_ROOMY),) * stages, Link()))
    return tuple(stage.end_atom for stage in cut.stages)
