"""Bounds of a matrix over a whole region, proved and not sampled: a grid, and how far the matrix can be from it in between.

Owns the proof; never knows what the matrix is of. The matrix depends on angles x_1..x_n through the cosines and sines of their
differences, and affinely on each of some other numbers:

    M = constant + sum over pairs e = (i, j) of cos(x_i - x_j) cosine_e + sin(x_i - x_j) sine_e.

What is bounded (a log-norm, a spectral norm) is *convex* in the matrix and moves no more than the matrix does in spectral norm.
From that alone:

1. *Vertices.* Along each affine number the bound is convex, so over a box of them it is largest at a vertex.
2. *Grid.* The angles with all ``|x_i - x_j| <= angle_max`` and ``x_1 = 0`` are a union of Kuhn simplices of step d = angle_max /
   steps. On one of them every difference takes two values only, d apart, at the vertices. So the linear interpolant of M from the
   vertices differs from M by at most ``d^2/8 * sum_e max ||M_e''||``, and ``||M_e''|| <= hypot(||cosine_e||, ||sine_e||)``. The
   interpolant is a convex mean of the vertices' matrices, where the bound is at most the largest of theirs.

So: largest value on the grid's points within the region + interpolation error + rounding. The error falls with the step's square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from .contraction import Floats, Seminorm, spectral_norm

ROUNDING_RELATIVE = 1e-9
"""Of the matrix's norm: allowed for rounding. LAPACK's eigenvalues of small symmetric matrices are off by some 1e-15 of it."""
POINTS_AT_ONCE = 4096
"""Grid points whose matrices are in memory at once."""

Measure = Callable[[Floats], Floats]
"""A convex function of matrices (..., k, l) that is 1-Lipschitz in the spectral norm: `contraction.log_norm`, `spectral_norm`."""


@dataclass(frozen=True, slots=True)
class AngleRegion:
    """All angles of ``nodes`` nodes that differ by at most ``angle_max`` (rad), pair by pair; cut into ``steps`` steps."""

    nodes: int
    angle_max: float
    steps: int

    @property
    def step(self) -> float:
        """Distance of neighbouring grid points. Rad."""
        return self.angle_max / self.steps

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs (i, j), i < j, in the order of a family's pairs."""
        return tuple(combinations(range(self.nodes), 2))

    def differences(self) -> Iterator[Floats]:
        """The differences ``x_i - x_j`` at every grid point of the region, some points at a time: (points, pairs), rad."""
        axis = np.arange(-self.steps, self.steps + 1)
        others = np.stack(np.meshgrid(*[axis] * (self.nodes - 1), indexing="ij"), axis=-1).reshape(-1, self.nodes - 1)
        points = np.concatenate([np.zeros((len(others), 1), dtype=others.dtype), others], axis=1)
        first, second = np.array(self.pairs).T
        counts = points[:, first] - points[:, second]
        inside = counts[np.all(np.abs(counts) <= self.steps, axis=1)]
        for start in range(0, len(inside), POINTS_AT_ONCE):
            yield inside[start : start + POINTS_AT_ONCE] * self.step


@dataclass(frozen=True, slots=True, eq=False)
class MatrixFamily:
    """The matrix at each of v vertices of the box of affine numbers: constant (v, k, l), cosine and sine (v, pairs, k, l)."""

    constant: Floats
    cosine: Floats
    sine: Floats

    def at(self, differences: Floats) -> Floats:
        """The matrices at angle differences (points, pairs), at every vertex: (points, v, k, l)."""
        turned = np.einsum("pe,vekl->pvkl", np.cos(differences), self.cosine)
        turned += np.einsum("pe,vekl->pvkl", np.sin(differences), self.sine)
        return np.asarray(self.constant + turned)

    def curvature(self) -> float:
        """``sum_e max ||M_e''||`` over all angles and the whole box; the box's vertices do, since the norms are convex."""
        return float(np.hypot(spectral_norm(self.cosine), spectral_norm(self.sine)).max(axis=0).sum())

    def size(self) -> float:
        """No less than the norm of the matrix anywhere."""
        return float(spectral_norm(self.constant).max()) + self.curvature()

    def seen_by(self, seminorm: Seminorm) -> MatrixFamily:
        """The family as a seminorm sees it."""
        return MatrixFamily(*(seminorm.reduced(part) for part in (self.constant, self.cosine, self.sine)))

    def block(self, rows: slice, columns: slice) -> MatrixFamily:
        """A block of the family's matrices."""
        return MatrixFamily(*(part[..., rows, columns] for part in (self.constant, self.cosine, self.sine)))


@dataclass(frozen=True, slots=True)
class RegionalBound:
    """What is proved of a measure over a region: nowhere above ``bound``, and at a state of the region ``attained``."""

    bound: float
    attained: float
    points: int

    @property
    def slack(self) -> float:
        """How much the proof gives away at most."""
        return self.bound - self.attained


def regional_bound(family: MatrixFamily, region: AngleRegion, measure: Measure) -> RegionalBound:
    """The largest value of ``measure`` over the region and the box, proved as the module's text says."""
    attained, points = -np.inf, 0
    for differences in region.differences():
        attained = max(attained, float(measure(family.at(differences)).max()))
        points += len(differences) * len(family.constant)
    between = region.step**2 / 8 * family.curvature()
    return RegionalBound(attained + between + ROUNDING_RELATIVE * family.size(), attained, points)


def box_vertices(lowest: Floats, highest: Floats) -> Floats:
    """The vertices of a box: (2^n, n)."""
    return np.array(list(product(*zip(lowest, highest, strict=True))))
