"""The study of the 9-bus microgrid as one picture: what is proved, and simulation beside it.

Owns the look. The library that draws is an extra (`bench`), imported only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..policies.certificate.contraction import Floats
from ..sim.microgrid import SOURCES
from ..sim.microgrid_findings import Against, Findings, Pair, RegionRow
from ..sim.microgrid_study import CERTIFICATE
from .refactor_plots import require_plot_library

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = 13.5, 8.0
PIXELS_PER_INCH = 120
VOLTAGE_COLOURS = ("#30638e", "#0b6e4f", "#edae49", "#d1495b")
FIRST, SECOND, PROVED, SEEN = "#30638e", "#0b6e4f", "#d1495b", "#4a4a4a"


def draw(findings: Findings, path: Path) -> Path:
    """Write the picture as PNG to ``path``. Raises `refactor_plots.PlotLibraryError`."""
    require_plot_library()
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    figure = Figure(figsize=INCHES, dpi=PIXELS_PER_INCH, layout="constrained")
    panels = figure.subplots(2, 3)
    _regions(panels[0][0], findings.regions)
    _ball(panels[0][1], findings)
    _distances(panels[0][2], findings.pair)
    _means(panels[1][0], findings.pair)
    _tracking(panels[1][1], findings.tracking)
    _robustness(panels[1][2], findings.robustness)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.suptitle(
        "Semi-contraction of three droop-controlled inverters on the 9-bus grid "
        "(standard droop equations, reconstructed; droop settings of our choice)",
        fontsize="medium",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _regions(axes: Axes, rows: Sequence[RegionRow]) -> None:
    for voltage, colour in zip(sorted({row.voltage for row in rows}), VOLTAGE_COLOURS, strict=True):
        chosen = [row for row in rows if row.voltage == voltage]
        angles = [row.angle_deg for row in chosen]
        axes.plot(
            angles,
            [row.proved_rate for row in chosen],
            color=colour,
            marker=".",
            linewidth=1.2,
            label=f"|V - V*| ≤ {voltage:.2f}",
        )
        axes.plot(
            angles, [row.sampled_worst_rate for row in chosen], color=colour, marker="x", markersize=5, linestyle="none"
        )
    axes.plot([], [], color=SEEN, marker="x", linestyle="none", label="worst of random states")
    axes.set_ylim(0)
    axes.set(xlabel="angle bound, degrees", ylabel="rate, 1/s", title="Rate proved over each region")
    axes.legend(frameon=False, fontsize="small")


def _ball(axes: Axes, findings: Findings) -> None:
    """Angles seen from source 1: the region, the ball's shadow in it, and trajectories from the ball's rim."""
    flat, bound = findings.flat, CERTIFICATE[0]
    hexagon = np.array([(1, 0), (1, 1), (0, 1), (-1, 0), (-1, -1), (0, -1), (1, 0)]) * bound
    axes.plot(*hexagon.T, color=SEEN, linestyle="dashed", linewidth=1, label=f"all angles within {bound}°")
    around = np.linspace(0, 2 * np.pi, 200)
    circle = flat.ball.radius * np.stack([np.cos(around), np.sin(around)])
    rim = findings.seminorm.inverse[:3, :2] @ circle
    axes.fill(*np.degrees(rim[1:] - rim[0]), color=PROVED, alpha=0.12, label="shadow of the ball, proved invariant")
    for path in flat.rim:
        angles = np.degrees(path[:, 1:3] - path[:, :1])
        axes.plot(*angles.T, color=FIRST, linewidth=0.8, alpha=0.7)
        axes.plot(*angles[0], color=FIRST, marker=".", markersize=4)
    axes.plot([], [], color=FIRST, marker=".", linewidth=0.8, label="trajectories from the ball's surface")
    axes.plot(0, 0, color=PROVED, marker="+", markersize=10, linestyle="none", label="flat start, the reference")
    operating = np.degrees(findings.operating[1:3] - findings.operating[0])
    axes.plot(*operating, color="black", marker="*", markersize=9, linestyle="none", label="equilibrium, not used")
    axes.set(xlabel="θ2 - θ1, degrees", ylabel="θ3 - θ1, degrees", title="Invariant ball from a flat start")
    axes.set_ylim(-bound * 1.08, bound * 2.0)
    axes.legend(frameon=False, fontsize="small", loc="upper left", ncols=1)


def _distances(axes: Axes, pair: Pair) -> None:
    _milliseconds(axes, pair.times, pair.bound, PROVED, f"proved: e^(-{pair.certified_rate:.1f} t)", "dashed")
    label = f"simulated: {pair.fastest_rate:.0f} down to {pair.slowest_rate:.0f} /s"
    _milliseconds(axes, pair.times, pair.distance, FIRST, label)
    axes.set_yscale("log")
    axes.set(xlabel="time, ms", ylabel="distance in the seminorm", title="Two trajectories contract …")
    axes.legend(frameon=False, fontsize="small")


def _means(axes: Axes, pair: Pair) -> None:
    for states, colour, name in ((pair.first, FIRST, "first"), (pair.second, SECOND, "second")):
        angles = np.degrees(states[:, :SOURCES])
        for node in range(SOURCES):
            _milliseconds(axes, pair.times, angles[:, node], colour, "", width=0.8)
        _milliseconds(
            axes, pair.times, angles.mean(axis=1), colour, f"{name}: sources (thin) and their mean", width=2.2
        )
    difference = pair.mean_angle_difference_deg
    axes.set(
        xlabel="time, ms", ylabel="angle, degrees", title=f"… while their mean angles stay {difference:.0f}° apart"
    )
    axes.legend(frameon=False, fontsize="small")


def _tracking(axes: Axes, tracking: Against) -> None:
    axes.plot(tracking.times, tracking.bounds * 1e3, color=PROVED, linestyle="dashed", label="proved")
    axes.plot(tracking.times, tracking.distance * 1e3, color=FIRST, label="simulated")
    axes.set_ylim(0, float(tracking.bounds.max()) * 1.3e3)
    axes.set(xlabel="time, s", ylabel="distance x 1000", title="Behind an equilibrium that swings slowly (0.2 Hz)")
    axes.legend(frameon=False, fontsize="small")


def _robustness(axes: Axes, rows: Sequence[Against]) -> None:
    axes.plot(rows[0].times, rows[0].bounds * 1e3, color=PROVED, linestyle="dashed", label="proved, for either")
    for row, colour in zip(rows, (FIRST, SECOND), strict=True):
        axes.plot(row.times, row.distance * 1e3, color=colour, label=f"simulated: {row.name}")
    axes.set_ylim(0, float(rows[0].bounds.max()) * 1.45e3)
    axes.set(xlabel="time, s", ylabel="distance x 1000", title="Away from it, source 2 disturbed by 0.1 p.u.")
    axes.legend(frameon=False, fontsize="small")


def _milliseconds(
    axes: Axes, times: Floats, values: Floats, colour: str, label: str, style: str = "solid", width: float = 1.5
) -> None:
    axes.plot(times * 1e3, values, color=colour, label=label or None, linestyle=style, linewidth=width)
