"""The report's pictures, drawn with matplotlib as SVG text: no window, no file, no state of pyplot's.

Owns how things look. A system has one colour everywhere, told apart on light and on dark; a control is grey; ours is drawn last and
thickest. Text, axes and grid are in the colours of `page`, which replaces them by its own.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..systems.catalogue import STATIC_DEPTHS, SYSTEMS, static_of
from .findings import OURS, Effect
from .measures import ATTAINMENT, GOODPUT, GPUS, Measure
from .page import BLACK, EDGE, GRID, INK, PALE
from .results import BEST_STATIC, PEAK_STATIC, Place, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    OURS: "#e0561b",
    "paper": "#d9a441",
    "alpaserve": "#3a7ec4",
    "muxserve": "#7fb0e0",
    "serverlessllm": "#2f9a68",
    "tetris": "#8bbf9f",
    "replicas-only": "#8f5cf0",
    "oracle": BLACK,
    BEST_STATIC: "#7d8592",
    PEAK_STATIC: EDGE,
}
GREYS = dict(zip(STATIC_DEPTHS, ("#c8ccd2", "#a3a9b3", "#7d8592", "#5f6876"), strict=True))
WORTH, COST = "#2f9a68", "#d1453b"
WORTH_PERCENT_MAX = 150.0
"""Longer bars and intervals are cut off; the table beside has them."""
LINES = ("alpaserve", "muxserve", "serverlessllm", "tetris", "paper", BEST_STATIC, "replicas-only", OURS)
TIMELINE_INCHES = (9.0, 4.2)
PNG_DPI = 160
Draw = Callable[["Figure"], None]
IN_TIMELINE = (PEAK_STATIC, BEST_STATIC, "oracle", OURS)
LABELS = {BEST_STATIC: "best static, hindsight", PEAK_STATIC: "static for the peak"}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
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
        if measure.better == "less":  # of times the worst would hide all others
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
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


def timeline(place: Place) -> str | None:
    """What arrived, and the GPUs that systems held meanwhile, in the first seed; None where no run kept its course.

    Where ours changed the stages of a replica there is a mark.
    """
    draw = _timeline(place)
    return None if draw is None else _svg(draw, *TIMELINE_INCHES)


def timeline_png(place: Place) -> bytes | None:
    """The same on white, for pages that cannot take an SVG."""
    draw = _timeline(place)
    return None if draw is None else _png(draw, *TIMELINE_INCHES)


def _timeline(place: Place) -> Draw | None:
    rows = [row for row in map(place.row, IN_TIMELINE) if row is not None and row.runs[0].course is not None]
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.2))
        first = rows[0].runs[0].course
        assert first is not None
        above.fill_between(_minutes(first.at_s), first.arrivals_per_s, step="post", color=PALE, linewidth=0)
        above.set_ylabel("requests/s")
        above.set_ylim(bottom=0)
        above.set_title(f"{place.title}, first seed")
        for row in rows:
            _draw_course(below, row)
        below.set_ylabel("GPUs held")
        below.set_ylim(bottom=0)
        below.set_xlim(0, _minutes(first.at_s)[-1])
        below.set_xlabel("minutes")
        below.grid(axis="y", color=GRID, linewidth=0.7)
        below.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return draw


def _draw_course(axes: Axes, row: Row) -> None:
    course, ours = row.runs[0].course, row.name == OURS
    assert course is not None
    minutes, attained = _minutes(course.at_s), row.runs[0].metrics.get(ATTAINMENT.name) or 0.0
    axes.step(
        *(minutes, course.gpus),
        where="post",
        label=f"{_label(row.name)}\n{attained:.1%} in time",
        color=COLOURS[row.name],
        linewidth=2.2 if ours else 1.4,
        linestyle="--" if row.name in LABELS else "-",
        zorder=5 if ours else 2,
    )
    if ours and course.reshaped_s:
        held = [course.gpus[max(0, bisect_right(course.at_s, at_s) - 1)] for at_s in course.reshaped_s]
        axes.plot(
            *(_minutes(course.reshaped_s), held),
            linestyle="",
            marker="D",
            markersize=5,
            color=COLOURS[OURS],
            markeredgecolor=INK,
            label="stages changed while serving",
            zorder=6,
        )


def _minutes(at_s: Sequence[float]) -> list[float]:
    return [moment_s / 60 for moment_s in at_s]


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
            colour = EDGE if not found.excludes(1.0) else WORTH if change > 0 else COST
            axes.barh(number, change, color=colour, height=0.6)
            if found.count > 1:
                axes.plot([100 * (found.low - 1), 100 * (found.high - 1)], [number, number], color=INK, linewidth=1)
        axes.set_yticks(range(len(known)), [effect.part for effect in reversed(known)])
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlim(max(-100.0, axes.get_xlim()[0]), min(WORTH_PERCENT_MAX, axes.get_xlim()[1]))
        axes.set_xlabel("change of goodput per GPU with it, % (grey: undecided)")
        axes.grid(axis="x", color=GRID, linewidth=0.7)
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
    axes.grid(color=GRID, linewidth=0.7)


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


def _svg(draw: Draw, width: float, height: float) -> str:
    """What ``draw`` makes of a figure of that size in inches."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    with _drawn(draw, width, height) as figure:
        FigureCanvasSVG(figure)
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return text.getvalue()


def _png(draw: Draw, width: float, height: float) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = io.BytesIO()
    with _drawn(draw, width, height) as figure:
        FigureCanvasAgg(figure)
        figure.savefig(data, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return data.getvalue()


@contextmanager
def _drawn(draw: Draw, width: float, height: float) -> Iterator[Figure]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        yield figure
