"""Many histories: what they came to together, and how soon the checks find a bug that was planted.

Plain values in and out, so that several processes can share the seeds. It reads no clock: whoever runs it does.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ...actors.config import ConfigError
from .checks import Violation
from .mutations import MUTATIONS, NOTHING_PLANTED
from .scenario import FAULTS, draw, pairs_of
from .world import History, run_history


@dataclass(slots=True)
class Findings:
    """What some seeds came to. ``faulted`` histories had a fault; ``injected`` counts faults by (phase, kind)."""

    histories: int = 0
    faulted: int = 0
    injected: Counter[tuple[str, str]] = field(default_factory=Counter)
    visits: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    violations: list[tuple[int, Violation]] = field(default_factory=list)

    def add(self, history: History) -> None:
        """One history more."""
        self.histories += 1
        self.faulted += bool(history.injected)
        self.injected += history.injected
        self.visits += history.visits
        self.changes += history.changes
        self.virtual_s += history.virtual_s
        if history.violation is not None:
            self.violations.append((history.seed, history.violation))

    def merge(self, other: Findings) -> None:
        """Those of other seeds."""
        self.histories += other.histories
        self.faulted += other.faulted
        self.injected += other.injected
        self.visits += other.visits
        self.changes += other.changes
        self.virtual_s += other.virtual_s
        self.violations.extend(other.violations)

    def uncovered(self, kinds: Sequence[str]) -> list[tuple[str, str]]:
        """The (phase, kind) pairs that can happen and did not."""
        return [pair for pair in pairs_of(kinds) if not self.injected[pair]]


def fault_kinds(names: str) -> tuple[str, ...]:
    """The kinds that ``names`` stands for: "all", "none", or kinds and families by comma ("crash" is all three crashes).

    Raises `ConfigError`.
    """
    if names == "none":
        return ()
    wanted: list[str] = []
    for name in (part.strip() for part in names.split(",")):
        found = [kind for kind in FAULTS if name in ("all", kind) or kind.startswith(f"{name}-")]
        if not found:
            raise ConfigError(f"{name!r} is no kind of fault; choose all, none, or of {', '.join(FAULTS)}")
        wanted.extend(found)
    return tuple(kind for kind in FAULTS if kind in wanted)


def check_mutation(name: str) -> None:
    """Raise `ConfigError` unless there is a mutation of this name."""
    if name not in MUTATIONS:
        raise ConfigError(f"{name!r} is no planted bug; choose all, or one of {', '.join(MUTATIONS)}")


def run_seed(seed: int, kinds: Sequence[str], mutation: str = "", *, log: bool = False) -> History:
    """The history of one seed, with a bug planted where ``mutation`` names one."""
    planted = MUTATIONS[mutation] if mutation else NOTHING_PLANTED
    history = run_history(draw(seed, kinds), planted, log=log)
    gc.collect(0)  # none is collected during a history
    return history


def run_seeds(seeds: Iterable[int], kinds: Sequence[str]) -> Findings:
    """The histories of some seeds."""
    findings = Findings()
    for seed in seeds:
        findings.add(run_seed(seed, kinds))
    gc.collect()
    return findings


def hunt(mutation: str, seeds: Iterable[int], kinds: Sequence[str]) -> tuple[int, Violation] | None:
    """The first seed whose history shows a planted bug, and which rule it broke; None where none does.

    A seed that breaks a rule without the planted bug shows another one.
    """
    for seed in seeds:
        violation = run_seed(seed, kinds, mutation).violation
        if violation is not None and run_seed(seed, kinds).violation is None:
            return seed, violation
    return None
