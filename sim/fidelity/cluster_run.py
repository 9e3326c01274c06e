"""A case in the cluster simulator: one pipeline with the calibrated table, reshaped as the case says.

Owns the translation of a calibration into a served model, devices and a start-up model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from ...policies.cluster.cluster_map import ClusterMap, cluster_map
from ...policies.cluster.device_facts import DeviceFacts, LinkClasses, NodeFacts
from ...policies.types import NS_PER_S, Link
from ..cluster.metrics import response_times
from ..cluster.served_model import ServedModel
from ..cluster.simulator import simulate
from ..cluster.startup import StartupModel, always
from ..cluster.system import Action, Dispatch, Reshape, StageAt, Start, View
from ..cluster.workload import of_trace
from .calibration import Calibration
from .case import Case
from .observed import Observed, ObservedChange

TICK_S = 0.02
SETTLE_S_MAX = 1e7
"""As long as it takes: every request ends."""
PARTS = 10_000
"""Layers of the simulated model: a stage's share of the computing is rounded to so many parts."""
AT_ONCE_BYTES_PER_S = 1e12


def run_in_cluster(case: Case, calibration: Calibration) -> Observed:
    """Simulate the case."""
    system = _Scripted(case, calibration, tick_s=TICK_S if case.changes else inf)
    deepest = max([case.stages, *(change.stages for change in case.changes)])
    record = simulate(
        system,
        of_trace(case.trace),
        [_served(calibration)],
        _devices(deepest, calibration.hop_s),
        startup=_startup(calibration),
        settle_s_max=SETTLE_S_MAX,
    )
    requests = record.requests
    assert record.counts()["done"] == len(requests), record.counts()
    ttft_s, _, e2e_s = response_times(record)
    changes = [each for each in record.outcomes if isinstance(each.action, Reshape)]
    assert all(each.kind == "serving" for each in changes), changes
    return Observed(
        requests["arrival_s"],
        requests["arrival_s"] + ttft_s,
        requests["arrival_s"] + e2e_s,
        requests["output"].astype(np.int64),
        tuple(
            ObservedChange(change.stages, outcome.took_s, None)  # gaps between single tokens are not simulated
            for change, outcome in zip(case.changes, changes, strict=True)
        ),
    )


@dataclass
class _Scripted:
    """The system that does what the case says. ``asked`` changes were asked for so far."""

    case: Case
    calibration: Calibration
    tick_s: float
    name: str = "scripted"
    dispatch: Dispatch = "least-work"
    asked: int = 0

    def begin(self, view: View) -> Sequence[Action]:  # noqa: ARG002 - a script looks at nothing
        """See `System`."""
        return [Start(0, self._stages(self.case.stages), self.calibration.kv_tokens)]

    def tick(self, view: View) -> Sequence[Action]:
        """See `System`."""
        (replica,) = view.replicas
        if replica.is_changing or self.asked == len(self.case.changes):
            return []
        change = self.case.changes[self.asked]
        spare_s = self.calibration.change_takes_s(len(replica.stages), change.stages) - _least_change_s(
            self.calibration
        )
        if view.now_s < change.at_s + spare_s:
            return []
        self.asked += 1
        return [Reshape(replica.number, self._stages(change.stages), "live", self.calibration.kv_tokens)]

    def _stages(self, count: int) -> tuple[StageAt, ...]:
        ends = np.rint(np.cumsum([0.0, *self.calibration.shares[count]]) * PARTS).astype(int).tolist()
        return tuple(StageAt(place, ends[place], ends[place + 1]) for place in range(count))


def _served(calibration: Calibration) -> ServedModel:
    return ServedModel(
        name=calibration.model,
        layers=PARTS,
        weight_bytes=PARTS,
        kv_bytes_per_token=PARTS,
        activation_bytes_per_token=0,
        times=calibration.times,
        limits=calibration.limits,
        running_max=calibration.requests_max,
        requests_max=calibration.requests_max,
        steps_max=calibration.steps_max,
    )


def _devices(count: int, hop_s: float) -> ClusterMap:
    """Devices of one node, with room for anything and transfers that take no time: what a change takes is in the calibration."""
    memory = 1 << 40
    link = Link(round(hop_s * NS_PER_S), AT_ONCE_BYTES_PER_S)
    rates = NodeFacts("host", host_bytes_per_s=AT_ONCE_BYTES_PER_S, network_bytes_per_s=AT_ONCE_BYTES_PER_S)
    facts = [DeviceFacts(f"cpu:{place}", "host", memory, memory) for place in range(count)]
    return cluster_map(facts, [rates], LinkClasses(link, link, link, link))


def _startup(calibration: Calibration) -> StartupModel:
    return StartupModel(
        process_s=always(_least_change_s(calibration)),
        stream_bytes_per_s=AT_ONCE_BYTES_PER_S,
        storage_bytes_per_s=AT_ONCE_BYTES_PER_S,
        copy_bytes_per_s=AT_ONCE_BYTES_PER_S,
        copy_slowdown=calibration.change_slowdown,
        cut_s=calibration.cut_s,
    )


def _least_change_s(calibration: Calibration) -> float:
    return min(calibration.change_s.values(), default=0.0)
