"""Drives a `LinkMachine` over a wire: who waits, who wakes whom, what a cancel may interrupt.

Owns the concurrency of a link and nothing of its protocol. There is no reader task between the socket and `receive`: whoever needs
something (a receiver a message, a sender credit) reads the wire itself, and the first to wait sleeps on the wire for all (the
leader). A tender task per link sleeps on the wire's events and the machine's clock: it says hello, sends heartbeats, reads what
nobody else reads, and closes the wire once the link has ended. Never knows whether the wire is ZeroMQ or memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Protocol

import trio

from .interface import Buffer, FrameError, LinkStatistics
from .link_machine import LinkMachine, LinkState, Segments

PUMP_FRAMES_MAX = 256
"""Frames read in one go, so that a peer which floods control frames cannot hold the event loop."""


class WireEvent(Enum):
    """What happens to a wire beside frames."""

    CONNECTED = auto()
    DISCONNECTED = auto()
    REFUSED = auto()
    """The other end takes no connection with the proof that this end brings."""
    DOUBTFUL = auto()
    """The wire cannot tell whether the other end is still there: a frame towards it would show it."""


class Wire(Protocol):
    """Frames in order between two ends, without bounds of its own beyond a generous buffer."""

    def send_nowait(self, segments: Segments) -> bool:
        """Put one frame on the wire whole; False where there is no room or no connection."""
        ...

    def receive_nowait(self) -> list[memoryview] | None:
        """The segments of the next frame that has arrived, or None. Raises `FrameError` where the wire itself refuses it."""
        ...

    async def wait_receivable(self) -> None:
        """Sleep until a frame may have arrived; may wake for nothing, and at once where frames are left."""
        ...

    async def next_event(self) -> WireEvent:
        """The next event; what came over a connection is receivable before its DISCONNECTED is told."""
        ...

    def settle(self) -> None:
        """The two ends have found each other: let nobody else in. Called any number of times."""
        ...

    async def aclose(self, *, flush: bool) -> None:
        """Release everything, in bounded time; with ``flush``, frames on their way get a moment to leave."""
        ...


class WireLink:
    """A `Link` over any `Wire`. `tend` runs as a background task from the start to the end of the link."""

    def __init__(self, name: str, machine: LinkMachine, wire: Wire) -> None:
        self._name = name
        self._machine = machine
        self._wire = wire
        self._changed = trio.lowlevel.ParkingLot()
        self._leader: trio.CancelScope | None = None
        self._tending = trio.CancelScope()
        self._tended = trio.Event()

    @property
    def name(self) -> str:
        """For logs: which purpose and which peer."""
        return self._name

    @property
    def is_open(self) -> bool:
        """Whether it may still carry frames."""
        return self._machine.is_open

    @property
    def peer_purpose(self) -> str:
        """What the peer told a listener that it wants; "" until it has come."""
        return self._machine.peer_purpose

    def statistics(self) -> LinkStatistics:
        """Counters, as a snapshot."""
        return self._machine.statistics()

    async def send(self, parts: Sequence[Buffer]) -> None:
        """See `Link.send`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        machine = self._machine
        waited = False
        while True:
            error = machine.send_error()
            if error is not None:
                await trio.lowlevel.checkpoint_if_cancelled()
                raise error
            size = machine.measure(parts)
            if machine.credit_left > 0 and self._wire.send_nowait(machine.encode_message(parts)):
                break
            if self._pump():
                continue  # else what is here already would end the wait at once, again and again
            await self._wait_for_change()
            waited = True
        machine.message_sent(size, trio.current_time())
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def receive(self) -> list[memoryview]:
        """See `Link.receive`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        machine = self._machine
        waited = False
        while not machine.has_message:
            if self._pump(first_message=True):
                continue
            error = machine.receive_error()
            if error is not None:
                await trio.lowlevel.checkpoint_if_cancelled()  # cancelled together with its link: only that counts
                raise error
            await self._wait_for_change()
            waited = True
        message, credit = machine.take(trio.current_time())
        self._post(credit)
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return message

    async def wait_open(self) -> None:
        """Wait for the peer's hello, whatever may have followed it. Raises as `receive` does where the link ends before it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        machine = self._machine
        while machine.state is LinkState.AWAITING:
            if not self._pump():
                await self._wait_for_change()
        error = machine.receive_error()
        if error is not None and not machine.has_met_peer:
            raise error

    def lose(self, sentence: str) -> None:
        """End the link as if the peer were lost, because of what ``sentence`` says. Nothing more of it is believed."""
        self._machine.lose(sentence)
        self._wake()

    async def aclose(self) -> None:
        """See `Link.aclose`."""
        self._tending.cancel()
        # Bounded by the wire's own limits: a close must not leave sockets behind because its caller was cancelled.
        with trio.CancelScope(shield=True):
            await self._tended.wait()
        self._machine.close(trio.current_time())

    async def tend(self) -> None:
        """Keep the link's promises that nobody waits for. Started once, by whoever made the link."""
        try:
            with self._tending:
                while self._machine.is_open:
                    await self._tend_once()
        finally:
            self._pump()  # a peer that has said goodbye already is not owed one, nor the time to hear it
            goodbye = self._machine.close(trio.current_time()) if self._machine.is_open else None
            self._post(goodbye)
            self._wake()
            with trio.CancelScope(shield=True):
                await self._wire.aclose(flush=goodbye is not None)
            self._tended.set()

    async def _tend_once(self) -> None:
        event = None
        with trio.move_on_at(self._machine.next_tick_at):
            event = await self._wire.next_event()
        # Frames first: silence and the end of a connection are judged by all that has arrived.
        self._pump()
        machine = self._machine
        if event is WireEvent.CONNECTED:
            self._post(machine.connected(trio.current_time()))
        elif event is WireEvent.DISCONNECTED:
            machine.disconnected()
        elif event is WireEvent.REFUSED:
            machine.lose(
                "the other end does not accept this end's key or seal: let it add the key, or ask for a new link"
            )
        elif event is WireEvent.DOUBTFUL:
            self._post(machine.sign_of_life(trio.current_time()))
        self._post(machine.tick(trio.current_time()))
        if machine.state is LinkState.UP:
            self._wire.settle()

    def _pump(self, *, first_message: bool = False) -> bool:
        """Hand the frames that have arrived to the machine, all or up to the ``first_message``; whether there were any."""
        machine = self._machine
        changed = False
        for _ in range(PUMP_FRAMES_MAX):
            try:
                segments = self._wire.receive_nowait() if machine.is_open else None
            except FrameError as error:
                machine.frame_refused(error)
            else:
                if segments is None:
                    break
                self._post(machine.frame_received(segments, trio.current_time()))
            changed = True
            if first_message and machine.has_message:
                break
        if changed:
            self._wake()
        return changed

    def _post(self, segments: Segments | None) -> None:
        # A control frame that finds no room is not repeated: the next one says the same and more.
        if segments is not None:
            self._wire.send_nowait(segments)

    def _wake(self) -> None:
        """Let everyone look again, the tender too where the link has ended."""
        if self._leader is not None:
            self._leader.cancel()
        self._changed.unpark_all()
        if not self._machine.is_open:
            self._tending.cancel()

    async def _wait_for_change(self) -> None:
        if self._leader is not None:
            await self._changed.park()
            return
        with trio.CancelScope() as scope:
            self._leader = scope
            try:
                await self._wire.wait_receivable()
            finally:
                self._leader = None
                self._changed.unpark_all()
