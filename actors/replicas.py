"""The pipelines that serve one model, as one `TokenSource`: which there are, which gets a request, and how each comes and goes.

A replica has a scheduler, a coordinator, workers, KV blocks, epochs and a journal of its own; nothing is shared but the devices
and the requests. Its recovery is its own business: only when it is given up it is dropped here, and the others go on with
its requests. How a replica is made is for a `ReplicaFactory` to know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec
import trio

from ..policies.dispatch import ReplicaLoad, preference
from .change_watch import ChangeWatch
from .coordinator_events import Ended, Finish
from .event_log import EventLog
from .generation import GenerationRequest, ModelFacts, PipelineStatus, TokenEvent
from .journal import JournalError
from .pipeline import Pipeline
from .replica_stream import ReplicaStream
from .route import StagePlacement


@dataclass(frozen=True, slots=True)
class ReplicaLimits:
    """``retire_s_max``: so long requests may go on in a replica that is being retired; then others go on with them."""

    retire_s_max: float = 60.0


class ReplicaFactory(Protocol):
    """Makes pipelines of one model."""

    def open(self, replica: int, stages: tuple[StagePlacement, ...]) -> AbstractAsyncContextManager[Pipeline]:
        """One that is to begin with ``stages``, not running yet. A number that was used before goes on with its journal.

        Entering raises `JournalError`.
        """
        ...


class Replica:
    """One pipeline among others. ``watch`` tells how it comes up, and what that costs the requests of the oldest."""

    def __init__(self, pipeline: Pipeline, oldest: Pipeline | None) -> None:
        self.pipeline = pipeline
        self.watch: ChangeWatch = pipeline.watch_start(oldest)
        self.is_retiring = False
        self.ended = trio.Event()

    @property
    def number(self) -> int:
        """Its number: the lowest that was free."""
        return self.pipeline.replica

    @property
    def takes_requests(self) -> bool:
        """Whether new requests may go to it."""
        return not self.is_retiring and self.pipeline.takes_requests


class Replicas:
    """See the module. ``run`` holds the replicas; it ends when all were stopped, or the last one was given up."""

    def __init__(
        self, facts: ModelFacts, factory: ReplicaFactory, log: EventLog, limits: ReplicaLimits = ReplicaLimits()
    ) -> None:
        self.limits = limits
        self.finish: Finish | None = None
        self._facts = facts
        self._factory = factory
        self._log = log
        self._replicas: dict[int, Replica] = {}  # the oldest first
        self._is_stopping = False
        self._failure: Finish | None = None
        self._over = trio.Event()
        self._nursery: trio.Nursery | None = None

    # --- the requests ---

    @asynccontextmanager
    async def open(
        self, request: GenerationRequest, outputs: tuple[int, ...] | None = None
    ) -> AsyncIterator[AsyncIterator[TokenEvent]]:
        """Submit to the replica with the least work; see `generation.TokenSource.open`."""
        stream = ReplicaStream(request, self, self._log, outputs)
        try:
            await stream.begin()
            yield stream
        finally:
            await stream.leave()

    def takers(self) -> list[Pipeline]:
        """The pipelines that take requests, best first; where there is none, those that say why."""
        taking = [replica for replica in self._replicas.values() if replica.takes_requests]
        found = taking or list(self._replicas.values())
        pipelines = {replica.number: replica.pipeline for replica in found}
        loads = [ReplicaLoad(number, at.is_serving, at.work_tokens) for number, at in pipelines.items()]
        return [pipelines[number] for number in preference(loads)]

    def status(self) -> PipelineStatus:
        """What is true at this moment."""
        each = [replica.pipeline.status() for replica in self._replicas.values()]
        ready = any(status.ready for status in each)
        contexts = [status.model.context_tokens for status in each if status.ready or not ready]
        return PipelineStatus(
            ready=ready,
            reason="" if ready else self._reason(each),
            epoch=max((status.epoch for status in each), default=0),
            model=msgspec.structs.replace(self._facts, context_tokens=max(contexts)) if contexts else self._facts,
            stages=tuple(stage for status in each for stage in status.stages),
            running=sum(status.running for status in each),
            waiting=sum(status.waiting for status in each),
            replicas=tuple(replica for status in each for replica in status.replicas),
        )

    @staticmethod
    def _reason(each: list[PipelineStatus]) -> str:
        if len(each) == 1:
            return each[0].reason
        reasons = (f"replica {at.replica}: {at.reason}" for status in each for at in status.replicas)
        return "; ".join(reasons) or "the pipeline was not started"

    # --- the replicas ---

    async def run(
        self, stages: tuple[StagePlacement, ...], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> Finish:
        """Start replica 0 with ``stages``, and hold whatever replicas there are."""
        async with trio.open_nursery() as self._nursery:
            try:
                await self.start(0, stages)
            except JournalError as error:
                self.finish = Finish(True, str(error))
            else:
                task_status.started()
                await self._over.wait()
        assert self.finish is not None
        return self.finish

    def stop(self) -> None:
        """End all of them gracefully."""
        self._is_stopping = True
        for replica in self._replicas.values():
            replica.pipeline.stop()

    @property
    def present(self) -> tuple[Replica, ...]:
        """All there are, the oldest first."""
        return tuple(self._replicas.values())

    def free_numbers(self, count: int) -> tuple[int, ...]:
        """The lowest numbers that no replica has."""
        return tuple(n for n in range(len(self._replicas) + count) if n not in self._replicas)[:count]

    def devices(self, *, but: Replica | None = None) -> frozenset[str]:
        """Those that replicas use, all or all ``but`` one."""
        others = (replica.pipeline.devices() for replica in self._replicas.values() if replica is not but)
        return frozenset[str]().union(*others)

    async def start(self, number: int, stages: tuple[StagePlacement, ...]) -> Replica:
        """Begin to start a replica; its ``watch`` tells when it serves. Raises `JournalError`, and then there is none."""
        assert self._nursery is not None
        replica: Replica = await self._nursery.start(self._host, number, stages)
        return replica

    async def empty(self, replica: Replica) -> bool:
        """Let a replica take no new requests, and wait until it has none, or for `ReplicaLimits.retire_s_max`.

        False where it has to stay, since every other one was given up meanwhile.
        """
        replica.is_retiring = True
        with trio.move_on_after(self.limits.retire_s_max):
            await replica.pipeline.wait_idle()
        return replica.is_retiring

    async def remove(self, replica: Replica) -> None:
        """End a replica; others go on with the requests that it has. Returns when no process of it is left."""
        if replica.ended.is_set():
            return
        replica.is_retiring = True
        counts = replica.pipeline.counts
        self._log.emit("replica_retired", replica=replica.number, handed_over=counts.running + counts.waiting)
        replica.pipeline.stop()
        await replica.ended.wait()

    async def _host(
        self, number: int, stages: tuple[StagePlacement, ...], *, task_status: trio.TaskStatus[Replica]
    ) -> None:
        async with self._factory.open(number, stages) as pipeline:
            oldest = next((other.pipeline for other in self._replicas.values()), None)
            replica = self._replicas[number] = Replica(pipeline, oldest)
            self._log.emit("replica_started", replica=number, stages=len(stages))
            if self._is_stopping:
                pipeline.stop()
            task_status.started(replica)
            finish = await pipeline.run()
        self._ended(replica, finish)

    def _ended(self, replica: Replica, finish: Finish) -> None:
        if not replica.watch.is_over:
            replica.watch.failed(Ended(0, "aborted", finish.sentence))
        replica.ended.set()
        if finish.failed and not replica.is_retiring:
            self._failure = finish
        if len(self._replicas) == 1:
            self.finish = finish if self._is_stopping else self._failure or finish
            self._over.set()
            return  # it stays, to say why
        del self._replicas[replica.number]
        if finish.failed and not replica.is_retiring:
            self._log.emit("replica_dropped", replica=replica.number, sentence=finish.sentence)
            self._keep_one()

    def _keep_one(self) -> None:
        """Where only replicas are left that are being retired, the oldest of them has to stay."""
        if not any(replica.takes_requests for replica in self._replicas.values()):
            for replica in self._replicas.values():
                if replica.pipeline.takes_requests:
                    replica.is_retiring = False
                    return
