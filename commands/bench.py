"""`flexpipe bench`: runs a benchmark and prints it, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..actors.config import ConfigError
from .console import err, out, size


def engine_command(model: str, concurrency: Sequence[int], threads: int, *, compare: bool, as_json: bool) -> int:
    """One stage's engine without sockets; the exit code."""
    from ..bench import engine
    from ..runtime.models.model_store import resolve

    result = engine.run(
        resolve(model).path,
        concurrency=concurrency,
        threads=threads,
        compare_transformers=compare,
        report=_note,
    )
    print(json.dumps(result, indent=2) if as_json else engine.table(result))
    return 0


def pipeline_command(model: str, concurrency: Sequence[int], rounds: int, *, as_json: bool) -> int:
    """What cutting a model into stages costs; the exit code."""
    from ..bench import pipeline

    result = pipeline.run(model, concurrency=concurrency, rounds=rounds, report=_note)
    if as_json:
        print(json.dumps(result, indent=2))
        return 0
    out.print(f"{model}: {result['tokens_in']} tokens in, {result['tokens_out']} out, median of {rounds} rounds")
    for row in result["rows"]:
        shape = f"{row['contender']['stages']} stages x {row['contender']['threads']} threads"
        out.print(
            f"  {row['requests']:>3} at once, {shape}: {row['tokens_per_s']:6.0f} tokens/s, {row['ratio']:.2f} of the "
            f"yardstick, first tokens within {row['first_token_s']:.2f} s, {row['cores']:.2f} cores",
            highlight=False,
            soft_wrap=True,
        )
    for name, stages in result["stages"].items():
        weights = ", ".join(f"{size(s['weight_bytes'])} of weights in {size(s['peak_rss_bytes'])}" for s in stages)
        out.print(f"  {name}: {weights}", highlight=False, soft_wrap=True)
    return 0


def refactor_command(model: str, rounds: int, contexts: str, plot: Path | None, *, as_json: bool) -> int:
    """What refactoring costs running streams, by each strategy; the exit code.

    Raises `ConfigError` where ``contexts`` are no token counts, `PlotLibraryError` where there is nothing to plot with.
    """
    from ..bench import refactor, refactor_plots

    plan = refactor.Plan(rounds=rounds, contexts=_token_counts(contexts))
    if plot is not None:
        refactor_plots.require_plot_library()
    with _sessions() as report:
        result = refactor.run(model, plan, report)
    drawn = refactor_plots.draw(result, plot) if plot is not None else []
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _print_refactor(result)
    for path in drawn:
        _note(f"drawn: {path}")
    return 0


def controller_command(pipelines: int, candidates: int, rounds: int, *, as_json: bool) -> int:
    """How long the controller takes to decide; the exit code.

    Raises `ConfigError` where there is nothing to measure.
    """
    from ..bench import controller

    if min(pipelines, candidates, rounds) < 1:
        raise ConfigError("pipelines, candidates and rounds must be at least 1")
    result = controller.run(pipelines, candidates, rounds, report=_note)
    if as_json:
        print(json.dumps(result, indent=2))
        return 0
    out.print(f"{result['pipelines']} pipelines, {result['candidates']} candidates each, {rounds} decisions a pipeline")
    rows = [("policy", "decision p50", "p99", "p99 CPU", "observation p50", "p99", "event")]
    for name, at in result["policies"].items():
        decide, observe = at["decide"], at["observe"]
        seconds = (
            decide["wall_p50_ms"],
            decide["wall_p99_ms"],
            decide["cpu_p99_ms"],
            observe["wall_p50_ms"],
            observe["wall_p99_ms"],
        )
        rows.append((name, *(f"{ms:.2f} ms" for ms in seconds), f"{at['event_us']:.1f} us"))
    out.print(_table(rows))
    return 0


def encryption_command(rounds: int, mib: int, *, as_json: bool) -> int:
    """What encryption costs; the exit code. Raises `ConfigError` where there is nothing to measure."""
    from ..bench import encryption

    if min(rounds, mib) < 1:
        raise ConfigError("rounds and mib must be at least 1")
    figures = encryption.measure(rounds, mib)
    if as_json:
        print(json.dumps({"hop_us": figures.hop_us, "pages_gb_s": figures.pages_gb_s}, indent=2))
        return 0
    rows: list[tuple[str, ...]] = [("over tcp on this host", *encryption.KINDS)]
    for hop_bytes in encryption.HOP_BYTES:
        times = ((kind, figures.hop_us[kind][hop_bytes]) for kind in encryption.KINDS)
        cells = (f"{us:.0f} us ({figures.hop_ratio(kind, hop_bytes):.2f}x)" for kind, us in times)
        rows.append((f"hop of {size(hop_bytes)}", *cells))
    for page_bytes in encryption.PAGE_BYTES:
        rates = ((kind, figures.pages_gb_s[kind][page_bytes]) for kind in encryption.KINDS)
        cells = (f"{rate:.2f} GB/s ({figures.pages_share(kind, page_bytes):.0%})" for kind, rate in rates)
        rows.append((f"pages of {size(page_bytes)}", *cells))
    out.print(_table(rows))
    return 0


def cluster_command(model: str, requests: int, tokens: int, cases: Sequence[str], *, as_json: bool) -> int:
    """A real cluster under kills and cut cables; the exit code. Raises `ConfigError` where it cannot be measured."""
    from ..bench import cluster, cluster_words

    if unknown := [case for case in cases if case not in cluster.CASES]:
        raise ConfigError(f"there is no case {unknown[0]!r}; choose from: {', '.join(cluster.CASES)}")
    if min(requests, tokens) < 1:
        raise ConfigError("requests and tokens must be at least 1")
    try:
        result = cluster.run(model, requests, tokens, cases or tuple(cluster.CASES), report=_note)
    except cluster.UnmeasurableError as error:
        raise ConfigError(str(error)) from error
    if as_json:
        print(json.dumps(result, indent=2))
        return 0
    out.print(_table(cluster_words.case_rows(result)))
    for sentence in cluster_words.sentences(result):
        out.print(sentence, highlight=False, soft_wrap=True)
    return 0


def simulator_command(requests: int, *, as_json: bool) -> int:
    """How fast the cluster simulator is; the exit code. Raises `ConfigError` where there is nothing to measure."""
    from ..bench import simulator

    if requests < 1:
        raise ConfigError("requests must be at least 1")
    result = simulator.run(requests, report=_note)
    if as_json:
        print(json.dumps(result, indent=2))
        return 0
    rows: list[tuple[str, ...]] = [("pipelines", "devices", "events", "events/s", "simulated")]
    for at in result["sizes"]:
        pipelines, devices, events = (f"{at[name]:,}" for name in ("pipelines", "devices", "events"))
        rows.append((pipelines, devices, events, f"{at['events_per_s'] / 1e6:.1f} M", f"{at['simulated_s']:,.0f} s"))
    out.print(_table(rows))
    return 0


def placement_command(
    instances: int, rounds: int, maps: Path | None, parts: Sequence[str], plot: Path | None, *, as_json: bool
) -> int:
    """How good placement is and how long it takes; the exit code.

    Raises `ConfigError` where a part has no such name or there is nothing to measure, `MapError` where a map is missing,
    `ExactLibraryError` and `PlotLibraryError` where a library is.
    """
    from ..bench import placement, placement_plots, placement_words
    from ..bench.refactor_plots import require_plot_library

    if min(instances, rounds) < 1:
        raise ConfigError("instances and rounds must be at least 1")
    unknown = sorted(set(parts) - set(placement.PARTS))
    if unknown:
        raise ConfigError(f"there is no part {unknown[0]!r}; parts are {', '.join(placement.PARTS)}")
    if maps is not None and not maps.is_dir():
        raise ConfigError(f"{maps} is no folder of maps")
    if plot is not None:
        require_plot_library()
    plan = placement.Plan(instances, rounds, maps, tuple(parts) or placement.PARTS)
    result = placement.run(plan, report=_note)
    drawn = placement_plots.draw(result, plot) if plot is not None else []
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        for rows in (placement_words.floor_rows, placement_words.scale_rows, placement_words.packing_rows):
            if len(rows(result)) > 1:
                out.print(_table(rows(result)))
                out.print()
        for line in placement_words.sentences(result):
            out.print(line, highlight=False, soft_wrap=True)
    for path in drawn:
        _note(f"drawn: {path}")
    return 0


def _token_counts(text: str) -> tuple[int, ...]:
    """Contexts as "256,1024"; none where the text is empty."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"contexts is {text!r}; write token counts, as 256,1024,4096")
    return tuple(sorted({int(part) for part in parts}))


@contextmanager
def _sessions() -> Iterator[Callable[[str, int, int], None]]:
    """One bar over all servers that a bench starts, with what the present one is for."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True) as display:
        bar = display.add_task("")

        def report(line: str, done: int, total: int) -> None:
            display.update(bar, description=line, completed=done, total=total)

        yield report


def _print_refactor(result: Mapping[str, Any]) -> None:
    from ..bench.refactor_words import change_rows, context_rows, sentences

    for rows in (change_rows(result), context_rows(result)):
        if len(rows) > 1:
            out.print(_table(rows))
            out.print()
    for line in sentences(result):
        out.print(line, highlight=False, soft_wrap=True)


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """The first row names the columns."""
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _note(line: str) -> None:
    err.print(line, style="dim", highlight=False, soft_wrap=True)
