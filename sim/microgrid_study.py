"""The 9-bus microgrid under the contraction library: what is proved, and what simulation shows beside it.

Owns the study's questions and settings; the model is `sim.microgrid`, the theorems are `certificate.contraction` and
`certificate.regional_bound`. Distances are in the seminorm ``sqrt(||Q W theta||^2 + eta^2 ||V||^2)``, W = diag(m)^(-1/2), Q the
projection that does not see a shift of all angles; ``eta`` is the best for the two blocks at the operating point. All rates are
for `microgrid.Droop`'s settings, which are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..policies.certificate.contraction import (
    BlockwiseRate,
    Floats,
    InvariantBall,
    Seminorm,
    blockwise_rate,
    distance_bound,
    log_norm,
    shift_seminorm,
    spectral_norm,
    tracking_bound,
)
from ..policies.certificate.regional_bound import AngleRegion, MatrixFamily, Measure, box_vertices, regional_bound
from .microgrid import Microgrid, microgrid9, trajectory
from .microgrid_findings import Against, BallRow, Findings, FlatStart, Pair, RegionRow

ANGLES_DEG = (10, 20, 30, 45, 60)
VOLTAGES = (0.02, 0.05, 0.10, 0.15)
GRID_STEP_DEG = 1.0
GRID_STEPS_MIN = 20
SAMPLES = 1000
"""Random states of each region that the proved rate is compared with."""
CERTIFICATE = 45, 0.15
"""Region of the certificate from a flat start: degrees, per unit."""
REGIONS_TRIED = ((45, 0.10), CERTIFICATE, (60, 0.15))
"""Regions whose largest ball around the flat start is tried: degrees, per unit."""
BALLS_DEG = (30, 35, 40, 45, 50, 55)
"""Angle bounds that are tried with the voltage bound that the ball touches at the same radius."""
OPERATING_REGION = 20, 0.05
"""Region around the operating point for tracking and robustness."""
DRIFT_AMPLITUDE, DRIFT_HZ, DRIFT_SECONDS = 0.2, 0.2, 10.0
DISTURBANCE, DISTURBANCE_HZ, DISTURBANCE_SECONDS = 0.1, 3.0, 1.5
PAIR_SECONDS, PAIR_STEP_S, STEP_S = 0.3, 0.001, 0.0025
STEPS_PER_EQUILIBRIUM = 10
"""Steps of a simulation for each equilibrium that it is compared with."""
RIM_STARTS = 24
"""Trajectories started on the ball's surface."""


class MicrogridStudy:
    """The 9-bus case with its seminorm. Each method answers one question; nothing is kept between them."""

    def __init__(self) -> None:
        self.grid, self.operating = microgrid9()
        self._shift = shift_seminorm([self.grid.droop.active**-0.5] * self.grid.nodes)
        here = self.grid.jacobian_family(self.operating[np.newaxis, self.grid.nodes :])
        differences = _differences(self.operating, self.grid.nodes)[np.newaxis]
        self.local = _blocks(
            here.seen_by(self._seminorm(1.0)), lambda part, measure: float(measure(part.at(differences)).max())
        )
        self.seminorm = self._seminorm(self.local.weight)

    def findings(self) -> Findings:
        """Every question's answer; some seconds."""
        return Findings(
            self.seminorm,
            self.operating,
            self.local,
            self.regions(),
            self.balls(),
            self.flat_start(),
            self.pair(),
            self.tracking(),
            self.robustness(),
        )

    @property
    def flat(self) -> Floats:
        """The flat start: all angles 0, voltages as set."""
        return np.concatenate([np.zeros(self.grid.nodes), self.grid.voltage_set])

    def family(self, voltage: float) -> MatrixFamily:
        """The Jacobian as the seminorm sees it, over voltages within ``voltage`` of those set."""
        box = box_vertices(self.grid.voltage_set - voltage, self.grid.voltage_set + voltage)
        return self.grid.jacobian_family(box).seen_by(self.seminorm)

    def rate(self, angle_deg: float, voltage: float) -> float:
        """The rate proved for a region. Per second; not positive where contraction is lost."""
        return -regional_bound(self.family(voltage), angle_region(self.grid, angle_deg), log_norm).bound

    def blockwise(self, angle_deg: float, voltage: float) -> BlockwiseRate:
        """The rate proved for a region from its blocks alone, with the weight that suits the region best."""
        box = box_vertices(self.grid.voltage_set - voltage, self.grid.voltage_set + voltage)
        family, region = self.grid.jacobian_family(box).seen_by(self._seminorm(1.0)), angle_region(self.grid, angle_deg)
        return _blocks(family, lambda part, measure: regional_bound(part, region, measure).bound)

    def regions(self, samples: int = SAMPLES) -> tuple[RegionRow, ...]:
        """The table of regions."""
        draw = np.random.default_rng(9)
        return tuple(
            RegionRow(angle, voltage, self.rate(angle, voltage), self.sampled_rate(angle, voltage, samples, draw))
            for angle in ANGLES_DEG
            for voltage in VOLTAGES
        )

    def sampled_rate(self, angle_deg: float, voltage: float, samples: int, draw: np.random.Generator) -> float:
        """The least rate among random states of a region, from the Jacobian itself and not its family."""
        states = [self._random_state(angle_deg, voltage, draw) for _ in range(samples)]
        return -float(self.seminorm.log_norm(np.array([self.grid.jacobian(state) for state in states])).max())

    def ball(self, reference: Floats, angle_deg: float, voltage: float, rate: float | None = None) -> InvariantBall:
        """The largest ball around ``reference`` within a region."""
        nodes, inverse = self.grid.nodes, self.seminorm.inverse
        first, second = np.array(angle_region(self.grid, angle_deg).pairs).T
        room = np.radians(angle_deg) - np.abs(_differences(reference, nodes))
        by_angle = room / np.linalg.norm(inverse[first] - inverse[second], axis=1)
        by_voltage = (voltage - np.abs(reference[nodes:] - self.grid.voltage_set)) / np.linalg.norm(
            inverse[nodes:], axis=1
        )
        radius = float(min(by_angle.min(), by_voltage.min()))
        proved = self.rate(angle_deg, voltage) if rate is None else rate
        return InvariantBall(radius, proved, self.seminorm.of(self.grid.field(reference)))

    def balls(self) -> tuple[BallRow, ...]:
        """The balls around the flat start that are tried."""
        matched = [(angle, self._voltage_with(angle)) for angle in BALLS_DEG]
        rows = []
        for angle, voltage in (*REGIONS_TRIED, *matched):
            ball = self.ball(self.flat, angle, voltage)
            rows.append(BallRow(angle, voltage, ball.rate, ball.radius, ball.disturbance_budget, ball.holds))
        return tuple(rows)

    def flat_start(self) -> FlatStart:
        """The certificate from a flat start, and trajectories from the rim of its ball."""
        ball = self.ball(self.flat, *CERTIFICATE)
        rim = np.array([self._run(start, PAIR_SECONDS) for start in self._rim(self.flat, ball.radius)])
        farthest = max(self.seminorm.of(state - self.flat) for path in rim for state in path)
        true_distance = self.seminorm.of(self.operating - self.flat)
        return FlatStart(ball, self.blockwise(*CERTIFICATE), true_distance, farthest / ball.radius, rim)

    def pair(self) -> Pair:
        """Two trajectories from within the certified ball, some 20 degrees apart; the second's angles are all shifted too."""
        ball = self.ball(self.flat, *CERTIFICATE)
        nodes = self.grid.nodes
        starts = [self.flat.copy(), self.flat.copy()]
        starts[0][:nodes] += np.radians([-8.0, 10.0, 2.0])
        starts[1][:nodes] += np.radians([32.0, 27.0, 25.0])
        starts[0][nodes:] += [0.03, -0.02, 0.02]
        starts[1][nodes:] += [-0.03, 0.03, -0.02]
        assert all(self.seminorm.of(start - self.flat) <= ball.radius for start in starts)
        first, second = (self._run(start, PAIR_SECONDS, PAIR_STEP_S) for start in starts)
        times = np.arange(0.0, PAIR_SECONDS, PAIR_STEP_S, dtype=np.float64)
        distance = np.linalg.norm((first - second) @ self.seminorm.map.T, axis=1)
        bound = distance[0] * np.exp(-ball.rate * times)
        rates = -np.diff(np.log(distance)) / PAIR_STEP_S
        means = np.degrees((second - first)[:, :nodes].mean(axis=1))
        return Pair(
            certified_rate=ball.rate,
            fastest_rate=float(rates.max()),
            slowest_rate=float(rates.min()),
            above_bound_max=float((distance - bound).max()),
            mean_angle_difference_deg=float(means[-1]),
            times=times,
            distance=distance,
            bound=bound,
            first=first,
            second=second,
        )

    def tracking(self) -> Against:
        """Source 2's power setting swings slowly: how far the state stays behind the equilibrium that swings with it."""
        rate, sensitivity = self.rate(*OPERATING_REGION), self._sensitivity()
        swing = 2 * math.pi * DRIFT_HZ
        bound = tracking_bound(rate, sensitivity, DRIFT_AMPLITUDE * swing)

        def grid_at(time: float) -> Microgrid:
            return self._pushed(DRIFT_AMPLITUDE * math.sin(swing * time))

        times = np.arange(0.0, DRIFT_SECONDS, STEP_S, dtype=np.float64)
        states = trajectory(lambda time, state: grid_at(time).field(state), self.operating, times)
        steady, behind = self.operating, []
        for time, state in zip(times[::STEPS_PER_EQUILIBRIUM], states[::STEPS_PER_EQUILIBRIUM], strict=True):
            steady = grid_at(time).equilibrium(steady)
            behind.append(self.seminorm.of(state - steady))
        stays = self.ball(self.operating, *OPERATING_REGION, rate).disturbance_budget >= sensitivity * DRIFT_AMPLITUDE
        shown = times[::STEPS_PER_EQUILIBRIUM]
        bounds = np.full(len(shown), bound)
        return Against("slow swing", rate, sensitivity, max(behind), bound, stays, shown, np.array(behind), bounds)

    def robustness(self) -> tuple[Against, ...]:
        """Source 2's power setting is off by a step, and by a fast square wave: how far the state goes from where it was."""
        rate, sensitivity = self.rate(*OPERATING_REGION), self._sensitivity()
        size = sensitivity * DISTURBANCE
        stays = self.ball(self.operating, *OPERATING_REGION, rate).disturbance_budget >= size
        times = np.arange(0.0, DISTURBANCE_SECONDS, STEP_S, dtype=np.float64)
        bounds = np.array([distance_bound(rate, 0.0, size, time) for time in times])
        bound = distance_bound(rate, 0.0, size, math.inf)
        rows = []
        for name, sign in (("step", _always), ("square wave", _square_wave)):
            states = trajectory(self._disturbed(sign), self.operating, times)
            distance = np.linalg.norm((states - self.operating) @ self.seminorm.map.T, axis=1)
            rows.append(Against(name, rate, sensitivity, float(distance.max()), bound, stays, times, distance, bounds))
        return tuple(rows)

    def _disturbed(self, sign: Callable[[float], float]) -> Callable[[float, Floats], Floats]:
        return lambda time, state: self._pushed(DISTURBANCE * sign(time)).field(state)

    def _voltage_with(self, angle_deg: float) -> float:
        """The voltage bound that a ball around the flat start touches where it touches the angle bound."""
        return self.ball(self.flat, angle_deg, math.inf, rate=0.0).radius / self.local.weight

    def _seminorm(self, weight: float) -> Seminorm:
        nodes = self.grid.nodes
        none = np.zeros((nodes - 1, nodes))
        return Seminorm(
            np.block([[self._shift.map, none], [np.zeros((nodes, nodes)), weight * np.eye(nodes)]]),
            np.block([[self._shift.inverse, np.zeros((nodes, nodes))], [none.T, np.eye(nodes) / weight]]),
        )

    def _sensitivity(self) -> float:
        """How far the field moves, in the seminorm, with source 2's power setting: it is linear in it."""
        return self.seminorm.of(self._pushed(1.0).field(self.operating) - self.grid.field(self.operating))

    def _pushed(self, power: float) -> Microgrid:
        return self.grid.with_active_set(self.grid.active_set + np.array([0.0, power, 0.0]))

    def _run(self, start: Floats, seconds: float, step_s: float = STEP_S) -> Floats:
        return trajectory(
            lambda _time, state: self.grid.field(state), start, np.arange(0.0, seconds, step_s, dtype=np.float64)
        )

    def _rim(self, reference: Floats, radius: float) -> Floats:
        """Points on the surface of a ball: half of them evenly around its angles, half anywhere: (RIM_STARTS, 6)."""
        around = np.linspace(0, 2 * math.pi, RIM_STARTS // 2, endpoint=False)
        angles_only = np.zeros((len(around), len(self.seminorm.map)))
        angles_only[:, 0], angles_only[:, 1] = np.cos(around), np.sin(around)
        anywhere = np.random.default_rng(5).normal(size=(RIM_STARTS - len(around), len(self.seminorm.map)))
        directions = np.concatenate([angles_only, anywhere / np.linalg.norm(anywhere, axis=1, keepdims=True)])
        return np.asarray(reference + radius * directions @ self.seminorm.inverse.T)

    def _random_state(self, angle_deg: float, voltage: float, draw: np.random.Generator) -> Floats:
        nodes, bound = self.grid.nodes, np.radians(angle_deg)
        while True:
            angles = np.concatenate([[0.0], draw.uniform(-bound, bound, nodes - 1)])
            if np.ptp(angles) <= bound:
                return np.concatenate([angles, self.grid.voltage_set + draw.uniform(-voltage, voltage, nodes)])


def angle_region(grid: Microgrid, angle_deg: float) -> AngleRegion:
    """The region of a bound in degrees, cut finely enough that the proof gives away next to nothing."""
    steps = max(GRID_STEPS_MIN, math.ceil(angle_deg / GRID_STEP_DEG))
    return AngleRegion(grid.nodes, math.radians(angle_deg), steps)


def _blocks(family: MatrixFamily, most: Callable[[MatrixFamily, Measure], float]) -> BlockwiseRate:
    """The blockwise rate of angles and voltages, from ``most``, which says how large a measure of a block gets."""
    angles, voltages = slice(0, 2), slice(2, 5)
    return blockwise_rate(
        -most(family.block(angles, angles), log_norm),
        -most(family.block(voltages, voltages), log_norm),
        most(family.block(angles, voltages), spectral_norm),
        most(family.block(voltages, angles), spectral_norm),
    )


def _differences(state: Floats, nodes: int) -> Floats:
    first, second = np.triu_indices(nodes, 1)
    return np.asarray(state[first] - state[second])


def _always(_time: float) -> float:
    return 1.0


def _square_wave(time: float) -> float:
    return 1.0 if math.sin(2 * math.pi * DISTURBANCE_HZ * time) >= 0 else -1.0
