"""The fidelity chain: a real pipeline, the simulated world and the cluster simulator on the same traces and the same changes.

First the simulators are calibrated on synthetic load and the numbers frozen; then every case runs in all three. Policies take turns
at each load, since the machine drifts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import msgspec

from ..sim.arrival_trace import ArrivalTrace
from ..sim.evaluation.fidelity import FILE, Fidelity
from ..sim.fidelity.calibration import Calibration
from ..sim.fidelity.case import Case
from ..sim.fidelity.comparison import AGAIN, Extent, all_compared, cases_of
from ..sim.fidelity.observed import Observed
from .calibration import calibrate
from .real_pipeline import RealPipeline, with_real_pipeline
from .served_process import busy_cpu_s

CALIBRATION_FILE, OBSERVED_FILE = "calibration.json", "observed.json"
Runs = dict[tuple[str, str], Observed]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. ``calibration``: one of before, instead of measuring. ``command`` is how a user asks for it again."""

    command: str
    model: str = "smollm2"
    seed: int = 1
    rounds: int = 2
    extent: Extent = field(default_factory=Extent)
    trace: ArrivalTrace | None = None
    calibration: Calibration | None = None


def run(plan: Plan, folder: Path | None, report: Callable[[str], None]) -> Fidelity:
    """All of it; files go to ``folder`` as soon as they are known."""
    began_s, cpu_s = time.monotonic(), busy_cpu_s() - _own_cpu_s()
    cases: list[Case] = []
    real: Runs = {}
    again: Runs = {}
    frozen: list[Calibration] = []

    async def work(pipeline: RealPipeline) -> None:
        calibration = plan.calibration or await calibrate(pipeline, plan.rounds, report)
        frozen.append(calibration)
        _write(folder, CALIBRATION_FILE, msgspec.json.format(msgspec.json.encode(calibration), indent=1))
        cases.extend(cases_of(calibration, plan.seed, plan.extent, plan.trace))
        for case in cases:
            report(f"the real pipeline, {case.load}, {case.policy}: {len(case.trace)} requests")
            real[case.load, case.policy] = await pipeline.play(case)
        for case in cases:
            if (case.load, case.policy) == AGAIN:
                report(f"the real pipeline once more, {case.load}, {case.policy}")
                again[AGAIN] = await pipeline.play(case)

    with_real_pipeline(plan.model, plan.seed, work)
    observed = {f"{load}, {policy}": each.measures() for (load, policy), each in real.items()}
    _write(folder, OBSERVED_FILE, msgspec.json.format(msgspec.json.encode(observed), indent=1))
    real_s = time.monotonic() - began_s
    others = max(0.0, busy_cpu_s() - _own_cpu_s() - cpu_s) / real_s
    found = all_compared(
        cases, frozen[0], plan.seed, real, again, lambda case: report(f"simulated: {case.load}, {case.policy}")
    )
    fidelity = Fidelity(
        date=date.today().isoformat(),
        command=plan.command,
        model=plan.model,
        cores=len(os.sched_getaffinity(0)),
        seed=plan.seed,
        seconds=round(time.monotonic() - began_s, 1),
        cases=found,
        cores_of_others=round(others, 2),
    )
    _write(folder, FILE, json.dumps(msgspec.to_builtins(fidelity), indent=1).encode() + b"\n")
    return fidelity


def _own_cpu_s() -> float:
    """Of this process and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _write(folder: Path | None, name: str, data: bytes) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
