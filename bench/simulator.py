"""How many events a second the cluster simulator makes on one core, from one pipeline to tens of thousands of devices.

Requests come at a rate that keeps every pipeline busy without a queue that grows. What is timed is the kernel alone, compiled
before: no system, no ticks. Rates are of CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..sim.cluster.engine_profiles import opt_66b
from ..sim.cluster.pipeline_times import PipelineTimes, running_max, table_of
from ..sim.cluster.slots import Slots
from ..sim.cluster.state import ABSENT, LEAST_WORK, MODEL, REQUEST, new_state

PIPELINES = (1, 16, 256, 4_096, 12_500)
STAGES = 8
EVENTS_PER_S_MIN = 1e6  # the aim, whatever the number of pipelines
LOAD = 0.6
KV_TOKENS = 240_000
INPUT_TOKENS, OUTPUT_TOKENS = (64, 1_948), (16, 400)  # drawn evenly: the means are about those of Azure's conversations


def run(requests: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Simulate ``requests`` requests on each number of pipelines. JSON-able."""
    _simulate(1, 100)  # compiles
    found = []
    for pipelines in PIPELINES:
        report(f"{pipelines} pipelines of {STAGES} stages, {requests} requests")
        found.append(_simulate(pipelines, requests))
    return {"stages": STAGES, "requests": requests, "sizes": found}


def _simulate(pipelines: int, count: int) -> dict[str, Any]:
    from ..sim.cluster import event_kernels as kernels

    model, chance = opt_66b(), np.random.default_rng(0)
    factor = model.times.depth_factor(STAGES)
    times = PipelineTimes(STAGES, factor, factor / STAGES, 0.0, 0.0)
    rate = (
        LOAD
        * pipelines
        * times.requests_per_s(model, float(np.mean(INPUT_TOKENS)), float(np.mean(OUTPUT_TOKENS)), KV_TOKENS)
    )
    requests = np.zeros(count, REQUEST)
    requests["arrival_s"] = np.cumsum(chance.exponential(1 / rate, count))
    requests["prompt"], requests["output"] = (
        chance.integers(*INPUT_TOKENS, count),
        chance.integers(*OUTPUT_TOKENS, count),
    )
    requests["begun_s"] = requests["first_s"] = requests["end_s"] = np.nan
    requests["phase"], requests["next"], requests["replica"] = ABSENT, -1, -1
    models = np.zeros(1, MODEL)
    models["context_s"], models["step_tokens_max"] = model.times.context_s, model.limits.step_tokens_max
    models["queue_max"] = count
    at_once = running_max(model, STAGES)
    slots = Slots(new_state(requests, models, np.array([table_of(model.times)]), at_once, LEAST_WORK, 0.5))
    for _ in range(pipelines):
        slot = slots.take(0, at_once)
        slots.configure(slot, 0.0, times, KV_TOKENS, at_once, 0.0)
        slots.serve(slot, 0.0)
    before_s = time.process_time()
    simulated_s = kernels.run(slots.state, float("inf"))
    took_s = time.process_time() - before_s
    return {
        "pipelines": pipelines,
        "devices": pipelines * STAGES,
        "events": slots.state.events,
        "events_per_s": slots.state.events / took_s,
        "simulated_s": simulated_s,
        "cpu_s": took_s,
    }
