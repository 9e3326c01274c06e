"""One simulated run: a system serves a workload on a cluster, while the cluster has a life of its own.

Owns the order of things: the kernels simulate requests up to the next moment at which something else happens (a tick, a
transfer's end, an incident), then that happens. The same inputs and seed give the same run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

import numpy as np
from numpy.typing import NDArray

from ...policies.cluster.cluster_map import ClusterMap
from . import event_kernels as kernels
from .fleet import Fleet
from .holdings import Holdings
from .incidents import Incident, Lost, TenantsChange
from .pipeline_times import table_of
from .run_record import RunRecord
from .served_model import ServedModel
from .slots import Slots
from .startup import StartupModel
from .state import ABSENT, CENTRAL, LEAST_WORK, MODEL, REQUEST, SHORTEST_QUEUE, Records, new_state
from .system import Action, Hold, Keep, Release, Reshape, Start, Stop, System
from .views import Views
from .workload import Workload, WorkloadError

SETTLE_S_MAX = 3600.0
"""How long after the last arrival a run goes on while requests are left."""
JOIN_WAIT = 0.5
"""Of the time for which a first stage is busy, how much a request that is admitted waits for it: half, on average."""
_DISPATCH = {"least-work": LEAST_WORK, "shortest-queue": SHORTEST_QUEUE, "central": CENTRAL}


def simulate(
    system: System,
    workload: Workload,
    models: Sequence[ServedModel],
    cluster: ClusterMap,
    *,
    startup: StartupModel | None = None,
    incidents: Sequence[Incident] = (),
    seed: int = 0,
    settle_s_max: float = SETTLE_S_MAX,
    join_wait: float = JOIN_WAIT,
) -> RunRecord:
    """Let ``system`` serve ``workload``. Raises `WorkloadError` where a request names a model that there is not.

    ``cluster`` is not changed. ``join_wait`` is for closed forms, which know no steps.
    """
    if int(workload.model.max()) >= len(models):
        raise WorkloadError(f"a request asks for model {workload.model.max()} of {len(models)}")
    return _Run(system, workload, models, cluster, startup or StartupModel(), incidents, seed, join_wait).run(
        settle_s_max
    )


class _Run:
    def __init__(
        self,
        system: System,
        workload: Workload,
        models: Sequence[ServedModel],
        cluster: ClusterMap,
        startup: StartupModel,
        incidents: Sequence[Incident],
        seed: int,
        join_wait: float,
    ) -> None:
        tables = _tables(models)
        dispatch = _DISPATCH[system.dispatch]
        self._system, self._workload, self._models = system, workload, tuple(models)
        self._slots = Slots(new_state(_requests(workload), _model_records(models), tables, 1, dispatch, join_wait))
        self._holdings = Holdings(cluster)
        chance = np.random.default_rng(seed)
        self._fleet = Fleet(self._slots, models, self._holdings, startup, self._schedule, chance)
        self._views = Views(self._slots, models, self._holdings, self._fleet)
        self._agenda: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = 0
        self._ticks = 0
        self._busy_s: dict[int, float] = {}
        for incident in incidents:
            self._schedule(incident.at_s, partial(self._happen, incident))

    def run(self, settle_s_max: float) -> RunRecord:
        """The whole run."""
        for action in self._system.begin(self._views.at(0.0)):
            self._act(action, 0.0, at_once=True)
        if self._system.tick_s < inf:
            self._schedule(self._system.tick_s, self._tick)
        end_s, now_s = self._workload.ends_s + settle_s_max, 0.0
        while now_s < end_s and len(self._slots.state.ended) < len(self._workload):
            next_s = min(self._agenda[0][0] if self._agenda else inf, self._fleet.network.next_end_s(), end_s)
            now_s = kernels.run(self._slots.state, max(next_s, now_s))
            self._fleet.collect(now_s)
            for replica in self._fleet.network.ended(now_s):
                self._fleet.loaded(replica, now_s)
            while self._agenda and self._agenda[0][0] <= now_s:
                heapq.heappop(self._agenda)[2](now_s)
                self._fleet.collect(now_s)
        kernels.refresh(self._slots.state, now_s)
        self._fleet.collect(now_s)
        return self._record(now_s)

    def _schedule(self, at_s: float, what: Callable[[float], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._agenda, (at_s, self._numbers, what))

    def _tick(self, now_s: float) -> None:
        kernels.refresh(self._slots.state, now_s)
        self._fleet.collect(now_s)
        self._share(now_s)
        self._ticks += 1
        for action in self._system.tick(self._views.at(now_s)):
            self._act(action, now_s, at_once=False)
        self._schedule(self._ticks_at(), self._tick)

    def _ticks_at(self) -> float:
        return (self._ticks + 1) * self._system.tick_s

    def _act(self, action: Action, now_s: float, *, at_once: bool) -> None:
        match action:
            case Start():
                self._fleet.start(action, now_s, at_once=at_once)
            case Reshape():
                self._fleet.reshape(action, now_s)
            case Stop():
                self._fleet.stop(action, now_s)
            case Hold(devices):
                self._holdings.reserve(now_s, devices)
            case Release(devices):
                self._holdings.release(now_s, devices)
            case Keep(node, model, first, end):
                self._fleet.host_memory.keep(node, model, self._models[model], first, end)
        self._fleet.collect(now_s)

    def _share(self, now_s: float) -> None:
        """Stages of several replicas on one device slow each other by how busy they were since the tick before."""
        if not self._holdings.shared_devices() and not self._busy_s:
            return
        records, busy = self._slots.state.replicas, {}
        before, self._busy_s = self._busy_s, {}
        for number, replica in self._fleet.replicas.items():
            record = records[replica.slot]
            self._busy_s[number] = float(record["busy_s"])
            running = int(record["decoding"] + record["prefilling"])
            share = (self._busy_s[number] - before.get(number, 0.0)) / self._system.tick_s
            busy[number] = min(1.0, share) * min(1.0, running / max(int(record["stages"]), 1))
        self._fleet.share(busy, now_s)

    def _happen(self, incident: Incident, now_s: float) -> None:
        match incident:
            case Lost(_, devices, back_s, nodes):
                for node in nodes:
                    self._fleet.host_memory.forget(node)
                self._fleet.lose(devices, now_s)
                self._schedule(back_s, partial(self._regain, devices))
            case TenantsChange(_, device, free_bytes, slowdown):
                self._holdings.tenants(device, free_bytes, slowdown)
                self._fleet.slowed((device,), now_s)

    def _regain(self, devices: Sequence[int], _now_s: float) -> None:
        for device in devices:
            self._holdings.regain(device)

    def _record(self, now_s: float) -> RunRecord:
        served, prompts = self._slots.computed()
        return RunRecord(
            system=self._system.name,
            requests=self._slots.state.requests,
            models=tuple(model.name for model in self._models),
            devices=self._holdings.cluster.devices,
            load_s=self._workload.ends_s,
            ended_s=now_s,
            timeline=tuple(self._holdings.timeline),
            outcomes=tuple(self._fleet.outcomes),
            events=self._slots.state.events,
            ticks=self._ticks,
            served_tokens=served,
            prompt_tokens=prompts,
            over_bytes_max=self._holdings.over_bytes_max,
        )


def _tables(models: Sequence[ServedModel]) -> NDArray[np.float64]:
    """[M, K, T + 1]; what a model says of its most crowded steps holds for all that are more."""
    found = [table_of(model.times) for model in models]
    most = max(map(len, found))
    return np.array([np.concatenate([each, np.repeat(each[-1:], most - len(each), axis=0)]) for each in found])


def _requests(workload: Workload) -> Records:
    records = np.zeros(len(workload), REQUEST)
    records["arrival_s"], records["model"] = workload.arrival_s, workload.model
    records["prompt"], records["output"] = workload.input_tokens, workload.output_tokens
    records["begun_s"] = records["first_s"] = records["end_s"] = np.nan
    records["next"] = records["replica"] = -1
    records["phase"] = ABSENT
    return records


def _model_records(models: Sequence[ServedModel]) -> Records:
    records = np.zeros(len(models), MODEL)
    records["context_s"] = [model.times.context_s for model in models]
    records["square_s"] = [model.times.square_s for model in models]
    records["step_tokens_max"] = [model.limits.step_tokens_max for model in models]
    records["queue_max"] = [model.queue_max for model in models]
    records["head"] = records["tail"] = -1
    return records
