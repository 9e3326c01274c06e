"""The `Refactorer` of one model: has its replicas changed one after the other, or replicas started and retired.

Owns what is asked of which replica, in which order, and what is told of it. How stages are chosen is the `Planner`'s; how one
replica changes its coordinator's. One request at a time; it goes on whoever watches.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec
import trio

from ..runtime.interface import BLOCK_TOKENS, WeightSources
from .change_watch import ChangeWatch
from .coordinator_events import Refactor
from .journal import JournalError
from .refactor import (
    BusyRefusedError,
    Pauses,
    Phase,
    RefactorEvent,
    RefactorFailed,
    RefactorProgress,
    RefactorRefusedError,
    RefactorReport,
    RefactorRequest,
    SameShapeRefusedError,
)
from .refactor_feed import RefactorFeed, Undertaking
from .replicas import Replica, Replicas
from .route import Route, StagePlacement


class Planner(Protocol):
    """Chooses stages; knows the model and the devices. Both raise `RefactorRefusedError`."""

    async def plan(
        self,
        request: RefactorRequest,
        route: Route,
        *,
        next_worker: int,
        live_tokens: int,
        taken_devices: frozenset[str],
    ) -> tuple[StagePlacement, ...]:
        """The stages that ``request`` makes of ``route``."""
        ...

    async def copy(self, route: Route, *, taken_devices: frozenset[str]) -> tuple[StagePlacement, ...]:
        """Stages like those of ``route``, of workers numbered from 0, on other devices."""
        ...


class Reshaper:
    """See the module. ``run`` must be running."""

    def __init__(self, planner: Planner, replicas: Replicas) -> None:
        self._planner = planner
        self._replicas = replicas
        self._undertaking: Undertaking | None = None
        self._nursery: trio.Nursery | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a request is being carried out."""
        return self._undertaking is not None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out what is asked for, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def refactor(self, request: RefactorRequest) -> AsyncGenerator[RefactorEvent, None]:
        """See `Refactorer.refactor`."""
        if self._undertaking is not None:
            for replica in self._replicas.present:
                replica.pipeline.check_changeable()  # which says more
            raise BusyRefusedError.under_way("another change")
        assert self._nursery is not None
        undertaking = self._undertaking = Undertaking()
        self._nursery.start_soon(self._carry_out, request, undertaking)
        async with aclosing(undertaking.events()) as events:
            async for event in events:
                yield event

    async def _carry_out(self, request: RefactorRequest, undertaking: Undertaking) -> None:
        try:
            if request.replicas is None:
                await self._reshape(request, undertaking)
            elif request.replicas > len(self._replicas.present):
                await self._replicate(request, undertaking)
            else:
                await self._retire(request, undertaking)
        except Exception as error:
            if undertaking.has_begun.is_set():
                raise
            undertaking.refuse(error)  # whoever asked is to hear of it, be it a refusal or a bug
        finally:
            self._undertaking = None

    # --- another shape ---

    async def _reshape(self, request: RefactorRequest, undertaking: Undertaking) -> None:
        """Change one replica after the other. All are planned first: what cannot be is refused before anything changed."""
        replicas = self._concerned(request)
        changes = await self._planned(request, replicas)
        reports: list[RefactorReport] = []
        for replica in replicas:
            change = changes.get(replica.number)
            if change is None:
                continue  # it has this shape
            try:
                if change.based_on != replica.pipeline.route.epoch:  # it recovered meanwhile
                    change = await self._plan(request, replica, self._replicas.devices(but=replica))
                watch = replica.pipeline.refactor(change)
            except RefactorRefusedError as refusal:
                if not reports:
                    raise
                final: RefactorEvent = RefactorFailed("refused", f"replica {replica.number}: {refusal}")
            else:
                undertaking.has_begun.set()
                final = await _relay(watch, undertaking.feed, replica, name=len(replicas) > 1)
            if not isinstance(final, RefactorReport):
                undertaking.feed.tell(_after(final, reports))
                return
            reports.append(final)
        undertaking.feed.tell(_together(reports))

    def _concerned(self, request: RefactorRequest) -> list[Replica]:
        present = self._replicas.present
        concerned = [at for at in present if request.replica is None or at.number == request.replica]
        if not concerned:
            numbers = ", ".join(str(replica.number) for replica in present)
            raise RefactorRefusedError(f"there is no replica {request.replica}; there are: {numbers}")
        return concerned

    async def _planned(self, request: RefactorRequest, replicas: Sequence[Replica]) -> dict[int, Refactor]:
        """The change of each replica that does not have the wanted shape. No two of them count on the same device."""
        changes: dict[int, Refactor] = {}
        alike: SameShapeRefusedError | None = None
        promised: frozenset[str] = frozenset()
        for replica in replicas:
            try:
                change = await self._plan(request, replica, promised | self._replicas.devices(but=replica))
            except SameShapeRefusedError as refusal:
                alike = refusal
            else:
                changes[replica.number] = change
                promised |= {stage.device for stage in change.stages}
        if not changes and alike is not None:
            raise alike
        return changes

    async def _plan(self, request: RefactorRequest, replica: Replica, taken: frozenset[str]) -> Refactor:
        pipeline = replica.pipeline
        await pipeline.changeable()
        route = pipeline.route
        stages = await self._planner.plan(
            request,
            route,
            next_worker=pipeline.next_worker,
            live_tokens=pipeline.counts.kv_blocks_used * BLOCK_TOKENS,
            taken_devices=taken | pipeline.leaving_devices(),
        )
        return Refactor(route.epoch, stages, request.strategy, request.allow_preempt)

    # --- more replicas ---

    async def _replicate(self, request: RefactorRequest, undertaking: Undertaking) -> None:
        """Start replicas like the oldest one; where one does not come up, those that did are retired again."""
        assert request.replicas is not None
        _check_no_replica(request)
        model, taken = self._replicas.present[0], self._replicas.devices()
        numbers = self._replicas.free_numbers(request.replicas - len(self._replicas.present))
        shapes: dict[int, tuple[StagePlacement, ...]] = {}
        for number in numbers:
            shapes[number] = await self._planner.copy(model.pipeline.route, taken_devices=taken)
            taken |= {stage.device for stage in shapes[number]}
        started: list[Replica] = []
        reports: list[RefactorReport] = []
        for number, stages in shapes.items():
            try:
                replica = await self._replicas.start(number, stages)
            except JournalError as error:
                final: RefactorEvent = RefactorFailed("aborted", f"replica {number}: {error}")
            else:
                started.append(replica)
                undertaking.has_begun.set()
                final = await _relay(replica.watch, undertaking.feed, replica, name=True)
            undertaking.has_begun.set()
            if not isinstance(final, RefactorReport):
                if isinstance(final, RefactorFailed) and final.reason == "aborted":
                    await self._take_back(started)
                undertaking.feed.tell(final)
                return
            reports.append(msgspec.structs.replace(final, deed="started", strategy=request.strategy))
        undertaking.feed.tell(_together(reports))

    async def _take_back(self, started: Sequence[Replica]) -> None:
        """Leave nothing behind of replicas that were started in vain."""
        for replica in reversed(started):
            if await self._replicas.empty(replica):
                await self._replicas.remove(replica)

    # --- fewer replicas ---

    async def _retire(self, request: RefactorRequest, undertaking: Undertaking) -> None:
        """Retire the youngest replicas, one after the other."""
        assert request.replicas is not None
        _check_no_replica(request)
        present = self._replicas.present
        if request.replicas < 1:
            raise RefactorRefusedError(f"{request.replicas} replicas cannot serve; ask for 1 or more")
        if request.replicas == len(present):
            raise RefactorRefusedError(f"there are {len(present)} replicas already; nothing was changed")
        undertaking.has_begun.set()
        reports: list[RefactorReport] = []
        for replica in reversed(present[request.replicas :]):
            report = await self._retire_one(replica, request, undertaking.feed)
            if report is None:
                sentence = f"replica {replica.number} has to stay: the others were given up"
                undertaking.feed.tell(_after(RefactorFailed("aborted", sentence), reports))
                return
            reports.append(report)
        undertaking.feed.tell(_together(reports))

    async def _retire_one(
        self, replica: Replica, request: RefactorRequest, feed: RefactorFeed
    ) -> RefactorReport | None:
        """The report; None where it has to stay."""
        number, epoch = replica.number, replica.pipeline.route.epoch
        times = [trio.current_time()]

        def tell(phase: Phase, sentence: str) -> None:
            feed.tell(RefactorProgress(epoch, phase, 0, 0, f"replica {number}: {sentence}", number))

        counts = replica.pipeline.counts
        tell("switch", f"takes no more requests; {counts.running + counts.waiting} are to end there")
        if not await self._replicas.empty(replica):
            return None
        times.append(trio.current_time())
        counts = replica.pipeline.counts
        moved = counts.running + counts.waiting
        tell("release", f"its workers leave; {moved} requests go on elsewhere")
        await self._replicas.remove(replica)
        times.append(trio.current_time())
        return _retirement(replica, request, epoch, times, moved)


async def _relay(watch: ChangeWatch, feed: RefactorFeed, replica: Replica, *, name: bool) -> RefactorEvent:
    """Pass on what is told of a replica's change, with its number, ``name`` it in sentences; the last event is returned."""
    prefix = f"replica {replica.number}: " if name else ""
    async with aclosing(watch.events()) as events:
        async for event in events:
            match event:
                case RefactorProgress():
                    sentence = f"{prefix}{event.sentence}"
                    feed.tell(msgspec.structs.replace(event, replica=replica.number, sentence=sentence))
                case RefactorFailed():
                    return msgspec.structs.replace(event, sentence=f"{prefix}{event.sentence}")
                case RefactorReport():
                    return msgspec.structs.replace(event, replica=replica.number)
    raise AssertionError("the events of a change ended without a last one")


def _check_no_replica(request: RefactorRequest) -> None:
    if request.replica is not None:
        raise RefactorRefusedError("a number of replicas concerns all of them: leave replica out")


def _together(reports: Sequence[RefactorReport]) -> RefactorReport:
    return msgspec.structs.replace(reports[-1], earlier=tuple(reports[:-1]))


def _after(failed: RefactorEvent, reports: Sequence[RefactorReport]) -> RefactorEvent:
    """A failure, with what had been done before it."""
    if not reports or not isinstance(failed, RefactorFailed):
        return failed
    done = ", ".join(f"replica {report.replica} was {report.deed}" for report in reports)
    return msgspec.structs.replace(failed, sentence=f"{failed.sentence} ({done} before that)")


def _retirement(
    replica: Replica, request: RefactorRequest, epoch: int, times: Sequence[float], moved: int
) -> RefactorReport:
    began, emptied, gone = times
    return RefactorReport(
        epoch=epoch,
        strategy=request.strategy,
        stages=(),
        phase_ms={"switch": round((emptied - began) * 1000, 3), "release": round((gone - emptied) * 1000, 3)},
        weights=WeightSources(),
        kv_sent_bytes=0,
        kv_resent_bytes=0,
        kv_final_bytes=0,
        kv_rounds=0,
        residual_tokens=0,
        cut_step=-1,
        pauses=Pauses(0, None, None, None),
        tpot_before_ms=None,
        tpot_load_ms=None,
        tpot_copy_ms=None,
        requests_lost=0,
        requests_preempted=0,
        requests_reprefilled=moved,
        replica=replica.number,
        deed="retired",
    )
