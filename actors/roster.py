"""The workers that a coordinator counts on: which live, what they hold, and which numbers are used up.

Pure bookkeeping of `coordinator_machine`; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..runtime.interface import StageFacts
from .coordinator_events import Instruction, RetireWorker, SpawnWorker
from .route import StagePlacement


class Roster:
    """``is_up`` says of each worker that counts whether it said hello; ``leaving`` were told to go and are not gone yet."""

    def __init__(self) -> None:
        self.is_up: dict[int, bool] = {}
        self.leaving: set[int] = set()
        self.facts: dict[int, StageFacts] = {}
        self.kv_bytes: dict[int, int] = {}
        self.next_worker = 0

    def __contains__(self, worker: int) -> bool:
        return worker in self.is_up

    def inherit(self, alive: Iterable[int], leaving: Iterable[int], next_worker: int) -> None:
        """Take over the workers of a coordinator that ended; no number below ``next_worker`` is used again."""
        self.is_up = dict.fromkeys(alive, True)
        self.leaving = set(leaving)
        self.next_worker = max(next_worker, max(self.is_up, default=-1) + 1)

    def spawn(self, stages: Iterable[StagePlacement]) -> list[Instruction]:
        """Start the workers of ``stages`` that do not live."""
        new = [stage for stage in stages if stage.worker not in self.is_up]
        for stage in new:
            self.is_up[stage.worker] = False
            self.next_worker = max(self.next_worker, stage.worker + 1)
        return [SpawnWorker(stage) for stage in new]

    def retire(self, workers: Iterable[int], *, kill: bool, reason: str) -> list[Instruction]:
        """Let workers go; they count no more."""
        going = [worker for worker in workers if self.forget(worker)]
        self.leaving.update(going)
        return [RetireWorker(worker, kill, reason) for worker in going]

    def keep_only(self, stages: Iterable[StagePlacement], reason: str) -> list[Instruction]:
        """Kill every worker that none of ``stages`` needs."""
        needed = {stage.worker for stage in stages}
        return self.retire(sorted(set(self.is_up) - needed), kill=True, reason=reason)

    def forget(self, worker: int) -> bool:
        """Count on ``worker`` no more; whether it did count."""
        self.facts.pop(worker, None)
        self.kv_bytes.pop(worker, None)
        return self.is_up.pop(worker, None) is not None

    def replace_dead(self, stages: Iterable[StagePlacement]) -> tuple[StagePlacement, ...]:
        """The same stages, with new numbers for workers that lived once and do not any more."""
        placements = []
        for stage in stages:
            dead = stage.worker not in self.is_up and stage.worker < self.next_worker
            worker = self.next_worker if dead else stage.worker
            self.next_worker = max(self.next_worker, worker + 1)
            placements.append(msgspec.structs.replace(stage, worker=worker))
        return tuple(placements)

    @property
    def is_empty(self) -> bool:
        """Whether every process is gone."""
        return not self.is_up and not self.leaving
