"""An evaluation in the terminal: one table for each place, and then what follows from them in sentences.

Owns the words and their widths. It must never compute a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ..sim.evaluation.findings import OURS, bars, cause, losses, percent, title
from ..sim.evaluation.headlines import headlines
from ..sim.evaluation.measures import ATTAINMENT, GOODPUT, MAIN, Measure
from ..sim.evaluation.report import About
from ..sim.evaluation.resilience import troubled
from ..sim.evaluation.results import BEST_STATIC, PEAK_STATIC, Place, Row
from ..sim.systems.catalogue import static_of
from .console import out

SYSTEM_COLUMNS = 27
COLOURS = {"holds": "green", "fails": "red", "undecided": "yellow"}


def show(places: Sequence[Place], about: About, folder: Path | None) -> None:
    """All of it."""
    for place in places:
        out.print(f"[bold]{place.title}[/], {_count(place.seeds, 'seed')}", highlight=False)
        out.print(_table(place))
    out.print("[bold]Against the best static depth with hindsight[/], goodput per GPU held", highlight=False)
    for found in bars(places):
        need = "ahead" if found.least == 1.0 else f"at most {1 - found.least:.0%} behind"
        verdict = f"[{COLOURS[found.verdict]}]{found.verdict}[/]"
        _say(f"  {found.place.title}: {percent(found.ratio)}; needed {need}: {verdict}")
    beside = f" (the simulator's error: {about.error or 'not measured'})"
    for headline in headlines(places):
        _say(f"  {headline.claim}: the paper {headline.papers}; here {headline.ours}{beside}")
    _show_weather(places)
    lost = [sentence for place in places for sentence in losses(place)]
    out.print(f"[bold]Where we lose[/]: {_count(len(lost), 'comparison')}", highlight=False)
    for sentence in lost:
        _say(f"  {sentence}")
    for place in places:
        _say(f"  {place.title}: {cause(place)}")
    _say(about.words + (f"; the report is in {folder}" if folder is not None else ""))


def _show_weather(places: Sequence[Place]) -> None:
    for place, systems in troubled(places):
        out.print(f"[bold]{place.title}[/], against the same in calm weather", highlight=False)
        for each in systems:
            before, now = (ATTAINMENT.text(found.mean if found else None) for found in each.attainment)
            _say(
                f"  {title(each.row)}: {before} % in time before, {now} % now; goodput per GPU {percent(each.goodput)}"
            )


def _table(place: Place) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("system", no_wrap=True, min_width=SYSTEM_COLUMNS)
    for measure in MAIN:
        table.add_column("\n".join([*measure.title.split(" ", 1), measure.unit]), justify="right", no_wrap=True)
    for row in place.rows():
        cells = (_cell(row, measure) for measure in MAIN)
        table.add_row(_short(row), *cells, style="bold" if row.name == OURS else None)
    return table


def _cell(row: Row, measure: Measure) -> str:
    found = row.interval(measure)
    if found is None:
        return "-"
    return measure.text(found.mean) + (
        f" ±{measure.text(found.half)}" if found.count > 1 and measure is GOODPUT else ""
    )


def _short(row: Row) -> str:
    """A row's name within `SYSTEM_COLUMNS`."""
    fixed = static_of(row.system)
    if fixed is None:
        return title(row)
    what = {BEST_STATIC: "best static", PEAK_STATIC: "peak static"}.get(row.name, "static")
    return f"{what} {fixed[0]}, {fixed[1]:g}x load"


def _say(text: str) -> None:
    out.print(text, highlight=False, soft_wrap=True)


def _count(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"
