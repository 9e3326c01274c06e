"""The replicas of a simulated cluster: how each starts, changes its stages, drains, goes, or is lost with a node.

Owns the steps between an action and its outcome. It must never know a system's reasons, nor a request (`slots`).

    start:   asked -> allocated (memory taken, or refused) -> process -> weights loaded -> serving
    reshape: the same for what is new while the old stages serve, then KV copied -> cut (stands still) -> serving in the new shape
    stop:    draining -> empty, or out of patience -> gone

Left out: KV that is written while other KV is copied goes over within the cut, however much it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from math import inf

import numpy as np

from ...policies.kv_room import NoRoomError
from .holdings import Holdings
from .loading import Flow, LoadNetwork
from .pipeline_times import kv_room, overlap_bytes, pipeline_times, running_max
from .replica import Change, Replica
from .served_model import ServedModel
from .slots import Slots
from .startup import HostMemory, StartupModel, sources
from .system import Outcome, OutcomeKind, Reshape, StageAt, Start, Stop

RETIRE_S_MAX = 60.0
"""So long requests may go on in a replica that drains (`actors.replicas.ReplicaLimits`)."""
CUT_CYCLES = 0.5
"""Of a cycle, for how long a replica that changes while it serves makes nothing: steps of the old stages end one by one, the new
ones fill as slowly. Measured against the real actors (`sim.fidelity`): with none TTFT is 4 % too short, with a whole one 4 % too
long."""
Schedule = Callable[[float, Callable[[float], None]], None]
"""Have something called at a time, with that time."""


class Fleet:
    """See the module. ``outcomes`` are all that were told so far."""

    def __init__(
        self,
        slots: Slots,
        models: Sequence[ServedModel],
        holdings: Holdings,
        startup: StartupModel,
        schedule: Schedule,
        chance: np.random.Generator,
    ) -> None:
        self.replicas: dict[int, Replica] = {}
        self.outcomes: list[Outcome] = []
        self.network = LoadNetwork(self._capacity)
        self.host_memory = HostMemory(startup.host_bytes)
        self._slots = slots
        self._models = models
        self._holdings = holdings
        self._startup = startup
        self._schedule = schedule
        self._chance = chance
        self._numbers = 0
        self._at: dict[int, Replica] = {}  # by slot
        self._busy: Mapping[int, float] = {}

    def start(self, action: Start, now_s: float, *, at_once: bool = False) -> None:
        """Begin a start; ``at_once`` it serves now."""
        sentence = self._unfit(action.model, action, None)
        if sentence:
            self._tell("refused", now_s, -1, action, now_s, sentence)
            return
        slot = self._slots.take(action.model, running_max(self._models[action.model], len(action.stages)))
        replica = Replica(self._numbers, action.model, slot, now_s)
        self._numbers += 1
        self.replicas[replica.number] = self._at[slot] = replica
        self._begin(replica, Change(action, now_s), now_s, at_once=at_once)

    def reshape(self, action: Reshape, now_s: float) -> None:
        """Begin a reshape."""
        replica = self.replicas.get(action.replica)
        if replica is None or replica.phase != "serving" or replica.change or replica.is_lost:
            sentence = f"replica {action.replica} does not serve, or is being changed"
            self._tell("refused", now_s, action.replica, action, now_s, sentence)
            return
        sentence = self._unfit(replica.model, action, replica)
        if sentence:
            self._tell("refused", now_s, action.replica, action, now_s, sentence)
            return
        self._begin(replica, Change(action, now_s), now_s, at_once=False)

    def stop(self, action: Stop, now_s: float) -> None:
        """Begin a stop."""
        replica = self.replicas.get(action.replica)
        if replica is None or replica.phase == "draining" or replica.is_lost:
            self._tell("refused", now_s, action.replica, action, now_s, f"replica {action.replica} is going or gone")
            return
        self._cancel(replica, now_s, "it is being stopped")
        replica.stop, replica.stop_asked_s = action, now_s
        if not replica.stages or not action.drain:
            self._remove(replica, now_s)
            return
        replica.phase = "draining"
        self._schedule(now_s + RETIRE_S_MAX, partial(self._out_of_patience, replica))
        self._slots.drain(replica.slot, now_s)

    def collect(self, now_s: float) -> None:
        """Let go of the draining replicas that have become empty."""
        for slot in self._slots.emptied():
            self._remove(self._at[slot], now_s)

    def loaded(self, number: int, now_s: float) -> None:
        """A replica's transfers have ended."""
        replica = self.replicas[number]
        change = replica.change
        assert change is not None
        if isinstance(change.action, Start) or change.restarts:
            self._serve(replica, change, now_s)
        elif change.step == "weights":
            self._copy(replica, change, change.action, now_s)
        else:
            self._cut(replica, change, change.action, now_s)

    def lose(self, devices: Sequence[int], now_s: float) -> None:
        """Devices are gone; replicas on them stand still, and are given up once that is noticed."""
        for device in devices:
            self._holdings.lose(device)
        gone = set(devices)
        for replica in list(self.replicas.values()):
            if replica.is_lost or not replica.devices & gone:
                continue
            sentence = f"device {self._holdings.cluster.device_names[min(replica.devices & gone)]} is gone"
            self._cancel(replica, now_s, sentence)
            if not replica.stages:
                self._remove(replica, now_s)
            elif any(stage.device in gone for stage in replica.stages):
                replica.is_lost = True
                self._slots.pause(replica.slot, now_s, inf)
                self._schedule(now_s + self._startup.detect_s, partial(self._give_up, replica, sentence))

    def slowed(self, devices: Sequence[int], now_s: float) -> None:
        """Devices have become faster or slower."""
        for number in sorted({number for device in devices for number in self._holdings.replicas_on(device)}):
            self._configure(self.replicas[number], now_s)

    def share(self, busy: Mapping[int, float], now_s: float) -> None:
        """What stages of several replicas on one device cost each other: ``busy`` is the share of time that each computes."""
        before, self._busy = self._busy, busy
        if before or busy:
            self.slowed(self._holdings.shared_devices(), now_s)

    def _begin(self, replica: Replica, change: Change, now_s: float, *, at_once: bool) -> None:
        replica.change = change
        if at_once:
            self._allocated(replica, change, now_s, now_s)
            return
        held = self._holdings.held
        free = all(stage.device in held for stage in change.action.stages)
        wait_s = 0.0 if free else self._startup.allocation.draw(self._chance)
        self._schedule(now_s + wait_s, lambda at_s: self._allocated(replica, change, at_s, None))

    def _allocated(self, replica: Replica, change: Change, now_s: float, serve_s: float | None) -> None:
        """Take the memory, or find that it is not there; then a process begins to load."""
        if replica.change is not change:
            return
        change.allocated_s = now_s
        if change.restarts:
            self._holdings.keep_only(now_s, replica.number, {})
        sentence = self._take(replica, change, now_s)
        if sentence:
            self._refuse(replica, change, sentence, now_s)
            return
        if change.restarts:
            replica.stages = ()
            self._slots.suspend(replica.slot, now_s)
        self._configure(replica, now_s)
        if serve_s is not None:
            self._serve(replica, change, serve_s)
            return
        self._schedule(
            now_s + self._startup.process_s.draw(self._chance), lambda at_s: self._load(replica, change, at_s)
        )

    def _take(self, replica: Replica, change: Change, now_s: float) -> str:
        """Take memory for what the change brings beside the stages that serve meanwhile. "", or why it is not there."""
        model, stages, cluster = self._models[replica.model], change.action.stages, self._holdings.cluster
        present = () if change.restarts else replica.stages
        change.kv_tokens = change.action.kv_tokens or 0
        if change.action.kv_tokens is None:
            try:
                change.kv_tokens = kv_room(cluster, model, stages, present, replica.kv_tokens)
            except NoRoomError as error:
                return str(error)
        needs = self._needs(replica.model, stages, change.kv_tokens)
        here = self._needs(replica.model, present, replica.kv_tokens)
        for stage in stages:
            if stage.device in here:
                kept = replica.stage_on(stage.device)
                layers = max(0, min(stage.end, kept.end) - max(stage.first, kept.first))
                pages = model.stage_kv_bytes(0, layers) * min(change.kv_tokens, replica.kv_tokens)
                in_both = overlap_bytes(model, stage, kept) + pages
                # Afterwards it has what the new stage needs, and not more than now.
                needs[stage.device] -= max(0, min(in_both, here[stage.device], needs[stage.device]))
        sentence = self._holdings.lacking(needs)
        if not sentence:
            self._holdings.take(now_s, replica.number, needs)
        return sentence

    def _needs(self, number: int, stages: Sequence[StageAt], kv_tokens: int) -> dict[int, int]:
        model = self._models[number]
        return {
            stage.device: model.stage_bytes(stage.first, stage.end)
            + kv_tokens * model.stage_kv_bytes(0, stage.end - stage.first)
            for stage in stages
        }

    def _load(self, replica: Replica, change: Change, now_s: float) -> None:
        """Weights begin to flow to every stage that lacks some."""
        if replica.change is not change:
            return
        model, flows = self._models[replica.model], []
        for stage in change.action.stages:
            node = int(self._holdings.cluster.node_of[stage.device])
            has = replica.stage_on(stage.device)
            for source in sources(self._startup, self.host_memory, replica.model, model, node, stage, has):
                if source.node == node:
                    flows.append(Flow(source.size * self._startup.warm.draw(self._chance), (("host", node),)))
                    continue
                size = source.size * self._startup.cold.draw(self._chance)
                if source.node is None:
                    flows.append(Flow(size, (("storage", 0), ("network", node)), self._startup.stream_bytes_per_s))
                else:
                    flows.append(Flow(size, (("network", source.node), ("network", node))))
        self.network.begin(now_s, replica.number, flows)

    def _copy(self, replica: Replica, change: Change, action: Reshape, now_s: float) -> None:
        """KV begins to flow to every stage that gets layers from elsewhere."""
        change.step = "kv"
        if action.how == "stop-and-copy":
            self._slots.pause(replica.slot, now_s, inf)
        model, flows = self._models[replica.model], []
        context = float(self._slots.state.replicas["context"][replica.slot])
        rate = self._startup.copy_bytes_per_s if action.how == "live" else inf
        for stage in action.stages:
            here = replica.stage_on(stage.device)
            kept = max(0, min(stage.end, here.end) - max(stage.first, here.first))
            size = context * model.stage_kv_bytes(0, stage.end - stage.first - kept)
            flows.append(Flow(size, (("network", int(self._holdings.cluster.node_of[stage.device])),), rate))
        self.network.begin(now_s, replica.number, flows)

    def _cut(self, replica: Replica, change: Change, action: Reshape, now_s: float) -> None:
        """The replica stands still for a moment and goes on in its new shape."""
        cycle_s = CUT_CYCLES * self._slots.cycle_s(replica.slot) if action.how == "live" else 0.0
        self._slots.pause(replica.slot, now_s, inf)
        self._schedule(now_s + cycle_s + self._startup.cut_s, lambda at_s: self._serve(replica, change, at_s))

    def _serve(self, replica: Replica, change: Change, now_s: float) -> None:
        """The change is done: the replica serves as it was to be."""
        if replica.change is not change:
            return
        replica.change, replica.phase = None, "serving"
        replica.stages, replica.kv_tokens = change.action.stages, change.kv_tokens
        self._holdings.keep_only(now_s, replica.number, self._needs(replica.model, replica.stages, replica.kv_tokens))
        if self._startup.keeps_host:
            for stage in replica.stages:
                node = int(self._holdings.cluster.node_of[stage.device])
                self.host_memory.keep(node, replica.model, self._models[replica.model], stage.first, stage.end)
        self._configure(replica, now_s)
        self._slots.pause(replica.slot, now_s, now_s)
        self._slots.serve(replica.slot, now_s)
        waited_s, took_s = change.allocated_s - change.asked_s, now_s - change.asked_s
        self.outcomes.append(Outcome("serving", now_s, replica.number, change.action, took_s, waited_s=waited_s))

    def _configure(self, replica: Replica, now_s: float) -> None:
        if not replica.stages:
            return
        model, at_once = self._models[replica.model], running_max(self._models[replica.model], len(replica.stages))

        def shared(device: int) -> float:
            others = (number for number in self._holdings.replicas_on(device) if number != replica.number)
            return sum(self._busy.get(number, 0.0) for number in others)

        times = pipeline_times(self._holdings.cluster, model, replica.stages, shared)
        slowed = self._startup.copy_slowdown if replica.change else 0.0
        self._slots.widen(at_once)
        self._slots.configure(replica.slot, now_s, times, replica.kv_tokens, at_once, slowed)

    def _cancel(self, replica: Replica, now_s: float, sentence: str) -> None:
        """A change under way comes to nothing, and what it took is free again."""
        change = replica.change
        if change is None:
            return
        replica.change = None
        self.network.cancel(now_s, replica.number)
        held = self._needs(replica.model, replica.stages, replica.kv_tokens)
        self._holdings.keep_only(now_s, replica.number, held)
        self._slots.pause(replica.slot, now_s, now_s)
        self._configure(replica, now_s)
        self._tell("failed", now_s, replica.number, change.action, change.asked_s, sentence)

    def _refuse(self, replica: Replica, change: Change, sentence: str, now_s: float) -> None:
        replica.change = None
        self._tell("refused", now_s, replica.number, change.action, change.asked_s, sentence)
        if not replica.stages:
            self._forget(replica, now_s)
        elif change.restarts:  # it did not go
            self._holdings.take(now_s, replica.number, self._needs(replica.model, replica.stages, replica.kv_tokens))

    def _give_up(self, replica: Replica, sentence: str, now_s: float) -> None:
        if self.replicas.get(replica.number) is replica:
            self._tell("failed", now_s, replica.number, None, now_s, sentence)
            self._forget(replica, now_s)

    def _out_of_patience(self, replica: Replica, now_s: float) -> None:
        if self.replicas.get(replica.number) is replica:
            self._remove(replica, now_s)

    def _remove(self, replica: Replica, now_s: float) -> None:
        if replica.stop is not None:
            self._tell("ended", now_s, replica.number, replica.stop, replica.stop_asked_s)
        self._forget(replica, now_s)

    def _forget(self, replica: Replica, now_s: float) -> None:
        del self.replicas[replica.number], self._at[replica.slot]
        self._holdings.keep_only(now_s, replica.number, {})
        self._slots.drop(replica.slot, now_s)

    def _unfit(self, number: int, action: Start | Reshape, replica: Replica | None) -> str:
        """Why such stages are none, or cannot be on these devices; ""."""
        stages, cluster = action.stages, self._holdings.cluster
        ends = [0, *(stage.end for stage in stages)]
        if not 0 <= number < len(self._models) or not stages or ends[-1] != self._models[number].layers:
            return "the stages do not hold the model's layers"
        if any(stage.first != first or stage.end <= first for stage, first in zip(stages, ends, strict=False)):
            return "the stages do not hold the model's layers one after the other"
        devices = {stage.device for stage in stages}
        if len(devices) != len(stages) or min(devices) < 0 or max(devices) >= cluster.devices:
            return "a device is named twice, or is none of the map's"
        others = [other for other in self.replicas.values() if other.model == number and other is not replica]
        taken = devices & frozenset[int]().union(*(other.devices for other in others))
        if taken:
            return f"device {cluster.device_names[min(taken)]} has another stage of this model"
        changed = cluster.changed(action.seen)
        return f"device {changed[0]} has changed since the plan was made" if changed else ""

    def _capacity(self, link: Hashable) -> float:
        match link:
            case ("host", int(node)):
                return float(self._holdings.cluster.host_bytes_per_s[node])
            case ("network", int(node)):
                return float(self._holdings.cluster.network_bytes_per_s[node])
            case _:
                return self._startup.storage_bytes_per_s

    def _tell(
        self,
        kind: OutcomeKind,
        now_s: float,
        replica: int,
        action: Start | Stop | Reshape | None,
        asked_s: float,
        sentence: str = "",
    ) -> None:
        self.outcomes.append(Outcome(kind, now_s, replica, action, now_s - asked_s, sentence))
