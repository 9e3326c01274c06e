"""Tenants of a GPU cluster: what they take, where a policy puts them, and how they come and go until it is as full as wanted.

A GPU is 100 hundredths; a tenant takes some of one GPU, or several whole ones of one node. Everything is drawn from one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WHOLE = 100
"""Hundredths of a GPU."""
REFUSALS_MAX = 2000
"""After so many tenants in a row that find no place a cluster counts as full."""
FEW_SHARE = 0.01
"""Shapes rarer than this are left out of the mix whose fragmentation the policy `fgd` minimises, as its authors do."""

Chance = np.random.Generator
Grid = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a tenant takes: ``hundredths`` of each of ``gpus`` GPUs of one node; ``share`` of all tenants are like that."""

    gpus: int
    hundredths: int
    share: float


SHAPES = (
    Shape(1, 100, 0.5537),
    Shape(1, 81, 0.1526),
    Shape(1, 47, 0.1062),
    Shape(1, 32, 0.0464),
    Shape(1, 65, 0.0358),
    Shape(1, 23, 0.0198),
    Shape(1, 46, 0.0181),
    Shape(1, 59, 0.0106),
    Shape(1, 16, 0.0105),
    Shape(1, 55, 0.0102),
    Shape(1, 22, 0.0088),
    Shape(1, 37, 0.0067),
    Shape(1, 11, 0.0040),
    Shape(1, 48, 0.0060),
    Shape(8, 100, 0.0062),
    Shape(2, 100, 0.0023),
    Shape(4, 100, 0.0021),
)
"""What the tenants with GPUs of the openb trace take, and how often."""


def fill(gpus_of_nodes: Sequence[int], policy: str, allocated: float, chance: Chance) -> list[list[int]]:
    """Hundredths that are free on each GPU of each node, once ``allocated`` of all are taken and tenants have come and gone."""
    cluster = _Cluster(gpus_of_nodes, POLICIES[policy], chance)
    target = round(allocated * WHOLE * sum(gpus_of_nodes))
    cluster.admit_until(target)
    for _ in range(len(cluster.tenants)):
        cluster.evict_one()
        cluster.admit_until(target)
    return [[int(free) for free in row[:gpus]] for row, gpus in zip(cluster.free, gpus_of_nodes, strict=True)]


Policy = Callable[[Grid, Shape, Chance], tuple[int, Sequence[int]] | None]
"""Where a tenant goes: a node and GPUs of it, None where it fits nowhere. ``free`` is [nodes, GPUs], -1 where there is none."""


class _Cluster:
    def __init__(self, gpus_of_nodes: Sequence[int], policy: Policy, chance: Chance) -> None:
        widest = max(gpus_of_nodes)
        self.free = np.where(np.arange(widest)[None, :] < np.array(gpus_of_nodes)[:, None], WHOLE, -1)
        self.tenants: list[tuple[int, Sequence[int], int]] = []  # node, GPUs, hundredths of each
        self._taken = 0
        self._policy = policy
        self._chance = chance
        self._shares = np.cumsum([shape.share for shape in SHAPES])

    def admit_until(self, target: int) -> None:
        refused = 0
        while self._taken < target and refused < REFUSALS_MAX:
            drawn = int(np.searchsorted(self._shares, self._chance.random() * self._shares[-1], side="right"))
            refused = 0 if self._admit(SHAPES[drawn]) else refused + 1

    def evict_one(self) -> None:
        place = int(self._chance.integers(len(self.tenants)))
        self.tenants[place], self.tenants[-1] = self.tenants[-1], self.tenants[place]
        node, gpus, hundredths = self.tenants.pop()
        self._take(node, gpus, -hundredths)

    def _admit(self, shape: Shape) -> bool:
        home = self._policy(self.free, shape, self._chance)
        if home is None:
            return False
        self._take(*home, shape.hundredths)
        self.tenants.append((*home, shape.hundredths))
        return True

    def _take(self, node: int, gpus: Sequence[int], hundredths: int) -> None:
        for gpu in gpus:
            self.free[node, gpu] -= hundredths
        self._taken += hundredths * len(gpus)


def place_at_random(free: Grid, shape: Shape, chance: Chance) -> tuple[int, Sequence[int]] | None:
    """Any node that can hold the tenant, then any of its GPUs that can."""
    fits = free >= shape.hundredths
    nodes = np.flatnonzero(fits.sum(axis=1) >= shape.gpus)
    if not len(nodes):
        return None
    node = int(nodes[chance.integers(len(nodes))])
    return node, chance.permutation(np.flatnonzero(fits[node]))[: shape.gpus].tolist()


def place_best_fit(free: Grid, shape: Shape, _chance: Chance) -> tuple[int, Sequence[int]] | None:
    """The node with the least left over, and its GPUs with the least left over."""
    fits = free >= shape.hundredths
    left = np.where(fits.sum(axis=1) >= shape.gpus, np.maximum(free, 0).sum(axis=1), np.iinfo(np.int64).max)
    node = int(left.argmin())
    if left[node] == np.iinfo(np.int64).max:
        return None
    return node, _tightest(free[node], shape)


def place_by_gradient(free: Grid, shape: Shape, _chance: Chance) -> tuple[int, Sequence[int]] | None:
    """Where expected fragmentation grows least (Weng et al., USENIX ATC 2023); of equals the first.

    What one GPU takes changes no other GPU's fragment, so a tenant's GPUs are those where each grows least.
    """
    held = np.maximum(free, 0)
    growth = _FRAGMENT[np.maximum(held - shape.hundredths, 0)] - _FRAGMENT[held]
    growth = np.where(free >= shape.hundredths, growth, np.inf)
    if shape.gpus == 1:
        node, gpu = divmod(int(growth.argmin()), growth.shape[1])
        return None if growth[node, gpu] == np.inf else (node, [gpu])
    if shape.gpus > growth.shape[1]:
        return None
    least = np.sort(growth, axis=1)[:, : shape.gpus].sum(axis=1)
    node = int(least.argmin())
    return None if least[node] == np.inf else (node, np.argsort(growth[node], kind="stable")[: shape.gpus].tolist())


POLICIES: dict[str, Policy] = {"random": place_at_random, "bestfit": place_best_fit, "fgd": place_by_gradient}
"""By what tenants may have been placed."""


def _tightest(free: Grid, shape: Shape) -> list[int]:
    able = np.flatnonzero(free >= shape.hundredths)
    return [int(gpu) for gpu in able[np.argsort(free[able], kind="stable")][: shape.gpus]]


_LEVELS = np.arange(WHOLE + 1)
_USUAL = tuple(shape for shape in SHAPES if shape.share >= FEW_SHARE)
_FRAGMENT = np.sum([shape.share * _LEVELS * (shape.hundredths > _LEVELS) for shape in _USUAL], axis=0)
"""Expected fragment of a GPU with so many hundredths free: of tenants of one GPU, which all usual ones are."""
