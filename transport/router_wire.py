"""One peer of a ZeroMQ ROUTER socket as a wire: its frames, and what becomes of its connection.

The socket is the listener's, who deals frames out to its wires. Knows neither keys nor hellos.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import trio
import zmq

from .connection import Connection
from .interface import FrameError
from .link import WireEvent
from .link_machine import Segments


class Router(Protocol):
    """What a wire asks of the socket's owner."""

    def send_nowait(self, segments: Segments) -> bool:
        """Send a frame, its peer's identity first. Raises `zmq.ZMQError` EHOSTUNREACH where that peer is gone."""
        ...

    def read_all(self) -> None:
        """Deal out what has arrived."""
        ...

    def hang_up(self, connection: Connection) -> bool:
        """End a peer's connection; whether there was one to end."""
        ...

    def closed(self, wire: RouterWire) -> None:
        """A wire's link has ended."""
        ...


class RouterWire:
    """A `Wire` to one peer of a ROUTER socket, over the connection of ``descriptor``; ``frames_max`` bounds what waits here."""

    def __init__(
        self,
        router: Router,
        identity: bytes,
        descriptor: int,
        connection: Connection | None,
        frames_max: int,
    ) -> None:
        self.descriptor = descriptor
        self.is_closed = False
        self._connection = connection
        self._router = router
        self._identity = identity
        self._frames_max = frames_max
        self._frames: deque[list[memoryview]] = deque()
        self._overflowed = False
        self._events: deque[WireEvent] = deque([WireEvent.CONNECTED])
        self._arrived = trio.lowlevel.ParkingLot()
        self._happened = trio.lowlevel.ParkingLot()

    def arrive(self, segments: list[memoryview]) -> None:
        """A frame of the peer's. What comes after the end, or beyond the bound, is dropped; the latter ends the link."""
        if self.is_closed or self._overflowed:
            return
        if len(self._frames) == self._frames_max:
            self._overflowed = True
            self.tell(WireEvent.DOUBTFUL)  # wakes the link, which then finds out
            return
        self._frames.append(segments)
        self._arrived.unpark_all()

    def tell(self, event: WireEvent) -> None:
        """Something happened to the connection."""
        self._events.append(event)
        self._happened.unpark_all()

    def send_nowait(self, segments: Segments) -> bool:
        """See `Wire`."""
        if self.is_closed:
            return False
        try:
            return self._router.send_nowait([self._identity, *segments])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            # What it sent before is read first: its end is told after that.
            self._router.read_all()
            self.tell(WireEvent.DISCONNECTED)
            return False

    def receive_nowait(self) -> list[memoryview] | None:
        """See `Wire`."""
        if self._frames:
            return self._frames.popleft()
        if self._overflowed:
            raise FrameError(f"the peer sent more than the {self._frames_max} frames that may be under way")
        return None

    async def wait_receivable(self) -> None:
        """See `Wire`."""
        if self._frames or self._overflowed:
            await trio.lowlevel.checkpoint()
        else:
            await self._arrived.park()

    async def next_event(self) -> WireEvent:
        """See `Wire`."""
        while not self._events:
            await self._happened.park()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return self._events.popleft()

    def settle(self) -> None:
        """See `Wire`. A peer of a router is joined to nobody else anyway."""

    async def aclose(self, *, flush: bool) -> None:
        """See `Wire`. A peer that was told goodbye may leave by itself, for a while."""
        self.is_closed = True
        self._frames.clear()
        if not flush:
            self.hang_up()
        self._router.closed(self)
        await trio.lowlevel.checkpoint()

    def hang_up(self) -> bool:
        """End the connection; whether there was one. One over ipc cannot be ended so, and is of this host's own user."""
        return self._connection is not None and self._router.hang_up(self._connection)

    @property
    def identity(self) -> bytes:
        """What the socket calls the peer."""
        return self._identity
