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

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..actors.config import ConfigError
from ..sim.arrival_trace import read_trace
from ..sim.evaluation.cells import code_digest
from ..sim.evaluation.facts import facts_of
from ..sim.evaluation.fidelity import checked_in
from ..sim.evaluation.fidelity_section import clause, fidelity_html
from ..sim.evaluation.grid import PAPER_MAP, Part, cells_of, paper_parts, trace_parts
from ..sim.evaluation.readme import block_of, summary_of, with_block
from ..sim.evaluation.report import About, pictured, report_html
from ..sim.evaluation.results import Place, places_of
from ..sim.evaluation.setup import check_room, cluster_of, model_of
from ..sim.evaluation.store import open_store
from ..sim.evaluation.sweep import Where, sweep
from ..sim.map_file import read_map
from .console import err
from .evaluate_view import show

REPORT, FACTS, SUMMARY, PICTURE = "report.html", "evaluation.json", "summary.json", "picture.png"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be done with the results."""

    command: str
    folder: Path | None
    as_json: bool
    markdown: Path | None = None


def paper_command(
    folder: Path | None, jobs: int | None, dask: str | None, markdown: Path | None, *, quick: bool, as_json: bool
) -> int:
    """The paper's evaluation; 1 where a run broke a law of all runs. Raises `NoBlockError` where ``markdown`` has no block."""
    command = "flexpipe evaluate paper" + (" --quick" if quick else "")
    return _evaluate(paper_parts(quick=quick), {}, _where(jobs, dask), Wanted(command, folder, as_json, markdown))


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
    if wanted.markdown is not None:
        with_block(_read(wanted.markdown), "")  # refused before hours of work, not after
    began_s, told = time.perf_counter(), []
    cells = cells_of(parts)
    with _folder(wanted.folder) as folder, open_store(folder) as store, _bar("runs", len(cells)) as done:

        def tell(count: int) -> None:
            told.append(count)
            done(count)

        results = sweep(cells, files, store, where, tell)
    measured = checked_in()
    about = About(
        wanted.command,
        runs=len(cells),
        fresh=sum(told[1:]),
        took_s=time.perf_counter() - began_s,
        code=code_digest(),
        error=clause(measured),
        fidelity=fidelity_html(measured),
    )
    places = places_of(results)
    flaws = [f"{cell.system}, seed {cell.seed}: {facts.flaw}" for cell, facts in results if facts.flaw]
    facts = facts_of(places, about, flaws)
    if wanted.folder is not None:
        _write(wanted.folder, places, about, facts)
    if wanted.markdown is not None:
        text = with_block(_read(wanted.markdown), block_of(summary_of(facts)))
        wanted.markdown.write_text(text, encoding="utf-8")
    if wanted.as_json:
        print(json.dumps(facts))
    else:
        show(places, about, wanted.folder)
    for flaw in flaws:
        err.print(f"a law of all runs was broken: {flaw}", style="red", highlight=False, soft_wrap=True)
    return int(bool(flaws))


def _write(folder: Path, places: Sequence[Place], about: About, facts: Mapping[str, Any]) -> None:
    (folder / REPORT).write_text(report_html(places, about), encoding="utf-8")
    (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    (folder / SUMMARY).write_text(json.dumps(summary_of(facts), indent=1) + "\n", encoding="utf-8")
    place = pictured(places)
    drawn = None if place is None else _picture(place)
    if drawn is not None:
        (folder / PICTURE).write_bytes(drawn)


def _picture(place: Place) -> bytes | None:
    try:
        from ..sim.evaluation.plots import timeline_png

        return timeline_png(place)
    except ImportError:
        return None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read ({error.strerror}); give a file with --markdown that has the block"
        ) from error


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
