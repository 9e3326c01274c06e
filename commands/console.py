"""How the command line shows things: progress bars, tables, sentences. Facts come in, text goes out; it decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from ..actors.generation import StageStatus
    from ..runtime.model_folder import Report

out = Console()
err = Console(stderr=True)

PHASES = {
    "download": "downloading",
    "verify": "checking",
    "convert": "converting",
    "tokenizer": "reading the tokenizer",
    "capture": "capturing the model's graph",
}
"""What a `Report` phase is called for people; an unknown one is shown as it is."""


@contextmanager
def progress() -> Iterator[Progress]:
    """A transient progress display on stderr, so that stdout stays clean for pipes."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as display:
        yield display


def reporter(display: Progress) -> Report:
    """A `Report` that draws one bar a phase. Callable from any thread."""
    bars: dict[str, TaskID] = {}

    def report(phase: str, done: int, total: int) -> None:
        if phase not in bars:
            bars[phase] = display.add_task(PHASES.get(phase, phase))
        display.update(bars[phase], completed=done, total=total or None)

    return report


def stage_table(stages: Sequence[StageStatus]) -> Table:
    """The stages as `flexpipe ps` shows them."""
    table = Table(box=None, header_style="bold")
    for name in ("stage", "state", "pid", "device", "atoms", "layers", "weights", "memory", "KV pages", "epoch"):
        table.add_column(name, justify="left" if name in ("state", "device", "atoms", "layers") else "right")
    for stage in stages:
        pages = f"{stage['kv_pages_used']}/{stage['kv_pages_used'] + stage['kv_pages_free']}"
        table.add_row(
            str(stage["stage"]),
            stage["state"],
            str(stage["pid"]),
            stage["device"],
            span(stage["first_atom"], stage["last_atom"]),
            ranges(stage["layers"]),
            size(stage["weight_bytes"]),
            size(stage["peak_rss_bytes"]),
            pages,
            str(stage["epoch"]),
        )
    return table


def span(first: str, last: str) -> str:
    """One atom, or from the first to the last."""
    return first if first == last else f"{first} … {last}"


def ranges(numbers: Sequence[int]) -> str:
    """Layer numbers as "0-9" or "0-3, 7"."""
    parts: list[str] = []
    for number in numbers:
        if parts and number == int(parts[-1].rpartition("-")[2]) + 1:
            parts[-1] = f"{parts[-1].partition('-')[0]}-{number}"
        else:
            parts.append(str(number))
    return ", ".join(parts) or "-"


def size(count: float) -> str:
    """Bytes for people: "98.1 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
