"""Cases side by side: each in both simulators, and in the real runtime where somebody ran it there.

Owns the loads, the policies and the joining of what was observed. It must never know how the real runtime is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..arrival_trace import ArrivalTrace
from ..evaluation.fidelity import CaseFidelity, MeasureFidelity
from .calibration import Calibration
from .case import Case, evenly, synthetic_trace
from .cluster_run import run_in_cluster
from .observed import Observed
from .world_run import run_in_world

LOADS = {"underloaded": 0.4, "loaded": 0.7, "overloaded": 1.6}
"""As a share of what one stage can serve."""
CHANGES = (2, 1, 3, 2, 3, 1, 2, 1)
"""Numbers of stages, one after the other, from 1 on: each step between 1, 2 and 3 is in it, and three loads make 24 changes."""
STATIC_STAGES = (1, 2)
REFACTORED = "refactored"
AGAIN = ("loaded", REFACTORED)
"""The case that the real runtime runs twice: how far it is from itself."""
_FLOOD_REQUESTS = 400


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is compared: ``seconds`` of arrivals at each load, and ``changes`` in each."""

    seconds: float = 40.0
    changes: int = len(CHANGES)


QUICK = Extent(seconds=15.0, changes=3)


def cases_of(calibration: Calibration, seed: int, extent: Extent, trace: ArrivalTrace | None = None) -> list[Case]:
    """Every policy at every load. A given trace keeps its lengths and the shape of its arrivals, at another speed."""
    cases = []
    for number, (load, share) in enumerate(LOADS.items()):
        if trace is None:
            one_stage = capacity_per_s(calibration, synthetic_trace(seed, 1.0, _FLOOD_REQUESTS))
            played = synthetic_trace(seed + 1 + number, share * one_stage, extent.seconds)
        else:
            fitting = _fitting(trace, calibration)
            rate = share * capacity_per_s(calibration, fitting)
            played = fitting.faster(rate * float(fitting.arrival_s[-1]) / len(fitting)).between(0.0, extent.seconds)
        cases += [Case(load, f"{stages} stage" + "s" * (stages > 1), played, stages) for stages in STATIC_STAGES]
        cases.append(Case(load, REFACTORED, played, 1, evenly(CHANGES[: extent.changes], extent.seconds)))
    return cases


def capacity_per_s(calibration: Calibration, trace: ArrivalTrace) -> float:
    """Requests of these lengths that one stage serves each second: many come at once, and the simulator says how long it takes."""
    inputs, outputs = trace.input_tokens[:_FLOOD_REQUESTS], trace.output_tokens[:_FLOOD_REQUESTS]
    flood = ArrivalTrace(np.zeros(len(inputs)), inputs, outputs)
    return len(inputs) / float(run_in_cluster(Case("flood", "1 stage", flood, 1), calibration).end_s.max())


def compared(
    case: Case, calibration: Calibration, seed: int, real: Observed | None = None, again: Observed | None = None
) -> CaseFidelity:
    """The case in both simulators, beside what was observed of it."""
    runs = {
        "world": run_in_world(case, calibration, seed),
        "cluster": run_in_cluster(case, calibration),
        "real": real,
        "again": again,
    }
    figures = {name: run.measures() for name, run in runs.items() if run is not None}
    return CaseFidelity(
        load=case.load,
        policy=case.policy,
        requests=len(case.trace),
        changes=len(case.changes),
        measures=tuple(_measure(name, figures) for name in figures["world"]),
    )


def all_compared(
    cases: list[Case],
    calibration: Calibration,
    seed: int,
    real: Mapping[tuple[str, str], Observed],
    again: Mapping[tuple[str, str], Observed],
    done: Callable[[Case], None] = lambda _case: None,
) -> tuple[CaseFidelity, ...]:
    """`compared`, for each case; ``real`` and ``again`` are by load and policy."""
    found = []
    for case in cases:
        key = (case.load, case.policy)
        found.append(compared(case, calibration, seed, real.get(key), again.get(key)))
        done(case)
    return tuple(found)


def _measure(name: str, figures: Mapping[str, Mapping[str, float]]) -> MeasureFidelity:
    def of(run: str) -> float | None:
        return figures[run].get(name) if run in figures else None

    return MeasureFidelity(name, figures["world"][name], of("cluster"), of("real"), of("again"))


def _fitting(trace: ArrivalTrace, calibration: Calibration) -> ArrivalTrace:
    """Lengths that fit the calibrated context."""
    most = calibration.context_tokens
    outputs = np.minimum(trace.output_tokens, most // 2)
    return ArrivalTrace(trace.arrival_s, np.minimum(trace.input_tokens, most - outputs), outputs)
