"""What is told of one refactoring, for as many readers as there are, each from the start, none of them waited for.

An `Undertaking` is one that was asked for: it may be refused before anything is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from .refactor import RefactorEvent, RefactorProgress

EVENTS_KEPT_MAX = 256
"""Events that a reader may be behind; older ones are dropped."""


class RefactorFeed:
    """Any number of `RefactorProgress`, then one last event."""

    def __init__(self) -> None:
        self.final: RefactorEvent | None = None
        self._events: deque[RefactorEvent] = deque(maxlen=EVENTS_KEPT_MAX)
        self._told = 0
        self._news = trio.lowlevel.ParkingLot()

    def tell(self, event: RefactorEvent) -> None:
        """Add an event; nothing comes after a last one."""
        assert self.final is None
        if not isinstance(event, RefactorProgress):
            self.final = event
        self._events.append(event)
        self._told += 1
        self._news.unpark_all()

    async def events(self) -> AsyncGenerator[RefactorEvent, None]:
        """From the first one that is kept to the last. Leaving early changes nothing."""
        seen = 0
        while True:
            dropped = self._told - len(self._events)
            seen = max(seen, dropped)
            if seen < self._told:
                event = self._events[seen - dropped]
                seen += 1
                yield event
            elif self.final is not None:
                return
            else:
                await self._news.park()


class Undertaking:
    """One request being carried out: what is told of it, and whether it was refused before anything was."""

    def __init__(self) -> None:
        self.feed = RefactorFeed()
        self.has_begun = trio.Event()  # or was refused
        self._refusal: Exception | None = None

    def refuse(self, refusal: Exception) -> None:
        """It does not begin."""
        self._refusal = refusal
        self.has_begun.set()

    async def events(self) -> AsyncGenerator[RefactorEvent, None]:
        """See `Refactorer.refactor`: the first step waits until it has begun, and raises the refusal."""
        await self.has_begun.wait()
        if self._refusal is not None:
            raise self._refusal
        async with aclosing(self.feed.events()) as events:
            async for event in events:
                yield event
