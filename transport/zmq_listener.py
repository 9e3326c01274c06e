"""Many peers at one address: a ZeroMQ ROUTER socket whose frames are dealt out to one wire per peer.

Owns the socket, who its peers are and when they are hung up on. A ROUTER drops what it cannot send unless it is told that peers are
mandatory, as here: then a peer without room refuses the frame, and one that is gone says so. Credit keeps every queue short of its
water mark. libzmq has no call that ends one peer's connection, and unbinding ends all of them, so a peer is hung up on through the
system (`connection`), and a closed listener stays bound, deaf to newcomers, until its last link ends.
"""

from __future__ import annotations

import heapq
import secrets
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio
import zmq

from .address import Address
from .authenticator import Proof, proof_of
from .connection import Connection, Connections
from .interface import AcceptedLink, LinkLimits
from .link import WireEvent, WireLink
from .link_machine import LinkMachine, Segments
from .reception import GUESTS_MAX, Reception
from .refusal import RefusalReason
from .router_wire import RouterWire
from .zmq_socket import ZmqSocket, descriptor_of, property_of
from .zmq_wire import CONTROL_FRAMES_MAX, EVENTS, GOODBYE_LINGER_MS, HANDSHAKE_FAILED, MONITOR_EVENT, bind, stranger

DOUBTS_S = (0.01, 0.1, 1.0)
"""libzmq tells of a connection's end a little before it lets go of the peer, longer on a busy machine: asked early, all is well.
So a link whose connection has ended is asked several times, so long after that was told."""


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
        self._monitor = ZmqSocket(raw.get_monitor_socket(EVENTS | zmq.EVENT_ACCEPTED))
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
        self._connections = Connections(self._catch_up)
        self._peers: Counter[int] = Counter()  # by descriptor: connections of peers whose end was not looked into yet
        self._ends: list[
            tuple[float, int, int]
        ] = []  # a heap: when to look into an end, for which time, which descriptor
        self._end_came = trio.lowlevel.ParkingLot()
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
                    nursery.start_soon(self._look_into_ends)
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
        for _ in range((len(self._wires) + GUESTS_MAX) * self._frames_max):
            segments = self._socket.receive_nowait()
            if segments is None:
                return
            self._deal(segments)

    def hang_up(self, connection: Connection) -> bool:
        """End a peer's connection; whether there was one to end."""
        return not self._raw.closed and self._connections.hang_up(connection)

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
            descriptor = descriptor_of(segments[0])
            connection = self._connection_of(descriptor)
            wire = self._wires[identity] = RouterWire(self, identity, descriptor, connection, self._frames_max)
            self._peers[descriptor] += 1
            self._receive(wire, proof_of(property_of(segments[0], "User-Id")), property_of(segments[0], "Peer-Address"))
        wire.arrive(segments[1:])

    def _connection_of(self, descriptor: int) -> Connection | None:
        """The connection of a peer's first message; None where it may have ended already, and the number be another one's."""
        connection = self._connections.find(descriptor)
        return None if any(time == 0 and descriptor == ended for _, time, ended in self._ends) else connection

    def _catch_up(self) -> None:
        while (segments := self._monitor.receive_nowait()) is not None:
            self._note(segments)

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
                self._note(await self._monitor.receive())

    def _note(self, segments: list[memoryview]) -> None:
        event, value = MONITOR_EVENT.unpack(segments[0])
        if event == zmq.EVENT_ACCEPTED:
            self._connections.accepted(value)
        elif event == zmq.EVENT_DISCONNECTED:
            self._connections.ended(value)
            for time, doubt_s in enumerate(DOUBTS_S):
                heapq.heappush(self._ends, (trio.current_time() + doubt_s, time, value))
            self._end_came.unpark()
        elif event & HANDSHAKE_FAILED:
            self._strangers += 1
            # Of a refused proof the authenticator tells, which knows more.
            if event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._reception.refuse(RefusalReason.HANDSHAKE, "", "", stranger(event))

    async def _look_into_ends(self) -> None:
        while True:
            while not self._ends:
                await self._end_came.park()
            if (wait_s := self._ends[0][0] - trio.current_time()) > 0:
                with trio.move_on_after(wait_s):
                    await self._end_came.park()  # an end that came since may be due before
                continue
            self.read_all()  # first what came over the connection: only then is it known whose it was
            _, time, descriptor = heapq.heappop(self._ends)
            self._look_into_end(descriptor, is_first=time == 0)

    def _look_into_end(self, descriptor: int, *, is_first: bool) -> None:
        # By now the number may be another connection's: then its link says a word more than it had to.
        for wire in self._wires.values():
            if wire.descriptor == descriptor:
                wire.tell(WireEvent.DOUBTFUL)
        if not is_first:
            return
        if self._peers[descriptor]:
            self._peers[descriptor] -= 1
        elif self._strangers:
            # libzmq tells a failed handshake and the end of its connection one right after the other.
            self._strangers -= 1
        elif not self._is_deaf:
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
