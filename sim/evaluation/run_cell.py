"""One run of the evaluation, from a cell to its facts: what a process, here or elsewhere, is asked to do.

Owns the putting together of map, load, system and simulator. The same cell gives the same facts, wherever it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from math import isfinite

import msgspec
import numpy as np

from ..cluster.metrics import metrics
from ..cluster.run_record import RunRecord
from ..cluster.simulator import simulate
from ..cluster.startup import StartupModel
from ..cluster.system import Arrived, Reshape, Start
from ..cluster.workload import Workload
from ..systems.catalogue import entry
from ..systems.model_shapes import model_facts
from ..systems.situation import Situation
from .cells import Cell
from .setup import check_room, cluster_of, faster_loading, history_of, model_of, workload_of
from .weather import weather_of

WEATHER_SEEDS = 2_000_003
"""What befalls a cluster is drawn from a run's seed plus this, apart from its tenants and its load."""
COURSE_POINTS = 180
"""Moments of a run's course that are kept, of its first seed."""


class Course(msgspec.Struct, frozen=True):
    """What arrived, and the GPUs held, at moments of a run; ``reshaped_s`` are those at which a replica had changed its stages."""

    at_s: list[float]
    arrivals_per_s: list[float]
    gpus: list[float]
    reshaped_s: list[float] = []


class Facts(msgspec.Struct, frozen=True):
    """What came out of a run: `cluster.metrics` by name, None where there is no number.

    ``counts`` says what became of its requests, ``flaw`` which law of all runs was broken, "" for none, and ``course`` how the
    first seed's went.
    """

    metrics: dict[str, float | None]
    counts: dict[str, int]
    flaw: str
    events: int
    course: Course | None = None


def run_cell(cell: Cell, files: Mapping[str, bytes]) -> Facts:
    """Simulate it. Raises `UnknownSystemError`, `UnknownWeatherError`, and what `setup` raises for names that are none."""
    found, served = entry(cell.system), model_of(cell.load.model)
    model, cluster = served.make(), cluster_of(cell.map, cell.seed, files)
    check_room(cell.load.model, cluster, cell.map)
    if found.loading != 1.0:
        cluster = faster_loading(cluster, found.loading)
    load, history = workload_of(cell.load, cell.seed, files), history_of(cell.load, cell.seed, files)
    rate = load_bytes_per_s(found.startup, float(np.median(cluster.network_bytes_per_s)))
    situation = Situation(
        models=(model,),
        cluster=cluster,
        facts=(model_facts(cluster, model, _arrived(history), rate, wait_s=found.startup.process_s.values[0]),),
        deadlines=(served.deadlines,),
        startup=found.startup,
        history=(_arrived(history),),
        future=(_arrived(load),),
    )
    weather = weather_of(cell.weather)
    record = simulate(
        found.make(situation),
        load,
        (model,),
        cluster,
        startup=replace(found.startup, allocation=weather.allocation),
        incidents=weather.draw(cluster, load.ends_s, cell.seed + WEATHER_SEEDS),
        seed=cell.seed,
    )
    return Facts(
        metrics=_numbers(record, asdict(metrics(record, (served.deadlines,)))),
        counts=record.counts(),
        flaw=record.flaw(),
        events=record.events,
        course=_course(record) if cell.seed == 0 else None,
    )


def load_bytes_per_s(startup: StartupModel, network_bytes_per_s: float) -> float:
    """At what rate a system may expect a stage's weights: a peer's where peers give, else storage's."""
    return network_bytes_per_s if startup.peers else startup.stream_bytes_per_s


def _numbers(record: RunRecord, found: dict[str, float]) -> dict[str, float | None]:
    starts = [
        each
        for each in record.outcomes
        if each.kind == "serving" and isinstance(each.action, Start) and 0 < each.at_s <= record.load_s
    ]
    found["starts_per_min"] = 60 * len(starts) / max(record.load_s, 1e-9)
    return {name: float(value) if isfinite(value) else None for name, value in found.items()}


def _course(record: RunRecord) -> Course:
    edges = np.linspace(0.0, record.load_s, COURSE_POINTS + 1)
    counts, _ = np.histogram(record.requests["arrival_s"], edges)
    moments, held = zip(*record.timeline, strict=True)
    places = np.searchsorted(np.array(moments), edges[:-1], side="right") - 1
    width_s = max(record.load_s / COURSE_POINTS, 1e-9)
    return Course(
        at_s=[round(float(at_s), 3) for at_s in edges[:-1]],
        arrivals_per_s=[round(float(count) / width_s, 3) for count in counts],
        gpus=[float(held[place]) for place in places],
        reshaped_s=[
            round(each.at_s, 3)
            for each in record.outcomes
            if each.kind == "serving" and isinstance(each.action, Reshape) and each.at_s <= record.load_s
        ],
    )


def _arrived(load: Workload) -> Arrived:
    return Arrived(load.arrival_s, load.input_tokens, load.output_tokens)
