"""What a system is shown of the simulated cluster at a tick, read from the kernel's records.

Owns the reading. It changes nothing but what was already told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .fleet import Fleet
from .holdings import Holdings
from .replica import Replica
from .served_model import ServedModel
from .slots import Slots
from .state import DONE
from .system import Arrived, Finished, ReplicaView, View


class Views:
    """Makes one `View` after the other; each tells what came since the one before."""

    def __init__(self, slots: Slots, models: Sequence[ServedModel], holdings: Holdings, fleet: Fleet) -> None:
        self._slots = slots
        self._models = tuple(models)
        self._holdings = holdings
        self._fleet = fleet
        self._arrived = 0
        self._ended = 0
        self._outcomes = 0

    def at(self, now_s: float) -> View:
        """The view now; replicas must have been brought to it."""
        state = self._slots.state
        came = np.arange(self._arrived, state.arrived)
        over = state.ended[self._ended :]
        over = over[state.requests["phase"][over] == DONE]
        outcomes = tuple(self._fleet.outcomes[self._outcomes :])
        self._arrived, self._ended, self._outcomes = state.arrived, len(state.ended), len(self._fleet.outcomes)
        return View(
            now_s=now_s,
            cluster=self._holdings.cluster,
            models=self._models,
            replicas=tuple(self._replica(replica) for replica in self._fleet.replicas.values()),
            arrived=tuple(self._arrivals(rows) for rows in self._by_model(came)),
            finished=tuple(self._ends(rows) for rows in self._by_model(over)),
            unplaced=tuple(state.models["waiting"].tolist()),
            outcomes=outcomes,
            held=self._holdings.held,
        )

    def _by_model(self, rows: NDArray[np.int64] | NDArray[np.int32]) -> list[NDArray[np.int64]]:
        if len(self._models) == 1:
            return [rows.astype(np.int64)]
        of = self._slots.state.requests["model"][rows]
        return [rows[of == number].astype(np.int64) for number in range(len(self._models))]

    def _arrivals(self, rows: NDArray[np.int64]) -> Arrived:
        found = self._slots.state.requests[rows]
        return Arrived(found["arrival_s"], found["prompt"].astype(np.int64), found["output"].astype(np.int64))

    def _ends(self, rows: NDArray[np.int64]) -> Finished:
        found = self._slots.state.requests[rows]
        return Finished(found["end_s"], found["end_s"] - found["begun_s"], found["made"].astype(np.int64))

    def _replica(self, replica: Replica) -> ReplicaView:
        record: Mapping[str, float] = self._slots.state.replicas[replica.slot]
        whole = self._models[replica.model].times.depth_factor(max(len(replica.stages), 1))
        return ReplicaView(
            number=replica.number,
            model=replica.model,
            stages=replica.stages or (replica.change.action.stages if replica.change else ()),
            state=replica.phase if replica.stages else "starting",
            is_changing=replica.change is not None and bool(replica.stages),
            asked_s=replica.asked_s,
            waiting=int(record["waiting"]),
            running=int(record["decoding"] + record["prefilling"]),
            kv_used=int(record["context"]),
            kv_tokens=replica.kv_tokens,
            served_tokens=float(record["served_tokens"]),
            prompt_tokens=float(record["prompt_tokens"]),
            step_s=self._slots.cycle_s(replica.slot),
            speed=whole / float(record["speed_sum"]) if record["speed_sum"] > 0 else 1.0,
        )
