"""Small clusters, models and systems for tests of the cluster simulator."""

from dataclasses import dataclass, field

import numpy as np
from flexpipe.policies.batching import BatchLimits
from flexpipe.policies.cluster.cluster_map import cluster_map
from flexpipe.policies.cluster.device_facts import DeviceFacts, NodeFacts
from flexpipe.sim.cluster.engine_times import StepTimes
from flexpipe.sim.cluster.served_model import ServedModel
from flexpipe.sim.cluster.system import StageAt, Start
from flexpipe.sim.cluster.workload import Workload

GIB = 1 << 30


def devices(count, per_node=2, gib=80, rate=10e9):
    """That many empty devices, ``per_node`` on each node."""
    facts = [DeviceFacts(f"g{n}", f"node{n // per_node}", gib * GIB, gib * GIB) for n in range(count)]
    nodes = sorted({fact.node for fact in facts})
    return cluster_map(facts, [NodeFacts(node, host_bytes_per_s=rate, network_bytes_per_s=rate) for node in nodes])


def toy(step_s=0.01, per_token=False, running_max=32, gib=8, step_tokens=512, layers=8, **more):
    """A model whose step takes ``step_s`` however many tokens it has, or that much for each."""
    table = ((1.0, 2.0), (step_s, 2 * step_s)) if per_token else ((1.0,), (step_s,))
    return ServedModel(
        name="toy",
        layers=layers,
        weight_bytes=gib * GIB,
        kv_bytes_per_token=1 << 16,
        activation_bytes_per_token=0,
        times=StepTimes(*table),
        limits=BatchLimits(step_tokens, 1 << 16),
        running_max=running_max,
        **more,
    )


def cut(rows, layers=8):
    """Stages of equal layers on these rows of the map."""
    ends = [round(layers * k / len(rows)) for k in range(len(rows) + 1)]
    return tuple(StageAt(row, first, end) for row, first, end in zip(rows, ends, ends[1:], strict=False))


def poisson(rate, count, outputs, prompts=1, seed=0):
    """Poisson arrivals; lengths are numbers or draws, ``f(chance, count)``."""
    chance = np.random.default_rng(seed)
    arrivals = np.cumsum(chance.exponential(1 / rate, count))

    def lengths(of):
        return of(chance, count) if callable(of) else np.full(count, of)

    return Workload(arrivals, lengths(prompts), lengths(outputs), np.zeros(count, np.int64))


@dataclass
class Fixed:
    """Holds these pipelines from the start and does what ``script`` says: {tick: f(view) -> actions}."""

    pipelines: list
    dispatch: str = "least-work"
    tick_s: float = float("inf")
    name: str = "fixed"
    kv_tokens: int | None = None
    script: dict = field(default_factory=dict)
    views: list = field(default_factory=list)

    def begin(self, view):
        self.views.append(view)
        return [Start(0, stages, self.kv_tokens) for stages in self.pipelines]

    def tick(self, view):
        self.views.append(view)
        what = self.script.get(len(self.views) - 1)
        return what(view) if what else []
