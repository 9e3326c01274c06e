"""`flexpipe simulate`: runs histories of the simulated world, and says how many rules they broke and what they covered."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Annotated

from cyclopts import Parameter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..sim.world.campaign import Findings, check_mutation, fault_kinds, hunt, run_seed, run_seeds
from ..sim.world.checks import CHECKERS, Violation
from ..sim.world.mutations import MUTATIONS
from ..sim.world.scenario import FAULTS, PHASES
from .console import err, out

AsJson = Annotated[bool, Parameter(negative="", help="Print facts as JSON, for machines.")]
SEEDS_PER_TASK = 20
"""Seeds that a process takes at once: a second or so."""


def simulate(
    *,
    seeds: int = 200,
    first: int = 0,
    faults: str = "all",
    seed: int | None = None,
    trace: bool = False,
    mutate: str = "",
    jobs: int = 1,
    json: AsJson = False,
) -> int:
    """Run histories of a simulated pipeline under faults, and check the promises that the real one makes.

    For example:

        flexpipe simulate --seeds 2000 --faults all --jobs 2
        flexpipe simulate --seed 342 --trace
        flexpipe simulate --mutate all --seeds 1000

    Args:
        seeds: How many histories; each is drawn from its seed.
        first: The first seed.
        faults: Kinds of fault by comma, as crash,partition,disk-full; all; or none.
        seed: Replay this one history.
        trace: With --seed, print the history's event log.
        mutate: Plant this bug, or all in turn, and say at which seed which rule shows it.
        jobs: Processes to share the work.
        json: Print facts as JSON, for machines.
    """
    if seed is not None:
        return seed_command(seed, faults, mutate, trace=trace, as_json=json)
    if mutate:
        return mutate_command(mutate, seeds, faults, jobs, as_json=json)
    return seeds_command(seeds, first, faults, jobs, as_json=json)


def seeds_command(seeds: int, first: int, faults: str, jobs: int, *, as_json: bool) -> int:
    """Run ``seeds`` histories from seed ``first`` on; 1 where one of them broke a rule."""
    kinds = fault_kinds(faults)
    began_s = time.perf_counter()
    findings = Findings()
    chunks = [range(at, min(at + SEEDS_PER_TASK, first + seeds)) for at in range(first, first + seeds, SEEDS_PER_TASK)]
    with _bar("histories", seeds) as advance:
        for part in _run_all(chunks, kinds, jobs):
            findings.merge(part)
            advance(part.histories)
    findings.violations.sort()
    took_s = time.perf_counter() - began_s
    if as_json:
        print(json.dumps(_facts(findings, kinds, faults, took_s)))
    else:
        _show(findings, kinds, faults, took_s)
    return int(bool(findings.violations))


def seed_command(seed: int, faults: str, mutate: str, *, trace: bool, as_json: bool) -> int:
    """Replay one history, with its log where ``trace`` is set; 1 where it broke a rule."""
    kinds = fault_kinds(faults)
    if mutate:
        check_mutation(mutate)
    history = run_seed(seed, kinds, mutate, log=trace)
    if trace:
        print(history.log, end="")
    if as_json:
        facts = {
            "seed": seed,
            "injected": _by_pair(history.injected),
            "visits": history.visits,
            "changes": history.changes,
            "virtual_s": history.virtual_s,
            "violation": _violation(history.violation),
        }
        print(json.dumps(facts))
    elif history.violation is None:
        what = ", ".join(f"{kind} in {phase}" for phase, kind in history.injected) or "no fault"
        err.print(f"seed {seed}: {what}; no rule was broken", highlight=False, soft_wrap=True)
    else:
        err.print(f"seed {seed}: {_sentence(history.violation)}", style="red", highlight=False, soft_wrap=True)
    return int(history.violation is not None)


def mutate_command(name: str, seeds: int, faults: str, jobs: int, *, as_json: bool) -> int:
    """Plant a bug, or each in turn, and look for it in ``seeds`` histories; 1 where one is not found."""
    kinds = fault_kinds(faults)
    names = list(MUTATIONS) if name == "all" else [name]
    for each in names:
        check_mutation(each)
    caught: dict[str, tuple[int, Violation] | None] = {}
    with _bar("planted bugs", len(names)) as advance, _processes(jobs) as processes:
        hunts = {processes.submit(hunt, each, range(seeds), kinds): each for each in names}
        for done in as_completed(hunts):
            caught[hunts[done]] = done.result()
            advance(1)
    if as_json:
        print(json.dumps({each: _catch(caught[each]) for each in names}))
    else:
        _show_mutations(names, caught, seeds)
    return int(any(found is None for found in caught.values()))


# --- running ----------------------------------------------------------------------------------------------------------


def _run_all(chunks: Sequence[range], kinds: Sequence[str], jobs: int) -> Iterator[Findings]:
    if jobs == 1:
        for chunk in chunks:
            yield run_seeds(chunk, kinds)
        return
    with _processes(jobs) as processes:
        for done in as_completed([processes.submit(run_seeds, chunk, kinds) for chunk in chunks]):
            yield done.result()


def _processes(jobs: int) -> ProcessPoolExecutor:
    # Fresh processes: a fork would share this one's state, and histories are to depend on their seed alone.
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


class _Advance:
    """Moves a progress bar on."""

    def __init__(self, display: Progress, name: str, total: int) -> None:
        self._display = display
        self._bar = display.add_task(name, total=total)

    def __call__(self, count: int) -> None:
        self._display.advance(self._bar, count)


@contextmanager
def _bar(name: str, total: int) -> Iterator[_Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as display:
        yield _Advance(display, name, total)


# --- showing ----------------------------------------------------------------------------------------------------------


def _show(findings: Findings, kinds: Sequence[str], faults: str, took_s: float) -> None:
    out.print(_coverage(findings, kinds))
    uncovered = findings.uncovered(kinds)
    lines = [
        f"{findings.histories} histories in {took_s:.1f} s ({findings.histories / took_s:.1f} a second)",
        f"{findings.faulted} with a fault ({60 * findings.faulted / took_s:,.0f} a minute)",
        f"{findings.injected.total()} faults; changes: {_counts(findings.changes)}; requests: {_counts(findings.visits)}",
    ]
    if kinds:
        every = "every pair of phase and fault was met"
        missing = f"pairs not met: {', '.join(f'{kind} in {phase}' for phase, kind in uncovered)}"
        lines.append(missing if uncovered else every)
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)
    if not findings.violations:
        out.print("no rule was broken", style="green")
        return
    seed, violation = findings.violations[0]
    out.print(
        f"{len(findings.violations)} histories broke a rule; the first is seed {seed}: {_sentence(violation)}",
        style="red",
        highlight=False,
        soft_wrap=True,
    )
    out.print(f"replay it: {_replay(seed, faults)}", highlight=False, soft_wrap=True)


def _coverage(findings: Findings, kinds: Sequence[str]) -> Table:
    """How often each kind of fault happened in each phase; "·" where it cannot."""
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    table.add_column("fault")
    for phase in PHASES:
        table.add_column(phase, justify="right")
    for kind in kinds:
        cells = []
        for phase in PHASES:
            count = findings.injected[phase, kind]
            if count == 0 and phase not in FAULTS[kind]:
                cells.append("[dim]·[/]")
            else:
                cells.append(str(count) if count else "[red]0[/]")
        table.add_row(kind, *cells)
    return table


def _show_mutations(names: Sequence[str], caught: dict[str, tuple[int, Violation] | None], seeds: int) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    for column in ("planted bug", "seed", "caught by", "what it does"):
        table.add_column(column, justify="right" if column == "seed" else "left")
    for name in names:
        found = caught[name]
        seed, rule = (str(found[0]), found[1].checker) if found else ("-", "[red]not caught[/]")
        table.add_row(name, seed, rule, MUTATIONS[name].rule)
    out.print(table)
    escaped = sum(found is None for found in caught.values())
    out.print(f"{len(names) - escaped} of {len(names)} planted bugs were caught within {seeds} seeds", highlight=False)


def _facts(findings: Findings, kinds: Sequence[str], faults: str, took_s: float) -> dict[str, object]:
    return {
        "histories": findings.histories,
        "with_fault": findings.faulted,
        "seconds": round(took_s, 3),
        "seeds_per_s": round(findings.histories / took_s, 2),
        "injected": _by_pair(findings.injected),
        "uncovered": [f"{phase}/{kind}" for phase, kind in findings.uncovered(kinds)],
        "changes": findings.changes,
        "visits": findings.visits,
        "virtual_s": round(findings.virtual_s, 3),
        "violations": [
            {"seed": seed, "replay": _replay(seed, faults), **(_violation(violation) or {})}
            for seed, violation in findings.violations
        ],
    }


def _replay(seed: int, faults: str) -> str:
    return f"flexpipe simulate --seed {seed} --trace" + ("" if faults == "all" else f" --faults {faults}")


def _by_pair(injected: dict[tuple[str, str], int]) -> dict[str, int]:
    return {f"{phase}/{kind}": count for (phase, kind), count in sorted(injected.items())}


def _violation(violation: Violation | None) -> dict[str, object] | None:
    if violation is None:
        return None
    return {"rule": violation.checker, "time_s": violation.time_s, "sentence": violation.sentence}


def _catch(found: tuple[int, Violation] | None) -> dict[str, object] | None:
    return None if found is None else {"seed": found[0], **(_violation(found[1]) or {})}


def _sentence(violation: Violation) -> str:
    return f'"{violation.checker}" ({CHECKERS[violation.checker]}) at {violation.time_s:g} s: {violation.sentence}'


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
