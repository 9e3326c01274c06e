"""Semi-contraction: how fast any two trajectories of a system approach each other, up to what its symmetry leaves free.

Owns the norms, rates and theorems; never knows of what the system is a model. A *seminorm* ``|||x||| = ||R x||_2`` does not see
the kernel of ``R``: for a symmetry (all angles, or all queues, shifted alike) the kernel is that shift. Where the Jacobian maps
the kernel into itself and its log-norm in the seminorm is at most ``-c < 0`` over a convex region, trajectories that stay in the
region approach each other as ``e^(-ct)`` in the seminorm, whether or not anyone knows an equilibrium.

Sources: Jafarpour, Cisneros-Velarde, Bullo, "Weak and Semi-Contraction for Network Systems and Diffusively Coupled Oscillators"
(arXiv 2005.09774); Davydov, Jafarpour, Bullo, "Non-Euclidean Contraction Theory" (2103.12263); Davydov et al., "Time-Varying
Convex Optimization: A Contraction and Equilibrium Tracking Approach" (2305.15595). Statements: ``docs/contraction.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class NoContractionError(ValueError):
    """A bound was asked for that only a positive rate gives."""


def log_norm(matrix: Floats) -> Floats:
    """``mu_2(A) = lambda_max((A + A^T) / 2)``, per second where A is a Jacobian; of a stack (..., k, k): one value each."""
    symmetric = (matrix + np.swapaxes(matrix, -1, -2)) / 2
    return np.asarray(np.linalg.eigvalsh(symmetric)[..., -1])


def spectral_norm(matrix: Floats) -> Floats:
    """``||A||_2``; of a stack (..., k, l): one value each."""
    return np.asarray(np.linalg.norm(matrix, ord=2, axis=(-2, -1)))


@dataclass(frozen=True, slots=True, eq=False)
class Seminorm:
    """``|||x||| = ||R x||_2``: ``map`` is R (k x n, full row rank), ``inverse`` a right inverse of it (n x k)."""

    map: Floats
    inverse: Floats

    def of(self, vector: Floats) -> float:
        """``|||vector|||``."""
        return float(np.linalg.norm(self.map @ vector))

    def reduced(self, matrix: Floats) -> Floats:
        """``R A R^+``, the matrix as the seminorm sees it; of a stack: each of them."""
        return np.asarray(self.map @ matrix @ self.inverse)

    def log_norm(self, matrix: Floats) -> Floats:
        """The semi-measure ``mu_R(A) = mu_2(R A R^+)``. True only where `kernel_defect` of the matrix is zero."""
        return log_norm(self.reduced(matrix))

    def kernel_defect(self, matrix: Floats) -> float:
        """``||R A - R A R^+ R||``: zero, up to rounding, exactly where A maps the kernel of the seminorm into itself."""
        return float(np.linalg.norm(self.map @ matrix - self.reduced(matrix) @ self.map))


def shift_seminorm(weights: Sequence[float]) -> Seminorm:
    """Blind to a shift of all coordinates alike: ``R = Q diag(w)``, Q an orthonormal basis of the complement of ``w``.

    With equal weights 1, the distance from the mean. ``weights`` are positive; `ValueError` where one is not.
    """
    scale = np.asarray(weights, dtype=np.float64)
    if scale.ndim != 1 or scale.size == 0 or not np.all(np.isfinite(scale) & (scale > 0)):
        raise ValueError(f"weights of a seminorm are positive numbers, and one of {list(weights)} is not")
    basis = np.linalg.svd(scale[np.newaxis])[2][1:]
    return Seminorm(basis * scale, (basis / scale).T)


@dataclass(frozen=True, slots=True)
class BlockwiseRate:
    """The rate of two coupled blocks in the norm ``sqrt(||z1||^2 + weight^2 ||z2||^2)``, the best such norm."""

    rate: float
    weight: float


def blockwise_rate(first: float, second: float, first_by_second: float, second_by_first: float) -> BlockwiseRate:
    """From two blocks' own rates and bounds of the norms of what couples them; positive exactly where their small gain holds.

    ``c = (c1 + c2)/2 - sqrt(((c1 - c2)/2)^2 + a b)``, so ``c > 0`` where ``c1 c2 > a b``. All four must hold over the region.
    """
    coupling = first_by_second * second_by_first
    rate = (first + second) / 2 - math.hypot((first - second) / 2, math.sqrt(coupling))
    weight = math.sqrt(first_by_second / second_by_first) if coupling > 0 else 1.0
    return BlockwiseRate(rate, weight)


@dataclass(frozen=True, slots=True)
class InvariantBall:
    """A ball around any reference point, over which the rate is ``rate``; ``residual`` is the field's norm at the reference.

    Where it ``holds``, no trajectory leaves the ball, it has exactly one equilibrium, and every trajectory goes there. The
    equilibrium need not be known: ``D+ ||z - reference|| <= -rate ||z - reference|| + residual``.
    """

    radius: float
    rate: float
    residual: float

    @property
    def disturbance_budget(self) -> float:
        """The largest disturbance, in the norm of the ball, that still lets no trajectory out; negative where it fails."""
        return self.rate * self.radius - self.residual

    @property
    def holds(self) -> bool:
        """Whether the ball is proved to be invariant."""
        return self.rate > 0 and self.disturbance_budget >= 0

    @property
    def equilibrium_distance(self) -> float:
        """How far from the reference the equilibrium can be at most. Raises `NoContractionError` where the ball fails."""
        if not self.holds:
            raise NoContractionError(
                f"no equilibrium is proved: the budget of the ball is {self.disturbance_budget:.3g}"
            )
        return self.residual / self.rate


def distance_bound(rate: float, start: float, disturbance: float, elapsed_s: float) -> float:
    """How far apart a disturbed trajectory and one that is not can be after ``elapsed_s``, if both stay in the region.

    ``e^(-ct) start + (1 - e^(-ct))/c disturbance``; ``math.inf`` seconds are the bound for ever after.
    """
    _check(rate)
    fading = math.exp(-rate * elapsed_s)
    return fading * start + (1 - fading) / rate * disturbance


def tracking_bound(rate: float, sensitivity: float, drift_per_s: float) -> float:
    """How far behind an equilibrium that moves a trajectory stays in the long run: ``l / c^2 * drift``.

    ``sensitivity`` is the field's Lipschitz constant in its parameter, ``drift_per_s`` the most that the parameter moves in a
    second.
    """
    _check(rate)
    return sensitivity / rate**2 * drift_per_s


def switched_rate(rate: float, growth: float, dwell_s: float) -> float:
    """What is left of ``rate`` where every ``dwell_s`` seconds on average a switch multiplies distances by ``growth``."""
    return rate - math.log(growth) / dwell_s


def dwell_s_min(rate: float, growth: float) -> float:
    """Seconds between switches that keep contraction, where each multiplies distances by ``growth``: ``ln(growth) / c``."""
    if growth <= 1:
        return 0.0
    _check(rate)
    return math.log(growth) / rate


def switch_growth(switch: Floats) -> float:
    """The most by which a linear change of coordinates (n' x n) multiplies distances from the mean.

    ``math.inf`` where it does not carry an equal shift into an equal shift, so that what was no distance at all becomes one.
    """
    before, after = shift_seminorm([1.0] * switch.shape[1]), shift_seminorm([1.0] * switch.shape[0])
    shifted = switch.sum(axis=1)
    if float(np.ptp(shifted)) > 1e-12 * float(np.max(np.abs(shifted), initial=1.0)):
        return math.inf
    if switch.shape[0] == 1 or switch.shape[1] == 1:
        return 0.0
    return float(spectral_norm(after.map @ switch @ before.inverse))


def _check(rate: float) -> None:
    if not rate > 0:
        raise NoContractionError(f"bounds in time need a positive rate, and this one is {rate:.3g}")
