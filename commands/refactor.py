"""`flexpipe refactor`: asks a running server for another pipeline, shows how far it is, and says how it went."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..actors.config import ConfigError
from ..actors.refactor import Pauses, RefactorProgress, RefactorReport
from ..client import Client
from ..client_errors import InvalidRequestError
from ..client_messages import RefactorOptions
from ..client_streams import Refactoring
from ..runtime.interface import WeightSources
from .console import err, out, size

SHAPES = ("stages", "partition", "move", "replicas")
"""The options of which exactly one is given."""
LEFT = "No longer watching. A change that has begun goes on at the server; `flexpipe ps` shows its stages."


def refactor_command(
    model: str | None, options: RefactorOptions, url: str, api_key: str | None, *, as_json: bool
) -> int:
    """Refactor the pipeline of the server at ``url``; the exit code.

    Raises `ConfigError` where the options are at odds or the server serves another model, `FlexPipeError` where the server
    refuses or the change does not come off.
    """
    given = [f"--{name}" for name in SHAPES if options.get(name) is not None]
    if len(given) != 1:
        choices = ", ".join(f"--{name}" for name in SHAPES)
        raise ConfigError(f"give exactly one of {choices}; there is {' and '.join(given) or 'none'}")
    with Client(url, api_key=api_key) as client:
        _check_model(client, model, url)
        try:
            with client.refactor(**options) as refactoring:
                report = _watch(refactoring)
        except InvalidRequestError as error:
            err.print(str(error), style="red", highlight=False, soft_wrap=True)
            return 2
        except KeyboardInterrupt:
            err.print(LEFT, highlight=False, soft_wrap=True)
            return 1
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        for one in (*report.earlier, report):
            out.print(report_table(one))
    return 0


def _check_model(client: Client, model: str | None, url: str) -> None:
    served = [card.id for card in client.models()] if model is not None else []
    if model is not None and Path(model).name not in served and model not in served:
        raise ConfigError(
            f"the server at {url} serves {', '.join(served)}, not {model}; name that, or leave the model out"
        )


def _watch(refactoring: Refactoring) -> RefactorReport:
    """Draw bars until the change is over; its report."""
    with _phase_bars() as bars:
        for progress in refactoring:
            bars.show(progress)
    return refactoring.wait()


class PhaseBars:
    """A bar a phase; the bar of a phase is full when the next begins."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._phase = ""
        self._bar: TaskID | None = None

    def show(self, progress: RefactorProgress) -> None:
        """Draw what is new."""
        if self._bar is None or progress.phase != self._phase:
            if self._bar is not None:
                self._display.update(self._bar, completed=1, total=1)
            self._phase = progress.phase
            self._bar = self._display.add_task("", total=None, bytes="")
        counted = f"{size(progress.done)} of {size(progress.total)}" if progress.total else ""
        description = f"{progress.phase}: {progress.sentence}"
        self._display.update(
            self._bar, description=description, completed=progress.done, total=progress.total or None, bytes=counted
        )


@contextmanager
def _phase_bars() -> Iterator[PhaseBars]:
    """Bars on stderr, so that stdout holds the report and nothing else."""
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[bytes]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as display:
        yield PhaseBars(display)


def report_table(report: RefactorReport) -> Table:
    """How a refactoring went, in words; fits 80 columns."""
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in _rows(report):
        table.add_row(name, Text(text))
    return table


def _rows(report: RefactorReport) -> Iterator[tuple[str, str]]:
    if report.deed == "retired":
        yield f"replica {report.replica}", "retired"
        yield from ((phase, _ms(elapsed_ms)) for phase, elapsed_ms in report.phase_ms.items())
        yield "requests", f"{report.requests_reprefilled} went on elsewhere, {report.requests_lost} lost"
        return
    if report.replica or report.earlier:
        yield f"replica {report.replica}", report.deed
    yield f"epoch {report.epoch}", f"{report.strategy}, serves from step {report.cut_step} on"
    for number, stage in enumerate(report.stages):
        yield f"stage {number}", stage
    for phase, elapsed_ms in report.phase_ms.items():
        yield phase, _ms(elapsed_ms)
    yield "weights", _weights(report.weights)
    yield "KV pages", _pages(report)
    yield "pauses", _pauses(report.pauses)
    yield "TPOT", _tpot(report)
    yield (
        "requests",
        f"{report.requests_lost} lost, {report.requests_preempted} preempted, {report.requests_reprefilled} prefilled again",
    )


def _weights(weights: WeightSources) -> str:
    return (
        f"{size(weights.kept_bytes)} kept, {size(weights.warm_bytes)} from this host's memory, "
        f"{size(weights.peer_bytes)} from a peer, {size(weights.disk_bytes)} from disk"
    )


def _pages(report: RefactorReport) -> str:
    return (
        f"{size(report.kv_sent_bytes)} sent in {report.kv_rounds} rounds, {size(report.kv_resent_bytes)} of it again; "
        f"{size(report.kv_final_bytes)} at the cut, {report.residual_tokens} tokens' worth"
    )


def _pauses(pauses: Pauses) -> str:
    if not pauses.requests:
        return "no request was under way"
    return f"p50 {_ms(pauses.p50_ms)}, p99 {_ms(pauses.p99_ms)}, longest {_ms(pauses.max_ms)}, over {pauses.requests} requests"


def _tpot(report: RefactorReport) -> str:
    before, copying = report.tpot_before_ms, report.tpot_copy_ms
    ratio = f" ({copying / before:.2f}x)" if before and copying else ""
    return f"{_ms(before)} before, {_ms(report.tpot_load_ms)} while loading, {_ms(copying)} while copying{ratio}"


def _ms(value: float | None) -> str:
    """Milliseconds for people: "3.4 ms", "840 ms"; "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"
