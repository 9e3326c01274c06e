"""The refactoring bench as pictures: pauses of every strategy against one decode step, and pauses as contexts grow.

Owns the look. The library that draws is an extra (`bench`), imported only here and only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES = 9.0, 4.0
PIXELS_PER_INCH = 130
COLOURS = {"precopy": "#0b6e4f", "stop-copy": "#d1495b", "recompute": "#edae49", "restart": "#30638e"}


class PlotLibraryError(Exception):
    """There is nothing to draw with; the sentence says how to get it."""


def require_plot_library() -> None:
    """Raise `PlotLibraryError` where matplotlib is not installed: before anything is measured, not after."""
    if find_spec("matplotlib") is None:
        raise PlotLibraryError("plots need matplotlib: pip install 'flexpipe-serve[bench]', or leave --plot out")


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the plots of `refactor.run`'s result as PNG files into ``folder``; their paths. Raises `PlotLibraryError`."""
    require_plot_library()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [_saved(_strategies(result), folder / "refactor-strategies.png")]
    if result["contexts"]:
        drawn.append(_saved(_contexts(result), folder / "refactor-contexts.png"))
    return drawn


def _strategies(result: Mapping[str, Any]) -> Figure:
    """Every round's pause at every change of the chain, and one decode step as a line."""
    figure, (axes,) = _figure(1)
    changes = [f"{a}→{b}" for a, b in zip(result["chain"], result["chain"][1:], strict=False)]
    strategies = [row["strategy"] for row in result["strategies"]]
    for number, strategy in enumerate(strategies):
        rows = [row for row in result["changes"] if row["strategy"] == strategy and row["pause_p99_ms"] is not None]
        offset = (number - (len(strategies) - 1) / 2) * 0.15
        places = [changes.index(f"{row['from']}→{row['to']}") + offset for row in rows]
        pauses = [max(row["pause_p99_ms"], 1.0) for row in rows]
        axes.scatter(places, pauses, color=COLOURS[strategy], label=strategy, alpha=0.8)
    for place, change in enumerate(changes):
        steps = [row["step_before_ms"] for row in result["rows"] if f"{row['from']}→{row['to']}" == change]
        known = [step for step in steps if step is not None]
        if known:
            label = "one decode step" if place == 0 else ""
            axes.hlines(
                sum(known) / len(known), place - 0.4, place + 0.4, color="black", linestyle="dotted", label=label
            )
    axes.set_yscale("log")
    axes.set_xticks(range(len(changes)), changes)
    axes.set(
        xlabel="stages before and after",
        ylabel="pause p99, ms",
        title="What a change of the pipeline costs its streams",
    )
    figure.legend(loc="outside lower center", ncols=len(strategies) + 1, frameon=False, fontsize="small")
    return figure


def _contexts(result: Mapping[str, Any]) -> Figure:
    """Pause against context, once as it is and once with a logarithmic axis, on which the lower curve can be read."""
    figure, panels = _figure(2)
    for scale, axes in zip(("linear", "log"), panels, strict=True):
        for row in result["contexts"]:
            split = row["to"] > row["from"]
            axes.plot(
                row["contexts"],
                row["pause_p99_ms"],
                color=COLOURS[row["strategy"]],
                linestyle="solid" if split else "dashed",
                marker="o",
                label=f"{row['strategy']} {row['from']}→{row['to']}",
            )
        axes.set_yscale(scale)
        axes.set(xlabel="tokens of context in each stream", ylabel="pause p99, ms", title=f"{scale} scale")
    panels[0].legend(frameon=False, fontsize="small")
    return figure


def _figure(panels: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    figure = Figure(figsize=INCHES, dpi=PIXELS_PER_INCH, layout="constrained")
    return figure, [figure.add_subplot(1, panels, number + 1) for number in range(panels)]


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
