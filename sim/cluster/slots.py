"""The kernel's records of replicas: which slot is whose, and every change of one from outside the kernels.

Owns the writing of records. It must never know why. Each change brings the replica to the present first and lets it go on as it is
then.
"""

from __future__ import annotations

import numpy as np

from . import event_kernels as kernels
from .pipeline_times import PipelineTimes
from .state import DRAINING, EMPTIED, NOWHERE, REPLICA, SERVING, STARTING, ClusterState, with_room


class Slots:
    """See the module. ``state`` is replaced when it grows."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self._served, self._prompts = 0.0, 0.0

    def take(self, model: int, running_max: int) -> int:
        """A free slot for a replica of this model, for one that starts."""
        models = len(self.state.models)
        free = np.flatnonzero(self.state.replicas["phase"][model::models] == NOWHERE)
        places = len(self.state.replicas) // models
        wide = max(running_max, self.state.heap_due.shape[1])
        if len(free) == 0 or wide > self.state.heap_due.shape[1]:
            self.state = with_room(self.state, places if len(free) else 2 * places, wide)
        slot = (int(free[0]) if len(free) else places) * models + model
        self._retire(slot)
        record = np.zeros(1, REPLICA)
        record["model"], record["phase"] = model, STARTING
        record["waiting_head"] = record["waiting_tail"] = -1
        self.state.replicas[slot] = record[0]
        return slot

    def widen(self, running_max: int) -> None:
        """Make room for so many running requests in every replica."""
        if running_max > self.state.heap_due.shape[1]:
            self.state = with_room(self.state, len(self.state.replicas) // len(self.state.models), running_max)

    def configure(
        self, slot: int, now_s: float, times: PipelineTimes, kv_tokens: int, running_max: int, slowed: float
    ) -> None:
        """The replica is such a pipeline from now on; ``slowed`` is by what it computes longer for a while."""
        kernels.advance(self.state, slot, now_s)
        record = self.state.replicas
        record["stages"][slot] = times.stages
        record["speed_sum"][slot] = times.speed_sum * (1 + slowed)
        record["speed_worst"][slot] = times.speed_worst * (1 + slowed)
        record["hop_s"][slot], record["hop_token_s"][slot] = times.hop_s, times.hop_token_s
        record["kv_tokens"][slot], record["running_max"][slot] = kv_tokens, running_max
        kernels.touch(self.state, slot, now_s)

    def serve(self, slot: int, now_s: float) -> None:
        """It takes requests from now on, those first that wait for any replica."""
        self.state.replicas["phase"][slot] = SERVING
        kernels.touch(self.state, slot, now_s)
        kernels.dispatch_waiting(self.state, slot % len(self.state.models), now_s)

    def drain(self, slot: int, now_s: float) -> None:
        """It takes no more requests from now on."""
        kernels.advance(self.state, slot, now_s)
        self.state.replicas["phase"][slot] = DRAINING
        kernels.touch(self.state, slot, now_s)

    def pause(self, slot: int, now_s: float, until_s: float) -> None:
        """It stands still until then, with all that it holds."""
        kernels.advance(self.state, slot, now_s)
        self.state.replicas["paused_until_s"][slot] = until_s
        kernels.touch(self.state, slot, now_s)

    def suspend(self, slot: int, now_s: float) -> None:
        """It loses all KV and serves no more until `serve`; what it had waits there."""
        kernels.advance(self.state, slot, now_s)
        self.state.replicas["phase"][slot] = STARTING
        kernels.evict(self.state, slot, now_s, False)

    def drop(self, slot: int, now_s: float) -> None:
        """It is gone; its requests go to others, or wait for one."""
        kernels.advance(self.state, slot, now_s)
        self.state.replicas["phase"][slot] = NOWHERE
        kernels.evict(self.state, slot, now_s, True)
        kernels.dispatch_waiting(self.state, slot % len(self.state.models), now_s)

    def emptied(self) -> list[int]:
        """The draining slots that the kernel found empty since the last call, and left."""
        count = int(self.state.counters[EMPTIED])
        self.state.counters[EMPTIED] = 0
        found: list[int] = self.state.emptied[:count].tolist()
        return found

    def computed(self) -> tuple[float, float]:
        """Tokens decoded and prompt tokens prefilled by all replicas that there ever were."""
        records = self.state.replicas
        return self._served + float(records["served_tokens"].sum()), self._prompts + float(
            records["prompt_tokens"].sum()
        )

    def _retire(self, slot: int) -> None:
        self._served += float(self.state.replicas["served_tokens"][slot])
        self._prompts += float(self.state.replicas["prompt_tokens"][slot])

    def cycle_s(self, slot: int) -> float:
        """From one token of a request to its next now; 0 while nothing moves."""
        rate = float(self.state.replicas["rate"][slot])
        return 1.0 / rate if rate > 0 else 0.0
