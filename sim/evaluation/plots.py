"""The report's pictures, drawn with matplotlib as SVG text: no window, no file, no state of pyplot's.

Owns how things look. A system has one colour everywhere; a control is grey; ours is drawn last and thickest.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..systems.catalogue import STATIC_DEPTHS, SYSTEMS, static_of
from .findings import OURS, Effect
from .measures import ATTAINMENT, GOODPUT, GPUS, Measure
from .results import BEST_STATIC, PEAK_STATIC, Place, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    OURS: "#c2410c",
    "paper": "#d9a441",
    "alpaserve": "#2563a8",
    "muxserve": "#6b9bd1",
    "serverlessllm": "#2f855a",
    "tetris": "#8bbf9f",
    "replicas-only": "#7c3aed",
    "oracle": "#111111",
    BEST_STATIC: "#6b7280",
    PEAK_STATIC: "#9ca3af",
}
GREYS = dict(zip(STATIC_DEPTHS, ("#c8ccd2", "#a3a9b3", "#7d8592", "#565e6b"), strict=True))
LINES = ("alpaserve", "muxserve", "serverlessllm", "tetris", "paper", BEST_STATIC, "replicas-only", OURS)
LABELS = {BEST_STATIC: "best static, hindsight", PEAK_STATIC: "static for the peak"}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": "#374151",
    "ytick.color": "#374151",
    "svg.fonttype": "path",
    "svg.hashsalt": "flexpipe",  # the same picture, the same text
}


def by_cv(places: Sequence[Place], measure: Measure) -> str:
    """One measure over the variation of arrivals, a line for each system, with 95 % intervals over seeds."""
    ordered = sorted((place for place in places if place.load.cv is not None), key=lambda place: place.load.cv or 0.0)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, name in enumerate(LINES):
            rows = [(place, place.row(name)) for place in ordered]
            points = [(place, row, row.interval(measure)) for place, row in rows if row is not None]
            known = [(place, found) for place, _, found in points if found is not None]
            if not known:
                continue
            nudge = 2 ** ((number - len(LINES) / 2) * 0.022)
            x = [(place.load.cv or 0.0) * nudge for place, _ in known]
            y = [found.mean * measure.scale for _, found in known]
            half = [found.half * measure.scale if found.count > 1 else 0.0 for _, found in known]
            ours = name == OURS
            axes.errorbar(
                *(x, y, half),
                label=_label(name),
                color=COLOURS[name],
                linewidth=2.6 if ours else 1.3,
                marker="o",
                markersize=6 if ours else 4,
                capsize=2,
                linestyle="--" if name == BEST_STATIC else "-",
                zorder=5 if ours else 2,
            )
        cvs = [place.load.cv or 0.0 for place in ordered]
        axes.set_xscale("log", base=2)
        axes.set_xticks(cvs, [f"{cv:g}" for cv in cvs])
        axes.minorticks_off()
        axes.set_xlabel("variation of inter-arrival times (CV)")
        axes.set_ylabel(_axis(measure))
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.7)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return _svg(draw, 7.6, 3.9)


def frontier(places: Sequence[Place]) -> str:
    """GPUs held against requests in time: each static depth as a curve over how much of it there is, each system as a point."""

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
        for axes, place in zip(grid, places, strict=True):
            _frontier_of(axes, place)
        grid[0].set_ylabel(_axis(ATTAINMENT))
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=6)

    return _svg(draw, 2.9 * max(2, len(places)) + 0.4, 3.9)


def timeline(place: Place, names: Sequence[str] = (PEAK_STATIC, "alpaserve", "replicas-only", OURS)) -> str | None:
    """What arrived, and the GPUs that systems held meanwhile, in the first seed; None where no run kept its course."""
    rows = [row for row in map(place.row, names) if row is not None and row.runs[0].course is not None]
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.7))
        first = rows[0].runs[0].course
        assert first is not None
        minutes = [at_s / 60 for at_s in first.at_s]
        above.fill_between(minutes, first.arrivals_per_s, step="post", color="#cbd5e1")
        above.set_ylabel("requests/s")
        above.set_title(f"{place.title}, first seed")
        for row in rows:
            course = row.runs[0].course
            assert course is not None
            held = [at_s / 60 for at_s in course.at_s]
            below.step(
                *(held, course.gpus),
                where="post",
                label=_label(row.name),
                color=COLOURS[row.name],
                linewidth=2.2 if row.name == OURS else 1.3,
            )
        below.set_ylabel("GPUs held")
        below.set_ylim(bottom=0)
        below.set_xlabel("minutes")
        below.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return _svg(draw, 8.6, 4.0)


def worth(effects: Sequence[Effect]) -> str | None:
    """What each part is worth in goodput per GPU, with intervals; None where nothing can be compared."""
    known = [effect for effect in effects if effect.goodput is not None]
    if not known:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, effect in enumerate(reversed(known)):
            found = effect.goodput
            assert found is not None
            change = 100 * (found.mean - 1)
            colour = "#9ca3af" if not found.excludes(1.0) else "#2f855a" if change > 0 else "#b91c1c"
            axes.barh(number, change, color=colour, height=0.6)
            if found.count > 1:
                axes.plot(
                    [100 * (found.low - 1), 100 * (found.high - 1)], [number, number], color="#374151", linewidth=1
                )
        axes.set_yticks(range(len(known)), [effect.part for effect in reversed(known)])
        axes.axvline(0, color="#374151", linewidth=0.8)
        axes.set_xlabel("change of goodput per GPU with it, % (grey: undecided)")
        axes.grid(axis="x", color="#e5e7eb", linewidth=0.7)
        axes.set_axisbelow(True)

    return _svg(draw, 7.6, 0.34 * len(known) + 0.9)


def _frontier_of(axes: Axes, place: Place) -> None:
    by_depth: dict[int, list[tuple[float, float]]] = {}
    for row in place.static_rows():
        fixed, point = static_of(row.system), _point(row)
        if fixed is not None and point is not None:
            by_depth.setdefault(fixed[0], []).append(point)
    for depth, points in sorted(by_depth.items()):
        xs, ys = zip(*sorted(points), strict=True)
        axes.plot(xs, ys, color=GREYS.get(depth, "#6b7280"), linewidth=1.4, marker=".", label=f"static {depth}")
    for name in (*(name for name in COLOURS if name in SYSTEMS and name != OURS), OURS):
        found = place.row(name)
        point = None if found is None else _point(found)
        if point is not None:
            axes.plot(
                *point,
                linestyle="",
                marker="*" if name == OURS else "o",
                markersize=13 if name == OURS else 6,
                color=COLOURS[name],
                label=_label(name),
                zorder=5,
            )
    axes.set_title(place.load.words)
    axes.set_xlabel("GPUs held, mean")
    axes.grid(color="#e5e7eb", linewidth=0.7)


def _point(row: Row) -> tuple[float, float] | None:
    gpus, attained = row.mean(GPUS), row.mean(ATTAINMENT)
    return None if gpus is None or attained is None else (gpus, 100 * attained)


def _label(name: str) -> str:
    return LABELS.get(name) or SYSTEMS[name].title


def _axis(measure: Measure) -> str:
    if measure is GOODPUT:
        return "requests in time per GPU hour held"
    if measure is ATTAINMENT:
        return "requests in time, %"
    return f"{measure.title}, {measure.unit}" if measure.unit else measure.title


def _svg(draw: Callable[[Any], None], width: float, height: float) -> str:
    """What ``draw`` makes of a figure of that size in inches."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
