"""A link to a peer that was asked to come and has not come yet: to whoever uses it, a link like any other.

Whoever was to come and did not is waited for, as `Link` promises; who uses it ends the wait by closing it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from ...transport.interface import Buffer, Link, LinkClosedError, LinkStatistics

_NOTHING = LinkStatistics(0, 0, 0, 0, 0, 0)


class ExpectedLink:
    """See the module. ``forget`` is called once, when nobody is expected any more."""

    def __init__(self, name: str, forget: Callable[[], None]) -> None:
        self.name = name
        self.closed = trio.Event()
        self._forget = forget
        self._link: Link | None = None
        self._settled = trio.Event()

    def arrived(self, link: Link) -> bool:
        """The peer is here; False, and the link is not taken, where one was here before, or nobody is expected any more."""
        if self.closed.is_set() or self._link is not None:
            return False
        self._link = link
        self._settled.set()
        return True

    async def send(self, parts: Sequence[Buffer]) -> None:
        """See `Link.send`."""
        await (await self._arrival()).send(parts)

    async def receive(self) -> list[memoryview]:
        """See `Link.receive`."""
        return await (await self._arrival()).receive()

    def statistics(self) -> LinkStatistics:
        """See `Link.statistics`."""
        return self._link.statistics() if self._link is not None else _NOTHING

    async def aclose(self) -> None:
        """See `Link.aclose`."""
        if not self.closed.is_set():
            self.closed.set()
            self._forget()
            self._settled.set()
        if self._link is not None:
            await self._link.aclose()
        await trio.lowlevel.checkpoint()

    async def _arrival(self) -> Link:
        await self._settled.wait()
        if self._link is None:
            raise LinkClosedError(f"{self.name} was closed by this end")
        return self._link
