"""How a daemon hears that it is to stop: SIGINT or SIGTERM, and a second one for those who do not want to wait."""

from __future__ import annotations

import signal

import trio


async def stop_on_signals(
    stop: trio.Event, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Set ``stop`` at the first signal, which may have been set otherwise; cancel ``scope`` at one that comes after that."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if stop.is_set():
                scope.cancel()
            stop.set()
