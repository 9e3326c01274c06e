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
    from ..runtime.models.model_folder import Report

out = Console()
err = Console(stderr=True)

PHASES = {
    "download": "downloading",
    "check": "checking",
    "convert": "converting",
    "capture": "capturing the model's graph",
    "probe": "measuring this machine",
    "measure": "timing the model's parts on this machine",
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
    """The stages as `flexpipe ps` shows them; fits 80 columns. Those of several replicas are numbered "replica.stage"."""
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    is_replicated = any(stage["replica"] for stage in stages)
    for name in ("stage", "state", "pid", "device", "holds", "weights", "memory", "KV pages"):
        table.add_column(name, justify="left" if name in ("state", "device", "holds") else "right", no_wrap=True)
    for stage in stages:
        table.add_row(
            f"{stage['replica']}.{stage['stage']}" if is_replicated else str(stage["stage"]),
            stage["state"],
            str(stage["pid"]),
            stage["device"],
            span(stage["first_atom"], stage["last_atom"]),
            size(stage["weight_bytes"]),
            size(stage["peak_rss_bytes"]),
            f"{stage['kv_pages_used']}/{stage['kv_pages_used'] + stage['kv_pages_free']}",
        )
    return table


def span(first: str, last: str) -> str:
    """Atoms from the first to the last, in short: "embed…11.mlp", "12.attn…24.attn"."""
    first, last = (name.removeprefix("layers.").replace("attention", "attn") for name in (first, last))
    return first if first == last else f"{first}…{last}"


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
    """Bytes for people, three figures: "98.1 MiB", "270 MiB", "1.6 GiB", "46.2 TiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
