"""`flexpipe evaluate fidelity`: runs the chain from the real runtime to the simulators, and prints how far they are apart.

Owns the words and the exit code. What is measured and how errors are counted is others'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..sim.arrival_trace import read_trace
from ..sim.evaluation.fidelity import (
    P50_ERROR_MAX,
    P99_ERROR_MAX,
    SIMULATORS,
    CaseFidelity,
    Fidelity,
    MeasureFidelity,
    sentence,
)
from ..sim.fidelity.calibration import read_calibration
from ..sim.fidelity.comparison import QUICK, Extent
from .console import err, out

QUIET_CORES_MAX = 0.2
"""Of others, beyond which times are theirs as well."""
THROUGHPUT = "tokens_per_s"
TITLES = {"world": "the simulated world", "cluster": "the cluster simulator"}


def fidelity_command(
    trace_file: Path | None,
    calibration: Path | None,
    model: str,
    seed: int,
    folder: Path | None,
    *,
    quick: bool,
    as_json: bool,
) -> int:
    """Measure and print. Raises `TraceError` and `CalibrationError` for files that are none, `RealRunError`."""
    from ..bench.fidelity import Plan, run

    plan = Plan(
        command=_command(trace_file, calibration, model, seed, quick=quick),
        model=model,
        seed=seed,
        rounds=1 if quick else 2,
        extent=QUICK if quick else Extent(),
        trace=None if trace_file is None else read_trace(trace_file),
        calibration=None if calibration is None else read_calibration(calibration),
    )
    with _progress() as report:
        found = run(plan, folder, report)
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        show_fidelity(found)
    return 0


def show_fidelity(fidelity: Fidelity) -> None:
    """A table for each case, and what they come to."""
    for case in fidelity.cases:
        changes = f", {case.changes} live changes" if case.changes else ""
        out.print(f"[bold]{case.load}, {case.policy}[/]: {case.requests} requests{changes}", highlight=False)
        out.print(_table(case))
    for simulator in SIMULATORS:
        for percent, most in ((50, P50_ERROR_MAX), (99, P99_ERROR_MAX)):
            errors = fidelity.errors(simulator, percent)
            within = sum(error <= most for error in errors)
            _say(f"{TITLES[simulator]}: p{percent} within {most:.0%} in {within} of {len(errors)} figures")
        _say(f"{TITLES[simulator]}. {sentence(fidelity, simulator)}")
    for percent in (50, 99):
        if noise := fidelity.noise(percent):
            _say(f"the real runtime against itself, run twice: p{percent} off by {max(noise):.0%} at most")
    if fidelity.cores_of_others is not None:
        _say(
            f"others took {fidelity.cores_of_others:.2f} of {fidelity.cores} cores meanwhile; {fidelity.seconds:.0f} s"
        )


def _table(case: CaseFidelity) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("", "real", "world", "error", "cluster", "error", "cluster to world", "real again"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for each in case.measures:
        table.add_row(
            "tokens" if each.name == THROUGHPUT else each.name.removesuffix("_s").replace("_", " "),
            _value(each, each.real),
            _value(each, each.world),
            _percent(each.error("world")),
            _value(each, each.cluster),
            _percent(each.error("cluster")),
            _percent(each.between),
            _percent(each.noise),
        )
    return table


def _value(measure: MeasureFidelity, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} /s" if measure.name == THROUGHPUT else f"{value * 1000:.0f} ms"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.0%}"


def _command(trace_file: Path | None, calibration: Path | None, model: str, seed: int, *, quick: bool) -> str:
    words = ["flexpipe evaluate fidelity"]
    if quick:
        words.append("--quick")
    for name, file in (("--trace", trace_file), ("--calibration", calibration)):
        if file is not None:
            words.append(f"{name} {file.name}")
    return " ".join([*words, f"--model {Path(model).name}", f"--seed {seed}"])


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True) as display:
        task = display.add_task("")
        yield lambda line: display.update(task, description=line)


def _say(text: str) -> None:
    out.print(text, highlight=False, soft_wrap=True)
