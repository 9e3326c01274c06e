"""Three grid-forming inverters on the 9-bus grid: data, power flow, reduction to the inverters, droop dynamics, trajectories.

Owns the model; knows nothing of proofs. State: angles theta_1..3 (rad, in a frame that turns at nominal frequency), then voltages
V_1..3 (per unit). Power base 100 MVA.

**Reconstructed.** S. Peng, X. He, X. Ru, H. Geng, "Equilibrium-Free Contraction Stability Analysis for Grid-Forming
Converter-Based Microgrids" (arXiv 2605.22171) studies a 9-bus case; only its abstract was at hand. The dynamics here are the
standard droop model without power filters, the grid is MATPOWER's case9 (Chow 1982), and the droop settings below are a choice of
ours. No equation, setting or number is theirs:

    theta_i' = -m (P_i - P_i*)                      P_i = sum_j V_i V_j (G_ij cos th_ij + B_ij sin th_ij)
    tau V_i' = -(V_i - V_i*) - n (Q_i - Q_i*)       Q_i = sum_j V_i V_j (G_ij sin th_ij - B_ij cos th_ij)

Only angle differences appear: a shift of all angles alike changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..policies.certificate.contraction import Floats
from ..policies.certificate.regional_bound import MatrixFamily

BRANCHES = (
    (1, 4, 0.0, 0.0576, 0.0),
    (4, 5, 0.017, 0.092, 0.158),
    (5, 6, 0.039, 0.17, 0.358),
    (3, 6, 0.0, 0.0586, 0.0),
    (6, 7, 0.0119, 0.1008, 0.209),
    (7, 8, 0.0085, 0.072, 0.149),
    (8, 2, 0.0, 0.0625, 0.0),
    (8, 9, 0.032, 0.161, 0.306),
    (9, 4, 0.01, 0.085, 0.176),
)
"""From bus, to bus, r, x, total line charging b. Per unit; MATPOWER case9."""
LOADS = {5: 0.90 + 0.30j, 7: 1.00 + 0.35j, 9: 1.25 + 0.50j}
"""Power drawn at each bus with a load. Per unit."""
SOURCE_POWER = {2: 1.63, 3: 0.85}
"""Active power of the sources at buses 2 and 3; the one at bus 1 gives the rest. Per unit."""
SOURCE_VOLTAGES = (1.04, 1.025, 1.025)
"""Voltages of the sources at buses 1, 2, 3: also the voltages V* that droop returns to. Per unit."""
BUSES, SOURCES = 9, 3
Phasors = NDArray[np.complex128]
POWER_FLOW_STEPS_MAX = 20
POWER_FLOW_RESIDUAL_MAX = 1e-12
EQUILIBRIUM_STEPS_MAX = 30
EQUILIBRIUM_RESIDUAL_MAX = 1e-11


class PowerFlowError(Exception):
    """Newton's method found no steady state."""


@dataclass(frozen=True, slots=True)
class Droop:
    """How the inverters answer power: m in rad/s per p.u., n in p.u. per p.u., tau in s. A choice of ours, see above."""

    active: float = 0.02 * 2 * math.pi * 50
    reactive: float = 0.05
    voltage_time_s: float = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Microgrid:
    """Inverters behind the reduced grid. Arrays of 3, or 3 x 3; per unit."""

    conductance: Floats
    susceptance: Floats
    voltage_set: Floats
    active_set: Floats
    reactive_set: Floats
    droop: Droop

    @property
    def nodes(self) -> int:
        """How many inverters there are."""
        return len(self.voltage_set)

    def with_active_set(self, active_set: Floats) -> Microgrid:
        """The same grid with other active power settings."""
        return replace(self, active_set=active_set)

    def field(self, state: Floats) -> Floats:
        """The state's derivative, per second: (6,)."""
        angles, voltages = state[: self.nodes], state[self.nodes :]
        differences = angles[:, np.newaxis] - angles
        in_phase, quadrature = self._couplings(np.cos(differences), np.sin(differences))
        active, reactive = voltages * (in_phase @ voltages), voltages * (quadrature @ voltages)
        droop = self.droop
        pull = (self.voltage_set - voltages) - droop.reactive * (reactive - self.reactive_set)
        return np.concatenate([-droop.active * (active - self.active_set), pull / droop.voltage_time_s])

    def jacobian(self, state: Floats) -> Floats:
        """The field's derivative by the state: (6, 6), per second."""
        differences = state[: self.nodes, np.newaxis] - state[: self.nodes]
        return self._jacobian(np.cos(differences), np.sin(differences), state[self.nodes :])

    def jacobian_family(self, voltages: Floats) -> MatrixFamily:
        """The Jacobian as a function of the angles, at each of v rows of voltages (v, 3).

        It is affine in the cosines and sines of the angles' differences, and, since no P_i and Q_i has a voltage squared in a
        derivative by an angle, nor more than one voltage in a derivative by a voltage, affine in each voltage.
        """
        one, none = np.eye(self.nodes), np.zeros((self.nodes, self.nodes))
        constant = np.array([self._jacobian(one, none, row) for row in voltages])
        cosine, sine = [], []
        for i in range(self.nodes):
            for j in range(i + 1, self.nodes):
                unit = np.zeros((self.nodes, self.nodes))
                unit[i, j] = 1.0
                even, odd = unit + unit.T, unit - unit.T
                cosine.append([self._jacobian(one + even, none, row) for row in voltages] - constant)
                sine.append([self._jacobian(one, odd, row) for row in voltages] - constant)
        return MatrixFamily(constant, np.stack(cosine, axis=1), np.stack(sine, axis=1))

    def equilibrium(self, near: Floats) -> Floats:
        """The synchronous state near ``near`` with the first angle kept: angles turn alike, voltages stand still.

        Raises `PowerFlowError` where Newton's method finds none.
        """
        state = near.copy()
        nodes = self.nodes
        for _ in range(EQUILIBRIUM_STEPS_MAX):
            derivative, jacobian = self.field(state), self.jacobian(state)
            residual = np.concatenate([derivative[1:nodes] - derivative[0], derivative[nodes:]])
            if float(np.abs(residual).max()) < EQUILIBRIUM_RESIDUAL_MAX:
                return state
            rows = np.concatenate([jacobian[1:nodes] - jacobian[0], jacobian[nodes:]])
            state[1:] -= np.linalg.solve(rows[:, 1:], residual)
        raise PowerFlowError("no synchronous state was found: start nearer to one, or ask for less power")

    def _couplings(self, cosines: Floats, sines: Floats) -> tuple[Floats, Floats]:
        return (
            self.conductance * cosines + self.susceptance * sines,
            self.conductance * sines - self.susceptance * cosines,
        )

    def _jacobian(self, cosines: Floats, sines: Floats, voltages: Floats) -> Floats:
        """By the matrices of cosines and sines, in which it is affine."""
        in_phase, quadrature = self._couplings(cosines, sines)
        products = np.outer(voltages, voltages)
        active_by_angle, reactive_by_angle = _zero_row_sums(products * quadrature), _zero_row_sums(-products * in_phase)
        active_by_voltage = voltages[:, np.newaxis] * in_phase + np.diag(in_phase @ voltages)
        reactive_by_voltage = voltages[:, np.newaxis] * quadrature + np.diag(quadrature @ voltages)
        droop = self.droop
        voltage_pull = np.eye(self.nodes) + droop.reactive * reactive_by_voltage
        return np.block(
            [
                [-droop.active * active_by_angle, -droop.active * active_by_voltage],
                [-droop.reactive / droop.voltage_time_s * reactive_by_angle, -voltage_pull / droop.voltage_time_s],
            ]
        )


def microgrid9(droop: Droop = Droop()) -> tuple[Microgrid, Floats]:
    """The 9-bus case reduced to its three sources, and its operating point (6,), which the droop settings make steady."""
    admittance = _bus_admittance()
    phasors = _power_flow(admittance)
    for bus, power in LOADS.items():
        admittance[bus - 1, bus - 1] += np.conj(power) / abs(phasors[bus - 1]) ** 2  # a load as a constant admittance
    kept, gone = slice(0, SOURCES), slice(SOURCES, BUSES)
    eliminated = np.linalg.solve(admittance[gone, gone], admittance[gone, kept])
    reduced = admittance[kept, kept] - admittance[kept, gone] @ eliminated
    sources = phasors[kept]
    injected = sources * np.conj(reduced @ sources)
    grid = Microgrid(reduced.real, reduced.imag, np.abs(sources), injected.real, injected.imag, droop)
    return grid, np.concatenate([np.angle(sources), np.abs(sources)])


def trajectory(field: Callable[[float, Floats], Floats], start: Floats, times: Floats) -> Floats:
    """States at ``times`` (s, equally spaced), by the classical Runge-Kutta method of order 4: (times, state)."""
    states = [start]
    for at, step in zip(times[:-1], np.diff(times), strict=True):
        state = states[-1]
        first = field(at, state)
        second = field(at + step / 2, state + step / 2 * first)
        third = field(at + step / 2, state + step / 2 * second)
        fourth = field(at + step, state + step * third)
        states.append(state + step / 6 * (first + 2 * second + 2 * third + fourth))
    return np.array(states)


def _bus_admittance() -> Phasors:
    admittance = np.zeros((BUSES, BUSES), dtype=np.complex128)
    for start, end, resistance, reactance, charging in BRANCHES:
        series, (i, j) = 1 / complex(resistance, reactance), (start - 1, end - 1)
        admittance[[i, j], [j, i]] -= series
        admittance[[i, j], [i, j]] += series + 0.5j * charging
    return admittance


def _power_flow(admittance: Phasors) -> Phasors:
    """Complex bus voltages, by Newton's method: bus 1 is the slack, 2 and 3 hold their voltages, the rest their loads."""
    wanted = np.zeros(BUSES, dtype=np.complex128)
    for bus, active in SOURCE_POWER.items():
        wanted[bus - 1] = active
    for bus, power in LOADS.items():
        wanted[bus - 1] -= power
    angles, sizes = np.zeros(BUSES), np.concatenate([SOURCE_VOLTAGES, np.ones(BUSES - SOURCES)])
    for _ in range(POWER_FLOW_STEPS_MAX):
        phasors = np.asarray(sizes * np.exp(1j * angles))
        current = admittance @ phasors
        missing = phasors * np.conj(current) - wanted
        residual = np.concatenate([missing.real[1:], missing.imag[SOURCES:]])
        if float(np.abs(residual).max()) < POWER_FLOW_RESIDUAL_MAX:
            return phasors
        by_angle = 1j * np.diag(phasors) @ np.conj(np.diag(current) - admittance * phasors)
        by_size = np.diag(phasors) @ np.conj(admittance * (phasors / sizes)) + np.diag(
            np.conj(current) * phasors / sizes
        )
        jacobian = np.block(
            [
                [by_angle.real[1:, 1:], by_size.real[1:, SOURCES:]],
                [by_angle.imag[SOURCES:, 1:], by_size.imag[SOURCES:, SOURCES:]],
            ]
        )
        step = np.linalg.solve(jacobian, residual)
        angles[1:] -= step[: BUSES - 1]
        sizes[SOURCES:] -= step[BUSES - 1 :]
    raise PowerFlowError("the power flow of the 9-bus case did not converge")


def _zero_row_sums(matrix: Floats) -> Floats:
    """The matrix with its diagonal replaced so that each row sums to zero: nothing changes when all angles shift alike."""
    outside = matrix - np.diag(np.diag(matrix))
    return np.asarray(outside - np.diag(outside.sum(axis=1)))
