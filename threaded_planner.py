"""The planner of a server as its actors see it: its milliseconds of computing are a thread's, so that steps go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from .actors.refactor import RefactorRequest
from .actors.route import Route, StagePlacement
from .refactor_planning import RefactorPlanner


class ThreadedPlanner:
    """The `reshaper.Planner` of a server."""

    def __init__(self, planner: RefactorPlanner) -> None:
        self._planner = planner

    async def plan(
        self,
        request: RefactorRequest,
        route: Route,
        *,
        next_worker: int,
        live_tokens: int,
        taken_devices: frozenset[str],
    ) -> tuple[StagePlacement, ...]:
        """See `reshaper.Planner`."""
        plan = partial(self._planner.plan, request, route, next_worker=next_worker, live_tokens=live_tokens)
        return await trio.to_thread.run_sync(partial(plan, taken_devices=taken_devices))

    async def copy(self, route: Route, *, taken_devices: frozenset[str]) -> tuple[StagePlacement, ...]:
        """See `reshaper.Planner`."""
        return await trio.to_thread.run_sync(partial(self._planner.copy, route, taken_devices=taken_devices))


class ThreadedRecovery:
    """The `RecoveryPlanner` of one replica; ``taken`` says which devices others have."""

    def __init__(self, planner: RefactorPlanner, taken: Callable[[], frozenset[str]]) -> None:
        self._planner = planner
        self._taken = taken

    async def recover(self, wanted: tuple[StagePlacement, ...], next_worker: int) -> tuple[StagePlacement, ...]:
        """See `RecoveryPlanner.recover`."""
        recover = partial(self._planner.recover, wanted, next_worker=next_worker, taken_devices=self._taken())
        return await trio.to_thread.run_sync(recover)
