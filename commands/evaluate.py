"""`flexpipe evaluate`: runs the grid with a progress bar, prints the table and what follows from it, writes the report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..actors.config import ConfigError
from ..sim.arrival_trace import read_trace
from ..sim.evaluation.cells import code_digest
from ..sim.evaluation.findings import OURS, bar, cause, effects, headlines, losses, percent, title
from ..sim.evaluation.grid import PAPER_MAP, Part, cells_of, paper_parts, trace_parts
from ..sim.evaluation.measures import GOODPUT, MAIN, MEASURES, Measure
from ..sim.evaluation.report import About, report_html
from ..sim.evaluation.results import BEST_STATIC, PEAK_STATIC, Place, Row, places_of
from ..sim.evaluation.setup import check_room, cluster_of, model_of
from ..sim.evaluation.store import open_store
from ..sim.evaluation.sweep import Where, sweep
from ..sim.map_file import read_map
from ..sim.systems.catalogue import static_of
from .console import err, out

REPORT, FACTS = "report.html", "evaluation.json"
SYSTEM_COLUMNS = 27


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be done with the results."""

    command: str
    folder: Path | None
    as_json: bool


def paper_command(folder: Path | None, jobs: int | None, dask: str | None, *, quick: bool, as_json: bool) -> int:
    """The paper's evaluation; 1 where a run broke a law of all runs."""
    command = "flexpipe evaluate paper" + (" --quick" if quick else "")
    return _evaluate(paper_parts(quick=quick), {}, _where(jobs, dask), Wanted(command, folder, as_json))


def trace_command(
    file: Path,
    map_file: Path | None,
    model: str,
    seeds: int,
    folder: Path | None,
    jobs: int | None,
    dask: str | None,
    *,
    as_json: bool,
) -> int:
    """All systems on a user's trace. Raises `TraceError`, `MapError` and `SetupError` for what is none."""
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}; a comparison needs 1 or more")
    model_of(model)
    read_trace(file)
    files = {file.name: file.read_bytes()}
    map_name = PAPER_MAP
    if map_file is not None:
        read_map(map_file)  # refuses what is no map by the name that the user gave it
        map_name = f"map:{map_file.name}"
        files[map_name] = map_file.read_bytes()
    check_room(model, cluster_of(map_name, 0, files), map_name)
    parts = trace_parts(file.name, model, map_name, seeds)
    return _evaluate(parts, files, _where(jobs, dask), Wanted(f"flexpipe evaluate trace {file.name}", folder, as_json))


def _evaluate(parts: Sequence[Part], files: Mapping[str, bytes], where: Where, wanted: Wanted) -> int:
    began_s = time.perf_counter()
    cells = cells_of(parts)
    with _folder(wanted.folder) as folder, open_store(folder) as store, _bar("runs", len(cells)) as done:
        results = sweep(cells, files, store, where, done)
    took_s = time.perf_counter() - began_s
    places = places_of(results)
    flaws = [f"{cell.system}, seed {cell.seed}: {facts.flaw}" for cell, facts in results if facts.flaw]
    facts = _facts(places, len(cells), took_s, flaws)
    if wanted.folder is not None:
        about = About(wanted.command, len(cells), took_s, code_digest())
        (wanted.folder / REPORT).write_text(report_html(places, about), encoding="utf-8")
        (wanted.folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    if wanted.as_json:
        print(json.dumps(facts))
    else:
        _show(places, len(cells), took_s, wanted.folder)
    for flaw in flaws:
        err.print(f"a law of all runs was broken: {flaw}", style="red", highlight=False, soft_wrap=True)
    return int(bool(flaws))


def _where(jobs: int | None, dask: str | None) -> Where:
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; the work needs 1 process or more")
    return Where(jobs or len(os.sched_getaffinity(0)), dask)


@contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with TemporaryDirectory() as passing:
        yield Path(passing)


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as display:
        task = display.add_task(name, total=total)
        yield lambda count: display.advance(task, count)


# --- showing ----------------------------------------------------------------------------------------------------------


def _show(places: Sequence[Place], runs: int, took_s: float, folder: Path | None) -> None:
    for place in places:
        out.print(f"[bold]{place.title}[/], {_count(place.seeds, 'seed')}", highlight=False)
        out.print(_table(place))
    out.print("[bold]Against the best static depth with hindsight[/], goodput per GPU held", highlight=False)
    for found in filter(None, map(bar, places)):
        need = "ahead" if found.least == 1.0 else f"at most {1 - found.least:.0%} behind"
        colour = {"holds": "green", "fails": "red", "undecided": "yellow"}[found.verdict]
        _say(f"  {found.place.title}: {percent(found.ratio)}; needed {need}: [{colour}]{found.verdict}[/]")
    if places:
        for headline in headlines(places, places[0].load.model, places[0].map):
            _say(f"  {headline.claim}: the paper {headline.papers}; here {headline.ours}")
    lost = [sentence for place in places for sentence in losses(place)]
    out.print(f"[bold]Where we lose[/]: {_count(len(lost), 'comparison')}", highlight=False)
    for sentence in lost:
        _say(f"  {sentence}")
    for place in places:
        _say(f"  {place.title}: {cause(place)}")
    _say(f"{runs} runs in {took_s:.0f} s" + (f"; the report is {folder / REPORT}" if folder is not None else ""))


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


def _facts(places: Sequence[Place], runs: int, took_s: float, flaws: Sequence[str]) -> dict[str, Any]:
    return {
        "runs": runs,
        "seconds": round(took_s, 1),
        "code": code_digest(),
        "flaws": list(flaws),
        "places": [_place_facts(place) for place in places],
        "headlines": [
            {"claim": each.claim, "paper": each.papers, "here": each.ours}
            for each in (headlines(places, places[0].load.model, places[0].map) if places else [])
        ],
    }


def _place_facts(place: Place) -> dict[str, Any]:
    found = bar(place)
    return {
        "load": msgspec.to_builtins(place.load),
        "map": place.map,
        "seeds": place.seeds,
        "systems": {
            row.name: {
                "title": title(row),
                "run": row.system,
                **{each.name: _interval(row, each.name) for each in MEASURES},
            }
            for row in place.rows()
        },
        "against_best_static": None
        if found is None
        else {"ratio": _ends(found.ratio), "least": found.least, "verdict": found.verdict},
        "parts": [
            {"part": each.part, "goodput_ratio": _ends(each.goodput), "latency_ratio": _ends(each.latency)}
            for each in effects(place)
        ],
        "losses": losses(place),
        "cause": cause(place),
    }


def _interval(row: Row, name: str) -> dict[str, float | None] | None:
    measure = next(each for each in MEASURES if each.name == name)
    return _ends(row.interval(measure))


def _ends(found: Any) -> dict[str, float | None] | None:
    if found is None:
        return None
    alone = found.count == 1
    return {"mean": found.mean, "low": None if alone else found.low, "high": None if alone else found.high}
