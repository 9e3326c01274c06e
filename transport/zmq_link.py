"""Links between processes: one ZeroMQ DEALER pair per link, its connection events, its socket file.

Owns everything about ZeroMQ that the protocol (`link_machine`) and the waiting (`link`) must not know. Each link has its own pair
of sockets, so nothing is routed and nothing is dropped silently. A disconnect is the end of a link although ZeroMQ would reconnect:
it cannot say which messages died with the connection. The socket file of an ipc link is made and removed here, not by libzmq
(whose removal comes some time after the close and may hit a successor's file); it is gone once both ends have met, so nothing
stays behind even after a kill -9.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import zmq

from .address import Address, AddressError, IpcAddress, MemoryAddress, TcpAddress, parse_address
from .frames import ENVELOPE_BYTES_MAX
from .interface import DEFAULT_LINK_LIMITS, LinkLimits
from .link import WireEvent, WireLink
from .link_machine import LinkMachine, Segments
from .unix_socket import listen_unix
from .zmq_socket import ZmqSocket

CONTROL_FRAMES_MAX = 64
"""Room in ZeroMQ's queues beyond the messages that have credit; an honest peer has a handful of control frames under way."""
RECONNECT_INTERVAL_MS = 20
"""How often the connecting end looks for a binding end that is not there yet."""
GOODBYE_LINGER_MS = 500
"""How long frames on their way may take to leave after a close. Bounds the end of a transport whose peer hangs."""

_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _HANDSHAKE_FAILED
_MONITOR_EVENT = struct.Struct("=HI")


class ZmqWire:
    """A `Wire` over one DEALER socket, which the caller has made and attaches through `bind` or `connect`."""

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self._raw = raw
        # Before the socket is attached: an event that nobody watches is not kept.
        self._monitor = ZmqSocket(raw.get_monitor_socket(_EVENTS))
        self._socket = ZmqSocket(raw)
        self._socket_file: Path | None = None
        self._strangers = 0

    def bind(self, address: Address) -> None:
        """Take the binding end of ``address``. Raises `AddressError`."""
        if isinstance(address, IpcAddress):
            listener = listen_unix(address, socket.SOCK_STREAM)
            self._socket_file = Path(address.path)
            self._raw.setsockopt(zmq.USE_FD, listener.detach())
        elif isinstance(address, TcpAddress) and not address.is_loopback:
            raise AddressError(
                f"{address} reaches beyond this host, and links are not encrypted: bind to 127.0.0.1 or use ipc"
            )
        self._attach(self._raw.bind, address)

    def connect(self, address: Address) -> None:
        """Take the connecting end of ``address``. Raises `AddressError`."""
        self._attach(self._raw.connect, address)

    def send_nowait(self, segments: Segments) -> bool:
        """See `Wire`."""
        return self._socket.send_nowait(segments)

    def receive_nowait(self) -> list[memoryview] | None:
        """See `Wire`."""
        return self._socket.receive_nowait()

    async def wait_receivable(self) -> None:
        """See `Wire`."""
        await self._socket.wait_receivable()

    async def next_event(self) -> WireEvent:
        """See `Wire`. A connection that fails ZeroMQ's handshake (a port scan) is nobody's peer and not told."""
        while True:
            event, _value = _MONITOR_EVENT.unpack((await self._monitor.receive())[0])
            if event & _HANDSHAKE_FAILED:
                self._strangers += 1
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return WireEvent.CONNECTED
            elif self._strangers:
                # libzmq tells a failed handshake and the end of its connection one right after the other.
                self._strangers -= 1
            else:
                return WireEvent.DISCONNECTED

    def settle(self) -> None:
        """See `Wire`: remove the socket file, so that nobody else can connect."""
        if self._socket_file is not None:
            self._socket_file.unlink(missing_ok=True)
            self._socket_file = None

    async def aclose(self, *, flush: bool) -> None:
        """See `Wire`. Returns at once; libzmq flushes in the background for at most `GOODBYE_LINGER_MS`."""
        self.close(GOODBYE_LINGER_MS if flush else 0)
        await trio.lowlevel.checkpoint()

    def close(self, linger_ms: int) -> None:
        """Release everything; frames on their way get ``linger_ms`` to leave."""
        self.settle()
        self._raw.disable_monitor()
        self._monitor.close()
        self._socket.close(linger_ms)

    def _attach(self, attach: Callable[[str], object], address: Address) -> None:
        if isinstance(address, MemoryAddress):
            raise AddressError(f"{address} joins two ends inside one process: between processes use ipc or tcp")
        self._raw.setsockopt(zmq.IPV6, isinstance(address, TcpAddress) and ":" in address.host)
        try:
            attach(str(address))
        except zmq.ZMQError as error:
            raise AddressError(f"{address} cannot be used: {error.strerror}") from error


class ZmqTransport:
    """Makes links over ZeroMQ. Use as ``async with ZmqTransport.open() as transport``; leaving it closes all its links."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], nursery: trio.Nursery) -> None:
        self._context = context
        self._nursery = nursery

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[ZmqTransport]:
        """A transport with its own I/O thread. Pin the process to its cores before, if at all: the thread inherits them."""
        context = zmq.Context()
        try:
            async with trio.open_nursery() as nursery:
                try:
                    yield cls(context, nursery)
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(context.term)

    async def bind(self, address: str, *, name: str, limits: LinkLimits = DEFAULT_LINK_LIMITS) -> WireLink:
        """See `Transport.bind`. Raises `AddressError` where the address is in use or not allowed.

        tcp binds to loopback only: a link is not encrypted. An ipc file is readable and writable by its owner only, and the
        file a killed process left behind is taken over.
        """
        return await self._start(ZmqWire.bind, address, name, limits)

    async def connect(self, address: str, *, name: str, limits: LinkLimits = DEFAULT_LINK_LIMITS) -> WireLink:
        """See `Transport.connect`. Raises `AddressError` where the address cannot be used at all."""
        return await self._start(ZmqWire.connect, address, name, limits)

    async def _start(
        self, attach: Callable[[ZmqWire, Address], None], address: str, name: str, limits: LinkLimits
    ) -> WireLink:
        parsed = parse_address(address)
        machine = LinkMachine(name, limits, secrets.randbits(64), trio.current_time())
        wire = ZmqWire(self._socket(limits))
        try:
            attach(wire, parsed)
        except BaseException:
            wire.close(0)
            raise
        link = WireLink(name, machine, wire)
        self._nursery.start_soon(link.tend, name=f"tend {name}")
        # Shielded: a cancel here would leave the caller without the link that is already running.
        await trio.lowlevel.cancel_shielded_checkpoint()
        return link

    def _socket(self, limits: LinkLimits) -> zmq.Socket[bytes]:
        raw = self._context.socket(zmq.DEALER)
        raw.setsockopt(zmq.LINGER, 0)
        raw.setsockopt(zmq.SNDHWM, limits.credit_messages + CONTROL_FRAMES_MAX)
        raw.setsockopt(zmq.RCVHWM, limits.credit_messages + CONTROL_FRAMES_MAX)
        raw.setsockopt(zmq.MAXMSGSIZE, max(limits.message_bytes_max, ENVELOPE_BYTES_MAX))
        raw.setsockopt(zmq.RECONNECT_IVL, RECONNECT_INTERVAL_MS)
        return raw
