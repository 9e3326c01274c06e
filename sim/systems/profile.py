"""What one replica of a depth can do, profiled as every one of the compared systems profiles its stages before it serves.

Owns the trial: one replica alone on devices as the map's typical one is, more requests than it can run at once, drawn from the
history, and the rate at which they end while it is full. It must never see the load of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from ...policies.cluster.cluster_map import ClusterMap, cluster_map
from ...policies.cluster.device_facts import DeviceFacts, LinkClasses
from ..cluster.pipeline_times import running_max
from ..cluster.served_model import ServedModel
from ..cluster.simulator import simulate
from ..cluster.state import DONE
from ..cluster.system import Action, Arrived, Dispatch, Start, View
from ..cluster.workload import Workload
from .placing import Site, on_devices

FILLS = 4
"""How many times as many requests as the replica can run at once are asked for."""
REQUESTS_MIN = 200
FIRST, LAST = 0.25, 0.75
"""The part of the ends that counts: the replica is full, and does not yet run dry."""


@dataclass(frozen=True, slots=True)
class TypicalDevice:
    """What of a map's devices a trial is made on."""

    total_bytes: int
    free_bytes: int
    speed: float
    links: LinkClasses

    def cluster(self, devices: int) -> ClusterMap:
        """So many of them, each in a node of its own."""
        facts = [
            DeviceFacts(f"device-{number}", f"node-{number}", self.total_bytes, self.free_bytes, speed=self.speed)
            for number in range(devices)
        ]
        return cluster_map(facts, links=self.links)


class _Alone:
    """One replica over all devices, and nothing else."""

    name = "alone"
    tick_s = inf
    dispatch: Dispatch = "least-work"

    def __init__(self, stages: int) -> None:
        self._stages = stages

    def begin(self, view: View) -> Sequence[Action]:
        found = on_devices(view.models[0], list(range(self._stages)), Site(view.cluster))
        return [Start(0, found)] if found is not None else []

    def tick(self, _view: View) -> Sequence[Action]:
        return []


def work_per_s(model: ServedModel, stages: int, device: TypicalDevice, history: Arrived, weight: float) -> float:
    """Work per second that the replica ends when full, prompts' tokens weighing ``weight``; 0 where it does not fit."""
    count = max(REQUESTS_MIN, FILLS * running_max(model, stages))
    chosen = np.resize(np.arange(len(history.at_s)), count)
    load = Workload(
        np.zeros(count), history.input_tokens[chosen], history.output_tokens[chosen], np.zeros(count, np.int64)
    )
    requests = simulate(_Alone(stages), load, (model,), device.cluster(stages)).requests
    ended = requests[requests["phase"] == DONE]
    ended = ended[np.argsort(ended["end_s"], kind="stable")]
    first, last = int(FIRST * len(ended)), int(LAST * len(ended))
    if last <= first:
        return 0.0
    work = weight * ended["prompt"] + ended["output"]
    passed_s = float(ended["end_s"][last] - ended["end_s"][first])
    return float(work[first + 1 : last + 1].sum()) / passed_s if passed_s > 0 else 0.0
