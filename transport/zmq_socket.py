"""A ZeroMQ socket for trio: several tasks may send and receive at once, any of them may be cancelled at any time.

Owns one `zmq.Socket`. Theory of operation: the socket's file descriptor is a doorbell for libzmq's command mailbox, not "a message
is here". Any call on the socket may empty the mailbox and thereby swallow the ring another task sleeps on, and trio lets only
one task wait on a descriptor. So:

- Every operation is tried without blocking first; only then does the task wait, and try again when woken for whatever reason.
- The first waiter (the leader) sleeps on the descriptor, the others (followers) in a parking lot per direction.
- Whoever calls the socket while others wait, with success or not, reads EVENTS once and wakes those it concerns (`_kick`): the
  leader by cancelling a scope of its own. That is the cure for the swallowed ring.
- A leader that leaves, for any reason, wakes one follower, who tries again and leads.
- A non-blocking call is synchronous and a message of several parts goes whole or not at all, so a cancel never halves one.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
import zmq

from .interface import Buffer

ZERO_COPY_BYTES_MIN = 128 * 1024
"""From this size on libzmq reads the caller's memory; below, book-keeping costs more than the copy (12 and 5.5 us at 64 KiB)."""
FRAMES_MAX = 128
"""ZeroMQ frames in one message; more are read and dropped, and the message comes out cut off."""


class ZmqSocket:
    """The trio face of ``raw``, which nobody else may touch from now on."""

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self._raw = raw
        self._descriptor = int(raw.getsockopt(zmq.FD))
        self._leader: tuple[trio.CancelScope, zmq.PollEvent] | None = None
        self._followers = {zmq.POLLIN: trio.lowlevel.ParkingLot(), zmq.POLLOUT: trio.lowlevel.ParkingLot()}

    async def send(self, segments: Sequence[Buffer]) -> None:
        """Send one message whole, waiting for room. Large segments are not copied: do not write to them again.

        Raises `trio.ClosedResourceError` where the socket is or gets closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while not self.send_nowait(segments):
            await self._wait(zmq.POLLOUT)
            waited = True
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def receive(self) -> list[memoryview]:
        """The segments of the next message, views that own their memory. Raises `trio.ClosedResourceError`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while (segments := self.receive_nowait()) is None:
            await self._wait(zmq.POLLIN)
            waited = True
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return segments

    def send_nowait(self, segments: Sequence[Buffer]) -> bool:
        """Send one message whole, or return False where there is no room or nobody to send to.

        A ROUTER whose peers are mandatory raises `zmq.ZMQError` EHOSTUNREACH for one that is not there.
        """
        self._check_open()
        try:
            # libzmq looks into its mailbox at most once a millisecond while sending: on a refusal make it look, then believe it.
            return self._try_send(segments) or (bool(self._events() & zmq.POLLOUT) and self._try_send(segments))
        finally:
            self._kick()

    def receive_nowait(self) -> list[memoryview] | None:
        """The segments of the next message, or None."""
        self._check_open()
        segments = self._try_receive()
        self._kick()
        return segments

    async def wait_receivable(self) -> None:
        """Sleep until a message may have come; may wake for nothing. Raises `trio.ClosedResourceError`."""
        await self._wait(zmq.POLLIN)

    def close(self, linger_ms: int = 0) -> None:
        """Close, giving messages on their way ``linger_ms`` to leave. Idempotent; wakes everyone who waits."""
        if self._raw.closed:
            return
        trio.lowlevel.notify_closing(self._descriptor)
        self._raw.close(linger_ms)
        for lot in self._followers.values():
            lot.unpark_all()

    def _check_open(self) -> None:
        if self._raw.closed:
            raise trio.ClosedResourceError("this ZeroMQ socket was closed")

    def _try_send(self, segments: Sequence[Buffer]) -> bool:
        last = len(segments) - 1
        try:
            for index, segment in enumerate(segments):
                # Once the first frame is accepted libzmq takes the rest of its message unconditionally.
                flags = zmq.NOBLOCK if index == last else zmq.NOBLOCK | zmq.SNDMORE
                self._raw.send(segment, flags, copy=len(segment) < ZERO_COPY_BYTES_MIN)
        except zmq.Again:
            return False
        return True

    def _try_receive(self) -> list[memoryview] | None:
        try:
            frame = self._raw.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        segments = [frame.buffer]
        while frame.more:
            frame = self._raw.recv(zmq.NOBLOCK, copy=False)
            if len(segments) < FRAMES_MAX:
                segments.append(frame.buffer)
        return segments

    def _events(self) -> int:
        return int(self._raw.getsockopt(zmq.EVENTS))

    def _kick(self) -> None:
        """After any call on the socket: wake those whose ring it may have swallowed."""
        if self._leader or any(self._followers.values()):
            self._wake(self._events())

    def _wake(self, events: int) -> None:
        for direction, lot in self._followers.items():
            if events & direction:
                lot.unpark()
        if self._leader and events & self._leader[1]:
            self._leader[0].cancel()

    async def _wait(self, direction: zmq.PollEvent) -> None:
        self._check_open()
        events = self._events()
        self._wake(events)
        if events & direction:
            # Ready already, by a ring that was swallowed: sleeping now could be for ever.
            await trio.lowlevel.checkpoint()
        elif self._leader is None:
            await self._lead(direction)
        else:
            await self._followers[direction].park()

    async def _lead(self, direction: zmq.PollEvent) -> None:
        with trio.CancelScope() as scope:
            self._leader = (scope, direction)
            try:
                await trio.lowlevel.wait_readable(self._descriptor)
            finally:
                self._leader = None
                if not self._raw.closed:
                    self._kick()
                    self._unpark_one()

    def _unpark_one(self) -> None:
        for lot in self._followers.values():
            if lot:
                lot.unpark()
                return


def property_of(segment: memoryview, name: str) -> str:
    """What libzmq knows of the connection that a received segment came over ("User-Id", "Peer-Address"); "" where nothing."""
    frame = segment.obj
    assert isinstance(frame, zmq.Frame)
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""


def descriptor_of(segment: memoryview) -> int:
    """The descriptor number of the connection that a received segment came over; it may be another one's by now."""
    frame = segment.obj
    assert isinstance(frame, zmq.Frame)
    return int(frame.get(zmq.SRCFD))
