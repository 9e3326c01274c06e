"""How far the simulators were found from the real runtime, and from each other: the file that `flexpipe evaluate fidelity` writes.

Owns the file's fields, the bars, and the sentence that stands beside a headline. It must never know how anything was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Final, Literal

import msgspec

P50_ERROR_MAX, P99_ERROR_MAX = 0.05, 0.15
"""The bars: relative errors of medians and of 99th percentiles."""
ORDER_GAP_MIN = 0.05
"""Policies whose real difference is smaller have no order."""
TIMES: Final = ("ttft", "tpot", "e2e")
FILE = "fidelity.json"
CHECKED_IN = Path(__file__).parent / FILE
NOT_MEASURED = "Fidelity was not measured in this run."

Simulator = Literal["world", "cluster"]
SIMULATORS: Final[tuple[Simulator, ...]] = ("world", "cluster")


class FidelityError(Exception):
    """A file that tells no fidelity; the sentence says why."""


class MeasureFidelity(msgspec.Struct, frozen=True):
    """One figure: in the world, in the cluster simulator, in the real runtime and when that ran again; None: not known."""

    name: str
    world: float
    cluster: float | None = None
    real: float | None = None
    again: float | None = None

    def error(self, simulator: Simulator) -> float | None:
        """Relative, against the real runtime."""
        found: float | None = getattr(self, simulator)
        return None if self.real is None or found is None else _relative(found, self.real)

    @property
    def between(self) -> float | None:
        """The cluster simulator against the world."""
        return None if self.cluster is None else _relative(self.cluster, self.world)

    @property
    def noise(self) -> float | None:
        """The real runtime's second run against its first."""
        return None if self.real is None or self.again is None else _relative(self.again, self.real)


class CaseFidelity(msgspec.Struct, frozen=True):
    """One policy under one load; ``changes`` live refactorings were made meanwhile."""

    load: str
    policy: str
    requests: int
    changes: int
    measures: tuple[MeasureFidelity, ...]

    def measure(self, name: str) -> MeasureFidelity | None:
        """The figure of that name."""
        return next((each for each in self.measures if each.name == name), None)


class Fidelity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One comparison. ``cores_of_others`` is how much processor others took meanwhile, None where nothing real ran."""

    date: str
    command: str
    model: str
    cores: int
    seed: int
    seconds: float
    cases: tuple[CaseFidelity, ...]
    cores_of_others: float | None = None

    @property
    def is_real(self) -> bool:
        """Whether the real runtime was part of it."""
        return any(each.real is not None for case in self.cases for each in case.measures)

    @property
    def changes(self) -> int:
        """Live refactorings in all."""
        return sum(case.changes for case in self.cases)

    def errors(self, simulator: Simulator, percent: int) -> list[float]:
        """Of all times at this percentile in all cases, absolute; against the real runtime, else of one simulator to the other."""
        found = []
        for each in self._figures(percent):
            error = each.error(simulator) if self.is_real else each.between
            if error is not None:
                found.append(abs(error))
        return found

    def noise(self, percent: int) -> list[float]:
        """The same between two runs of the real runtime."""
        return [abs(each.noise) for each in self._figures(percent) if each.noise is not None]

    def orders(self, simulator: Simulator) -> tuple[int, int]:
        """(pairs of policies in the right order, pairs whose real medians to the end differ by more than `ORDER_GAP_MIN`)."""
        right = pairs = 0
        for one, other in combinations(self.cases, 2):
            a, b = one.measure("e2e_p50_s"), other.measure("e2e_p50_s")
            if one.load != other.load or a is None or b is None:
                continue
            truth_a, truth_b = (each.world if each.real is None else each.real for each in (a, b))
            if abs(_relative(truth_a, truth_b)) <= ORDER_GAP_MIN:
                continue
            pairs += 1
            right += (getattr(a, simulator) < getattr(b, simulator)) == (truth_a < truth_b)
        return right, pairs

    def _figures(self, percent: int) -> Iterator[MeasureFidelity]:
        for case in self.cases:
            for name in TIMES:
                if (each := case.measure(f"{name}_p{percent}_s")) is not None:
                    yield each


def sentence(fidelity: Fidelity, simulator: Simulator = "cluster") -> str:
    """What may stand beside a headline."""
    against = "the real runtime" if fidelity.is_real else "the simulated world of real actors"
    loads = len({case.load for case in fidelity.cases})
    parts = [
        f"p{percent} off by {median(errors):.0%} in the median and by {max(errors):.0%} at most"
        for percent in (50, 99)
        if (errors := fidelity.errors(simulator, percent))
    ]
    right, pairs = fidelity.orders(simulator)
    return (
        f"Against {against} ({fidelity.model}, {fidelity.cores} cores, {loads} loads, {fidelity.changes} live changes; "
        f"{fidelity.date}): {', '.join(parts)}; the order of policies is right in {right} of {pairs} pairs."
    )


def read_fidelity(file: Path) -> Fidelity:
    """The comparison in ``file``. Raises `FidelityError`."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Fidelity)
    except (OSError, msgspec.MsgspecError) as error:
        raise FidelityError(f"{file} cannot be read as a comparison's fidelity: {error}") from error


def checked_in() -> Fidelity | None:
    """The comparison that comes with FlexPipe, if one does."""
    return read_fidelity(CHECKED_IN) if CHECKED_IN.exists() else None


def beside_headlines(measured: Fidelity | None = None) -> str:
    """The sentence for reports: of what was measured now, else that nothing was and what comes with FlexPipe."""
    if measured is not None:
        return sentence(measured)
    known = checked_in()
    return NOT_MEASURED if known is None else f"{NOT_MEASURED} {sentence(known)} It was measured by `{known.command}`."


def _relative(found: float, truth: float) -> float:
    return found / truth - 1 if truth else 0.0
