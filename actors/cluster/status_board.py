"""What is true of the leader's pipelines, told to every gateway when it has changed: read once for all, at a bounded rate.

It is looked at ``LOOK_S`` apart, and whenever somebody has reason to think that it changed, for as long as the allowance lasts.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ..generation import PipelineStatus
from .token_messages import TO_GATEWAY, StatusPush

LOOK_S = 0.2
"""A status that a gateway shows is at most so much older than what it took to arrive."""
PROMPTED_PER_S = 20.0
PROMPTED_MAX = 10
"""Looks for a reason: at most so many a second, and so many at once."""

Reader = Callable[[bytes], None]
"""Is told an encoded `StatusPush`."""


class StatusBoard:
    """See the module. ``run`` must be running."""

    def __init__(self, status: Callable[[], PipelineStatus]) -> None:
        self._status = status
        self._last: PipelineStatus | None = None
        self._readers: set[Reader] = set()
        self._allowance = float(PROMPTED_MAX)
        self._prompted_at = 0.0

    async def run(self) -> None:
        """Look, again and again, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            self._tell()

    def read(self, reader: Reader) -> PipelineStatus:
        """Tell ``reader`` of every change from now on; what is true now."""
        self._tell()
        self._readers.add(reader)
        assert self._last is not None
        return self._last

    def forget(self, reader: Reader) -> None:
        """Tell it no more."""
        self._readers.discard(reader)

    def prompt(self) -> None:
        """Something happened: look now, unless that was done often enough lately."""
        now = trio.current_time()
        earned = (now - self._prompted_at) * PROMPTED_PER_S
        self._allowance = min(float(PROMPTED_MAX), self._allowance + earned)
        self._prompted_at = now
        if self._allowance >= 1:
            self._allowance -= 1
            self._tell()

    def _tell(self) -> None:
        status = self._status()
        if status == self._last:
            return
        self._last = status
        if self._readers:
            message = TO_GATEWAY.encode(StatusPush(status))
            for reader in self._readers:
                reader(message)
