"""Many peers at one address: a ZeroMQ ROUTER socket whose frames are dealt out to one wire per peer.

Owns the socket, who its peers are and when they are hung up on. A ROUTER drops what it cannot send unless it is told that peers are
mandatory, as here: then a peer without room refuses the frame, and one that is gone says so. Credit keeps every queue short of its
water mark. libzmq has no call that ends one peer's connection, and unbinding ends all of them, so a peer is hung up on through the
system (`connection`), and a closed listener stays bound, deaf to newcomers, until its last link ends.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio
import zmq

from .address import Address
from .authenticator import Proof, proof_of
from .connection import Connection
from .interface import AcceptedLink, FrameError, LinkLimits
from .link import WireEvent, WireLink
from .link_machine import LinkMachine, Segments
from .reception import Reception
from .refusal import RefusalReason
from .zmq_socket import ZmqSocket, descriptor_of, property_of
from .zmq_wire import CONTROL_FRAMES_MAX, EVENTS, GOODBYE_LINGER_MS, HANDSHAKE_FAILED, MONITOR_EVENT, bind, stranger

DOUBT_S = 0.01
"""libzmq tells of a connection's end a little before it lets go of the peer; asking earlier would hear that all is well."""


class RouterWire:
    """A `Wire` to one peer of a ROUTER socket, over the connection of ``descriptor``; ``frames_max`` bounds what waits here."""

    def __init__(self, listener: ZmqListener, identity: bytes, descriptor: int, frames_max: int) -> None:
        self.descriptor = descriptor
        self.is_closed = False
        self._connection = Connection.at(descriptor)
        self._listener = listener
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
            return self._listener.send_nowait([self._identity, *segments])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            # What it sent before is read first: its end is told after that.
            self._listener.read_all()
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
        self._listener.closed(self)
        await trio.lowlevel.checkpoint()

    def hang_up(self) -> bool:
        """End the connection; whether there was one. One over ipc cannot be ended so, and is of this host's own user."""
        return self._connection is not None and self._connection.hang_up()

    @property
    def identity(self) -> bytes:
        """What the socket calls the peer."""
        return self._identity


class ZmqListener:
    """The `Listener` over ``raw``, a ROUTER socket. ``run`` lives in the same ``nursery`` as the links.

    ``on_link`` is told of each new link and whose key its peer proved; ``on_end`` once the socket is closed.
    """

    def __init__(
        self,
        raw: zmq.Socket[bytes],
        name: str,
        limits: LinkLimits,
        nursery: trio.Nursery,
        reception: Reception,
        on_link: Callable[[WireLink, Proof], None],
        on_end: Callable[[], None],
    ) -> None:
        raw.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._raw = raw
        self._monitor = ZmqSocket(raw.get_monitor_socket(EVENTS))
        self._socket = ZmqSocket(raw)
        self._name = name
        self._limits = limits
        self._nursery = nursery
        self._reception = reception
        self._on_link = on_link
        self._on_end = on_end
        self._address = ""
        self._socket_file: Path | None = None
        self._wires: dict[bytes, RouterWire] = {}
        self._leaving: deque[tuple[float, RouterWire]] = deque()
        self._strangers = 0
        self._is_deaf = False
        self._scope = trio.CancelScope()

    @property
    def address(self) -> str:
        """See `Listener.address`."""
        return self._address

    def bind(self, address: Address) -> None:
        """Begin to listen. Raises `AddressError`."""
        self._socket_file = bind(self._raw, address)
        self._address = str(address)

    async def accept(self) -> AcceptedLink:
        """See `Listener.accept`."""
        return await self._reception.accept()

    async def aclose(self) -> None:
        """See `Listener.aclose`."""
        for accepted in self._turn_deaf():
            await accepted.link.aclose()
        self._end_if_alone()
        await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Deal out frames and watch connections, until the last link of a closed listener has ended."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._watch)
                    nursery.start_soon(self._see_off)
        finally:
            self._turn_deaf()
            self._end_if_alone()

    def close(self) -> None:
        """Release the socket at once, links or not."""
        self._turn_deaf()
        if not self._raw.closed:
            self._raw.disable_monitor()
            self._monitor.close()
            self._socket.close(GOODBYE_LINGER_MS)
            self._on_end()

    # --- what wires ask for -------------------------------------------------------------------------------------

    def send_nowait(self, segments: Segments) -> bool:
        """Send a frame, its peer's identity first. Raises `zmq.ZMQError` EHOSTUNREACH where that peer is gone."""
        return self._socket.send_nowait(segments)

    def read_all(self) -> None:
        """Deal out what has arrived, as much as may be under way from all peers."""
        for _ in range(len(self._wires) * self._frames_max):
            segments = self._socket.receive_nowait()
            if segments is None:
                return
            self._deal(segments)

    def closed(self, wire: RouterWire) -> None:
        """A wire's link has ended. Its frames are dropped until its connection has had the time to end."""
        self._leaving.append((trio.current_time() + GOODBYE_LINGER_MS / 1000, wire))
        self._end_if_alone()

    # --- the socket ---------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        with suppress(trio.ClosedResourceError):
            while True:
                self._deal(await self._socket.receive())

    def _deal(self, segments: list[memoryview]) -> None:
        identity = bytes(segments[0])
        wire = self._wires.get(identity)
        if wire is None:
            wire = self._wires[identity] = RouterWire(self, identity, descriptor_of(segments[0]), self._frames_max)
            self._receive(wire, proof_of(property_of(segments[0], "User-Id")), property_of(segments[0], "Peer-Address"))
        wire.arrive(segments[1:])

    def _receive(self, wire: RouterWire, proof: Proof, host: str) -> None:
        if self._reception.is_full:
            if not self._is_deaf:
                self._reception.refuse(RefusalReason.CROWDED, proof.node, host, "too many wait to be accepted")
            wire.is_closed = True
            self.closed(wire)
            return
        name = f"{self._name} with {proof.node or host or 'a peer'}"
        machine = LinkMachine(name, self._limits, secrets.randbits(64), trio.current_time(), listens=True)
        link = WireLink(name, machine, wire)
        self._nursery.start_soon(link.tend, name=f"tend {name}")
        self._on_link(link, proof)
        self._reception.admit(link, proof.node, host)

    async def _watch(self) -> None:
        with suppress(trio.ClosedResourceError):
            while True:
                event, value = MONITOR_EVENT.unpack((await self._monitor.receive())[0])
                if event == zmq.EVENT_DISCONNECTED:
                    await trio.sleep(DOUBT_S)
                    self._disconnected(value)
                elif event & HANDSHAKE_FAILED:
                    self._strangers += 1
                    if (
                        event != zmq.EVENT_HANDSHAKE_FAILED_AUTH
                    ):  # of a refused proof the authenticator tells, which knows more
                        self._reception.refuse(RefusalReason.HANDSHAKE, "", "", stranger(event))

    def _disconnected(self, descriptor: int) -> None:
        # By now the number may be another connection's: then its link says a word more than it had to.
        doubtful = [wire for wire in self._wires.values() if wire.descriptor == descriptor]
        for wire in doubtful:
            wire.tell(WireEvent.DOUBTFUL)
        if self._strangers and not doubtful:
            # libzmq tells a failed handshake and the end of its connection one right after the other.
            self._strangers -= 1
        elif not doubtful and not self._is_deaf:
            # libzmq is silent on some handshakes that fail: ZMTP 1 where it wants a proof.
            self._reception.refuse(RefusalReason.HANDSHAKE, "", "", "it was no peer's connection, and has ended")

    async def _see_off(self) -> None:
        """Hang up on peers whose links have ended and who have not left, and forget them."""
        while True:
            await trio.sleep(GOODBYE_LINGER_MS / 1000)
            while self._leaving and self._leaving[0][0] <= trio.current_time():
                when, wire = self._leaving.popleft()
                if wire.hang_up():
                    self._leaving.append((when + GOODBYE_LINGER_MS / 1000, wire))  # its end is yet to be told
                else:
                    del self._wires[wire.identity]

    @property
    def _frames_max(self) -> int:
        return self._limits.credit_messages + CONTROL_FRAMES_MAX

    # --- the end ------------------------------------------------------------------------------------------------

    def _turn_deaf(self) -> list[AcceptedLink]:
        self._is_deaf = True
        if self._socket_file is not None:
            self._socket_file.unlink(missing_ok=True)
            self._socket_file = None
        return self._reception.close()

    def _end_if_alone(self) -> None:
        if self._is_deaf and all(wire.is_closed for wire in self._wires.values()):
            self._scope.cancel()
            self.close()
