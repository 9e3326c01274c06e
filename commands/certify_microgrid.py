"""`flexpipe certify microgrid9`: tables of what is proved of the 9-bus microgrid, beside what simulation shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..sim.microgrid_findings import Against, BallRow, Findings, FlatStart, RegionRow
from ..sim.microgrid_study import (
    CERTIFICATE,
    DISTURBANCE,
    DRIFT_AMPLITUDE,
    DRIFT_HZ,
    OPERATING_REGION,
    SAMPLES,
    MicrogridStudy,
)
from .console import out

RECONSTRUCTED = (
    "The grid is MATPOWER's case9. The equations are the standard droop model without power filters, a reconstruction: those of "
    "arXiv 2605.22171, which studies such a grid, were not at hand. Rates are for the droop settings chosen here, not the paper's: "
    "m = 0.02 x 2 pi 50 rad/s per p.u., n = 0.05, tau = 0.05 s."
)


def microgrid_command(plot: Path | None, *, as_json: bool) -> int:
    """Print the study, and draw it where ``plot`` is given; 1 where the certificate fails. Raises `PlotLibraryError`."""
    from ..bench.microgrid_plot import draw
    from ..bench.refactor_plots import require_plot_library

    if plot is not None:
        require_plot_library()
    findings = MicrogridStudy().findings()
    if plot is not None:
        draw(findings, plot)
    if as_json:
        print(json.dumps(_facts(findings)))
    else:
        _show(findings)
        if plot is not None:
            _say(f"\nDrawn to {plot}.")
    return 0 if findings.flat.ball.holds else 1


def _show(findings: Findings) -> None:
    flat, pair = findings.flat, findings.pair
    _say(RECONSTRUCTED)
    _say(f"\n[bold]Rates over regions[/], per second: proved (worst of {SAMPLES} random states)")
    out.print(_region_table(findings.regions))
    _say(
        f"Voltages weigh {findings.local.weight:.3f}, the best at the operating point: there the two blocks alone give "
        f"{findings.local.rate:.1f} /s. Over {_region(CERTIFICATE)} the blocks alone, each at its own worst state, give only "
        f"{flat.blockwise.rate:.1f} /s; the table's proof takes them together."
    )
    _say(f"\n[bold]From a flat start[/], no equilibrium used. {_ball_sentence(flat)}")
    out.print(_ball_table(findings.balls))
    _say(
        f"\n[bold]Two trajectories[/] within that ball contract at {pair.fastest_rate:.1f} down to {pair.slowest_rate:.1f} /s "
        f"(proved: {pair.certified_rate:.1f}) while their mean angles end {pair.mean_angle_difference_deg:.1f} degrees apart: "
        "the seminorm does not see a shift, and nothing undoes it."
    )
    _say(
        f"\n[bold]Around the operating point[/], {_region(OPERATING_REGION)}, rate {findings.tracking.rate:.1f} /s: source 2's "
        f"power setting swings by {DRIFT_AMPLITUDE} p.u. at {DRIFT_HZ} Hz, or is disturbed by {DISTURBANCE} p.u."
    )
    out.print(_against_table((findings.tracking, *findings.robustness)))


def _ball_sentence(flat: FlatStart) -> str:
    ball = flat.ball
    sum_up = (
        f"Over {_region(CERTIFICATE)} the rate is {ball.rate:.2f} /s, and the largest ball has radius {ball.radius:.3f}: "
        f"{ball.rate:.2f} x {ball.radius:.3f} = {ball.rate * ball.radius:.2f}, against a residual of {ball.residual:.2f}."
    )
    if not ball.holds:
        return f"{sum_up} It is NOT proved to be invariant: {-ball.disturbance_budget:.2f} is missing."
    return (
        f"{sum_up} So it is invariant, with {ball.disturbance_budget:.2f} left for disturbances, and holds one equilibrium, within "
        f"{ball.equilibrium_distance:.3f} (the power flow says {flat.equilibrium_distance:.3f}). Of {len(flat.rim)} trajectories "
        f"that start on its surface none went beyond {flat.rim_distance_max:.3f} of its radius."
    )


def _region_table(rows: Sequence[RegionRow]) -> Table:
    voltages = sorted({row.voltage for row in rows})
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    table.add_column("angles within", justify="right")
    for voltage in voltages:
        table.add_column(f"|V-V*| <= {voltage:.2f}", justify="right")
    for angle in sorted({row.angle_deg for row in rows}):
        cells = [f"{row.proved_rate:.2f} ({row.sampled_worst_rate:.2f})" for row in rows if row.angle_deg == angle]
        table.add_row(f"{angle:g} deg", *cells)
    return table


def _ball_table(rows: Sequence[BallRow]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    for column in ("angles within", "|V-V*| <=", "rate /s", "largest ball", "budget", "invariant"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = f"{row.rate:.2f}", f"{row.radius:.3f}", f"{row.budget:+.2f}"
        table.add_row(f"{row.angle_deg:g} deg", f"{row.voltage:.3f}", *numbers, "proved" if row.holds else "not proved")
    return table


def _against_table(rows: Sequence[Against]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    table.add_column("disturbance")
    for column in ("simulated", "proved bound", "stays in the region"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row.name, f"{row.simulated:.2e}", f"{row.bound:.2e}", "proved" if row.stays else "not proved")
    return table


def _region(region: tuple[float, float]) -> str:
    return f"{region[0]:g} degrees and |V-V*| <= {region[1]:g}"


def _facts(findings: Findings) -> dict[str, Any]:
    flat, ball = findings.flat, findings.flat.ball
    return {
        "note": RECONSTRUCTED,
        "voltage_weight": findings.local.weight,
        "blockwise_rate_at_operating_point": findings.local.rate,
        "regions": [_fields(row, RegionRow.__slots__) for row in findings.regions],
        "balls": [_fields(row, BallRow.__slots__) for row in findings.balls],
        "flat_start": {
            "angle_deg": CERTIFICATE[0],
            "voltage": CERTIFICATE[1],
            **_fields(ball, ("rate", "radius", "residual", "disturbance_budget", "holds")),
            "equilibrium_distance_bound": ball.equilibrium_distance if ball.holds else None,
            "equilibrium_distance": flat.equilibrium_distance,
            "blockwise_rate": flat.blockwise.rate,
            "rim_distance_max": flat.rim_distance_max,
        },
        "pair": _fields(
            findings.pair,
            ("certified_rate", "fastest_rate", "slowest_rate", "above_bound_max", "mean_angle_difference_deg"),
        ),
        "against_simulation": [
            _fields(row, ("name", "rate", "sensitivity", "simulated", "bound", "stays"))
            for row in (findings.tracking, *findings.robustness)
        ],
    }


def _fields(value: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}


def _say(text: str) -> None:
    out.print(text, highlight=False, soft_wrap=True)
