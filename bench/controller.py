"""How long the controller takes: signals, scores and decisions for many pipelines with many candidates each.

Every pipeline has an hour of its own seeded load behind it. A round observes and decides once for each, as the autopilot does
about once a second; changes are said to be done at once, so decisions of every kind occur. Wall times include whatever else
the machine does; CPU times of the deciding thread do not.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ..policies.control.controller import decide, settled
from ..policies.control.decision import ControllerMemory, Decision, Limits
from ..policies.control.granularity import GranularityPolicy, Shape
from ..policies.control.granularity_fluid import FluidPolicy
from ..policies.control.granularity_paper import PaperPolicy
from ..policies.control.observation import Observation
from ..policies.control.signals import Signals

HOUR_S = 3600
TOKENS = 200  # of work in a request
DECISION_MS_MAX = 1.0  # the aim, at the 99th percentile of CPU time; the paper claims less than 5 ms

T = TypeVar("T")


@dataclass
class _Times:
    """Seconds of each call of one kind, by the wall clock and by the thread's CPU clock."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def of(self, call: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.thread_time()
        result = call()
        self.cpu.append(time.thread_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        return result

    def figures(self) -> dict[str, float]:
        """Percentiles in milliseconds."""
        return {
            f"{clock}_{name}_ms": round(float(np.percentile(times, share)) * 1e3, 4)
            for clock, times in (("wall", self.wall), ("cpu", self.cpu))
            for name, share in (("p50", 50), ("p99", 99), ("max", 100))
        }


@dataclass
class _Pipeline:
    signals: Signals
    present: Shape
    memory: ControllerMemory = field(default_factory=ControllerMemory)

    def decide(self, observation: Observation, candidates: tuple[Shape, ...], policy: GranularityPolicy) -> Decision:
        self.memory, decision = decide(self.memory, observation, self.present, candidates, policy, Limits())
        if decision.action == "change" and decision.wanted is not None:
            self.memory = settled(self.memory, observation.at_s, succeeded=True)
            self.present = decision.wanted
        return decision


def candidates(count: int) -> tuple[Shape, ...]:
    """The first ``count`` of up to 16 replicas each of 1, 2, 4 … stages; deeper is slower per token and sooner up."""
    depths = [2**power for power in range(8)]
    shapes = [
        Shape(
            stages,
            replicas,
            tpot_s=0.02 * (1 + 0.05 * (stages - 1)),
            capacity_tokens_per_s=1000.0 * stages * replicas / (1 + 0.05 * (stages - 1)),
            startup_s=2 + 16 / stages,
            switch_s=0.02,
            moved_bytes=10**9 // stages,
            kv_tokens=50_000 * stages * replicas,
        )
        for replicas in range(1, 17)
        for stages in depths[: max(1, count // 8)]
    ]
    return tuple(shapes[:count])


def run(pipelines: int, count: int, rounds: int, report: Callable[[str], None] = lambda _line: None) -> dict[str, Any]:
    """Figures of both policies: milliseconds per observation and decision, per round of all pipelines, and what was decided."""
    shapes = candidates(count)
    results = {}
    for policy in (FluidPolicy(), PaperPolicy()):
        report(f"{policy.name}: an hour of load for each of {pipelines} pipelines")
        results[policy.name] = _measure(policy, pipelines, shapes, rounds)
    return {
        "pipelines": pipelines,
        "candidates": len(shapes),
        "rounds": rounds,
        "decision_ms_max": DECISION_MS_MAX,
        "policies": results,
    }


def _measure(policy: GranularityPolicy, pipelines: int, shapes: tuple[Shape, ...], rounds: int) -> dict[str, Any]:
    event_s, controlled = _loaded(pipelines, shapes)
    rng = np.random.default_rng(pipelines)
    observing, deciding, round_s = _Times(), _Times(), []
    reasons: Counter[str] = Counter()
    for number in range(rounds):
        at_s = HOUR_S + number + 1.0
        spent_s = 0.0
        for pipeline in controlled:
            _serve_second(pipeline.signals, at_s - 1, int(rng.poisson(rng.choice([0, 2, 20]))))
            seen = observing.of(partial(pipeline.signals.observe, at_s))
            decision = deciding.of(partial(pipeline.decide, seen, shapes, policy))
            reasons[decision.reason] += 1
            spent_s += observing.wall[-1] + deciding.wall[-1]
        round_s.append(spent_s)
    return {
        "event_us": round(event_s * 1e6, 2),
        "observe": observing.figures(),
        "decide": deciding.figures(),
        "round_wall_p50_ms": round(float(np.median(round_s)) * 1e3, 2),
        "within_aim": deciding.figures()["cpu_p99_ms"] <= DECISION_MS_MAX,
        "reasons": dict(reasons.most_common()),
    }


def _loaded(pipelines: int, shapes: tuple[Shape, ...]) -> tuple[float, list[_Pipeline]]:
    """(seconds per event, pipelines after an hour of load each, a tenth of it in bursts)."""
    controlled = [_Pipeline(Signals(), shapes[number % len(shapes)]) for number in range(pipelines)]
    events, began = 0, time.perf_counter()
    for seed, pipeline in enumerate(controlled):
        rng = np.random.default_rng(seed)
        for second in range(HOUR_S):
            arrivals = int(rng.poisson(8.0 if second % 600 < 60 else 0.5))
            _serve_second(pipeline.signals, float(second), arrivals)
            events += arrivals + 1
    return (time.perf_counter() - began) / events, controlled


def _serve_second(signals: Signals, at_s: float, arrivals: int) -> None:
    for number in range(arrivals):
        signals.arrived(at_s + (number + 1) / (arrivals + 1), TOKENS)
    signals.sample(at_s + 1, arrivals, 8, 0.3)
