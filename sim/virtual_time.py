"""Runs actors on a virtual clock, with a scheduler of tasks whose whims come from a seed: the same seed, the same run.

Time stands still while any task can run and jumps to the next deadline when none can. Whoever runs here must wait for nothing
but time and other tasks: no sockets, no threads.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from trio._core import _run as _trio_run

T = TypeVar("T")


class VirtualClock(trio.abc.Clock):
    """Seconds from 0. trio asks `deadline_to_sleep_time` when no task can run, and only then: the moment to jump."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def start_clock(self) -> None:
        """See trio."""

    def current_time(self) -> float:
        """See trio."""
        return self.now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Jump to ``deadline``; nobody sleeps for it."""
        self.now_s = max(self.now_s, deadline)
        return 0.0


def run_virtual(main: Callable[[], Awaitable[T]], seed: int, seconds_max: float) -> T:
    """Run ``main`` to its end in virtual time; the order in which tasks that can run do so is drawn from ``seed``.

    Garbage is collected before, not during the run: its moments depend on what this process did earlier, and it may end
    asynchronous generators. Raises what ``main`` raises, and `trio.TooSlowError` where it is not over after ``seconds_max``
    virtual seconds: at once where every task waits for another one.
    """

    async def bounded() -> T:
        with trio.fail_after(seconds_max):
            return await main()

    whims, deterministic = _trio_run._r, _trio_run._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001 - see below
    collects = gc.isenabled()
    gc.disable()
    try:
        # trio shuffles the tasks that can run, so that nobody relies on their order, and offers no public way to say how. With
        # this switch (made for hypothesis) it sorts them first, by age, and so the generator's seed decides alone.
        _trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc] # noqa: SLF001
        _trio_run._r = random.Random(seed)  # noqa: SLF001, S311 - reproducible on purpose
        return trio.run(bounded, clock=VirtualClock())
    finally:
        _trio_run._r = whims  # noqa: SLF001
        _trio_run._ALLOW_DETERMINISTIC_SCHEDULING = deterministic  # type: ignore[misc] # noqa: SLF001
        if collects:
            gc.enable()
