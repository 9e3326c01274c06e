"""The `Refactorer` of one pipeline: plans what is asked for, has the coordinator carry it out, and passes its progress on.

Planning takes some milliseconds of computing, so it happens in a thread; a pipeline that changed meanwhile refuses the plan.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

import trio

from ..runtime.interface import BLOCK_TOKENS
from .coordinator import Coordinator
from .coordinator_events import Refactor
from .refactor import RefactorEvent, RefactorRequest
from .route import Route, StagePlacement
from .scheduler import Scheduler


class Planner(Protocol):
    """Chooses the stages that a request makes of a route; knows the model and the devices."""

    def plan(
        self, request: RefactorRequest, route: Route, *, next_worker: int, live_tokens: int
    ) -> tuple[StagePlacement, ...]:
        """The new stages. Called from a thread. Raises `RefactorRefusedError`."""
        ...


class Reshaper:
    """See the module."""

    def __init__(self, planner: Planner, coordinator: Coordinator, scheduler: Scheduler) -> None:
        self._planner = planner
        self._coordinator = coordinator
        self._scheduler = scheduler

    async def refactor(self, request: RefactorRequest) -> AsyncGenerator[RefactorEvent, None]:
        """See `Refactorer.refactor`."""
        machine = self._coordinator.machine
        machine.check_changeable()
        route, next_worker = machine.route, machine.next_worker
        live_tokens = self._scheduler.counts().kv_blocks_used * BLOCK_TOKENS

        def plan() -> tuple[StagePlacement, ...]:
            return self._planner.plan(request, route, next_worker=next_worker, live_tokens=live_tokens)

        stages = await trio.to_thread.run_sync(plan)
        change = Refactor(route.epoch, stages, request.strategy, request.allow_preempt)
        async with aclosing(self._coordinator.refactor(change).events()) as events:
            async for event in events:
                yield event
