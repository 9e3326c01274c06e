"""What the study of the 9-bus microgrid finds, question by question: values only, for tables and plots.

Owns the values. Rates are per second; distances are in the study's seminorm (`sim.microgrid_study`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..policies.certificate.contraction import BlockwiseRate, Floats, InvariantBall, Seminorm


@dataclass(frozen=True, slots=True)
class RegionRow:
    """One region: the rate proved for it, and the worst among random states of it. Per second."""

    angle_deg: float
    voltage: float
    proved_rate: float
    sampled_worst_rate: float


@dataclass(frozen=True, slots=True)
class BallRow:
    """The largest ball around the flat start within a region; ``holds`` where it is proved invariant."""

    angle_deg: float
    voltage: float
    rate: float
    radius: float
    budget: float
    holds: bool


@dataclass(frozen=True, slots=True, eq=False)
class FlatStart:
    """The certificate without an equilibrium, and what the power flow and simulation say of it afterwards."""

    ball: InvariantBall
    blockwise: BlockwiseRate
    equilibrium_distance: float
    rim_distance_max: float
    rim: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two trajectories: their distance, and the difference of their mean angles, which the seminorm does not see."""

    certified_rate: float
    fastest_rate: float
    slowest_rate: float
    above_bound_max: float
    mean_angle_difference_deg: float
    times: Floats
    distance: Floats
    bound: Floats
    first: Floats
    second: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Against:
    """A bound in time beside simulation; ``stays`` where the certificate proves that the region is never left."""

    name: str
    rate: float
    sensitivity: float
    simulated: float
    bound: float
    stays: bool
    times: Floats
    distance: Floats
    bounds: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """All of it. ``local`` is the blocks' rate at the operating point, whose weight of voltages the seminorm has."""

    seminorm: Seminorm
    operating: Floats
    local: BlockwiseRate
    regions: tuple[RegionRow, ...]
    balls: tuple[BallRow, ...]
    flat: FlatStart
    pair: Pair
    tracking: Against
    robustness: tuple[Against, ...]
