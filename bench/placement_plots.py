"""The placement bench as pictures: solve times as clusters grow, and how much each contender places on each map.

Owns the look. The library that draws is an extra (`bench`), imported only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .refactor_plots import PIXELS_PER_INCH, require_plot_library

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = (
    ("cold_ms", "p99", "cold, p99", "#d1495b", "dashed"),
    ("cold_ms", "p50", "cold, p50", "#d1495b", "solid"),
    ("event_in_plan_ms", "p50", "after an event in the plan, p50", "#30638e", "solid"),
    ("event_anywhere_ms", "p50", "after an event anywhere, p50", "#0b6e4f", "solid"),
)
COLOURS = ("#0b6e4f", "#69b578", "#30638e", "#5f8fb4", "#003d5b", "#edae49", "#d1495b", "#9a9a9a")


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the plots of `placement.run`'s result as PNG files into ``folder``; their paths. Raises `PlotLibraryError`."""
    require_plot_library()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    if "scale" in result:
        drawn.append(_saved(_growth(result["scale"]), folder / "placement-growth.png"))
    if "packing" in result:
        drawn.append(_saved(_packing(result["packing"]), folder / "placement-packing.png"))
    return drawn


def _growth(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Milliseconds over devices, both logarithmic, a panel per map."""
    maps = list(dict.fromkeys(row["map"] for row in rows))
    figure, panels = _figure(len(maps), 9.0)
    for axes, name in zip(panels, maps, strict=True):
        mine = [row for row in rows if row["map"] == name]
        for what, percentile, label, colour, style in LINES:
            known = [row for row in mine if percentile in row[what]]
            sizes, values = [row["devices"] for row in known], [row[what][percentile] for row in known]
            axes.plot(sizes, values, color=colour, linestyle=style, marker="o", markersize=3, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(name.replace("_", " ") + " %")
        axes.set_xlabel("devices")
        axes.set_ylabel("milliseconds")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    return figure


def _packing(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The share of the memory asked for that found a place, a group of bars per map."""
    maps = list(dict.fromkeys(row["map"] for row in rows))
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    figure, (axes,) = _figure(1, 11.0)
    width = 0.8 / len(contenders)
    for number, (contender, colour) in enumerate(zip(contenders, COLOURS, strict=True)):
        values = [row["placed_share"] for row in rows if row["contender"] == contender]
        axes.bar(np.arange(len(maps)) + number * width, values, width, label=contender, color=colour)
    axes.set_xticks(
        np.arange(len(maps)) + 0.4 - width / 2, [name.replace("_", "\n") + " %" for name in maps], fontsize=8
    )
    axes.set_ylabel("share of the memory asked for that was placed")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.13))
    return figure


def _figure(panels: int, inches: float) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(inches, 4.0), dpi=PIXELS_PER_INCH, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, sharey=True)[0]
    return figure, list(axes)


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
