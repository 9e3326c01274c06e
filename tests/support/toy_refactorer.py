"""A refactorer in memory: a real implementation of `actors.refactor.Refactorer` over a pipeline that is a tuple of numbers.

The pipeline is ``layers`` layers on ``shape`` (layers per stage). A change loads the new stages, copies four pages, and takes
the new shape at its commit; `hold` stops it before a phase until `release`, and `fail_next` lets the next change
abort before its commit or lose a worker after it. It goes on in a task of its own, whoever watches.
"""

from __future__ import annotations

from typing import get_args

import trio
from flexpipe.actors.refactor import (
    Pauses,
    Phase,
    RefactorFailed,
    RefactorProgress,
    RefactorRefusedError,
    RefactorReport,
)
from flexpipe.runtime.interface import WeightSources

LAYER_BYTES = 1000
PAGE_BYTES = 64
PAGES = 4


class ToyRefactorer:
    """Make it, run it in a nursery."""

    def __init__(self, layers=12, shape=(6, 6)):
        self.layers = layers
        self.shape = shape
        self.epoch = 1
        self._running = None
        self._failure = None
        self._nursery = None
        self._held = ()
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def refactor(self, request):
        change = self._begin(request)
        seen = 0
        while True:
            while seen < len(change.events):
                seen += 1
                yield change.events[seen - 1]
            if change.ended:
                return
            await change.news.park()

    def hold(self, phases=get_args(Phase)):
        """Let no change take a step of ``phases`` until `release`."""
        self._held = phases

    def release(self):
        self._held = ()
        self._changed.unpark_all()

    def fail_next(self, reason):
        """Let the next change end as "aborted" or "recovered"."""
        self._failure = reason

    @property
    def running(self):
        return self._running is not None

    async def until(self, condition):
        """Wait until ``condition()`` holds; it is looked at whenever a change begins, takes a step or ends."""
        while not condition():
            await self._changed.park()

    async def until_running(self):
        await self.until(lambda: self.running)

    async def until_idle(self):
        await self.until(lambda: not self.running)

    def _begin(self, request):
        if self._running is not None:
            raise RefactorRefusedError(f"epoch {self._running.epoch} is being made; wait until it serves.")
        shape = self._shape_of(request)
        self._running = _Change(self.epoch + 1, shape, request.strategy)
        self._nursery.start_soon(self._carry_out, self._running)
        self._changed.unpark_all()
        return self._running

    def _shape_of(self, request):
        if request.stages is not None:
            if request.stages > self.layers:
                raise RefactorRefusedError(f"{request.stages} stages are more than the {self.layers} layers.")
            share, more = divmod(self.layers, request.stages)
            return tuple(share + (stage < more) for stage in range(request.stages))
        if request.partition is not None:
            shape = tuple(map(int, request.partition.split(",")))
            if sum(shape) != self.layers:
                raise RefactorRefusedError(f"the partition covers {sum(shape)} layers; the model has {self.layers}.")
            return shape
        raise RefactorRefusedError("a toy has one device and no replicas; ask for stages or a partition.")

    async def _carry_out(self, change):
        try:
            await self._live(change)
        finally:
            self._running = None
            change.end()
            self._changed.unpark_all()

    async def _live(self, change):
        failure, self._failure = self._failure, None
        await self._step(change, "plan")
        for layer in range(1, self.layers + 1):
            await self._step(change, "load", layer * LAYER_BYTES, self.layers * LAYER_BYTES)
        for page in range(1, PAGES + 1):
            await self._step(change, "copy", page * PAGE_BYTES, PAGES * PAGE_BYTES)
        if failure == "aborted":
            await self._step(change, "abort")
            change.events.append(RefactorFailed("aborted", "stage 1 has no room; the old stages serve on."))
            return
        await self._step(change, "commit")
        self.epoch, self.shape = change.epoch, change.shape
        await self._step(change, "switch")
        if failure == "recovered":
            change.events.append(RefactorFailed("recovered", "worker 3 died after the cut; it is started again."))
            return
        await self._step(change, "release")
        change.events.append(change.report())

    async def _step(self, change, phase, done=0, total=0):
        await self.until(lambda: phase not in self._held)
        await trio.lowlevel.checkpoint()
        self._changed.unpark_all()
        change.tell(RefactorProgress(change.epoch, phase, done, total, f"in phase {phase}"))


class _Change:
    """One change and all that was told of it."""

    def __init__(self, epoch, shape, strategy):
        self.epoch = epoch
        self.shape = shape
        self.strategy = strategy
        self.events = []
        self.ended = False
        self.news = trio.lowlevel.ParkingLot()

    def tell(self, event):
        self.events.append(event)
        self.news.unpark_all()

    def end(self):
        self.ended = True
        self.news.unpark_all()

    def report(self):
        phases = dict.fromkeys(event.phase for event in self.events)
        return RefactorReport(
            epoch=self.epoch,
            strategy=self.strategy,
            stages=tuple(f"{layers} layers" for layers in self.shape),
            phase_ms=dict.fromkeys(phases, 1.5),
            weights=WeightSources(kept_bytes=4 * LAYER_BYTES, disk_bytes=(sum(self.shape) - 4) * LAYER_BYTES),
            kv_sent_bytes=PAGES * PAGE_BYTES,
            kv_resent_bytes=PAGE_BYTES,
            kv_final_bytes=0,
            kv_rounds=2,
            residual_tokens=5,
            cut_step=42,
            pauses=Pauses(3, 1.0, 2.0, 2.5),
            tpot_before_ms=20.0,
            tpot_load_ms=None,
            tpot_copy_ms=21.0,
            requests_lost=0,
            requests_preempted=1,
            requests_reprefilled=2,
        )
