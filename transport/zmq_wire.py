"""One end of a link over one ZeroMQ DEALER socket: its frames, its connection events, its socket file.

Owns what the protocol (`link_machine`) and the waiting (`link`) must not know about ZeroMQ. A disconnect is the end of a link
although ZeroMQ would reconnect: it cannot say which messages died with the connection. The socket file of an ipc link is made and
removed here, not by libzmq (whose removal comes some time after the close and may hit a successor's file); it is gone once both
ends have met, so nothing stays behind even after a kill -9.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path

import trio
import zmq

from .address import Address, AddressError, IpcAddress, MemoryAddress, TcpAddress
from .frames import ENVELOPE_BYTES_MAX
from .interface import LinkLimits
from .link import WireEvent
from .link_machine import Segments
from .seal import SEALED_BYTES_EXTRA
from .unix_socket import listen_unix
from .zmq_socket import ZmqSocket, descriptor_of

CONTROL_FRAMES_MAX = 64
"""Room in ZeroMQ's queues beyond the messages that have credit; an honest peer has a handful of control frames under way."""
RECONNECT_INTERVAL_MS = 20
"""How often the connecting end looks for a binding end that is not there yet."""
HANDSHAKE_INTERVAL_MS = 5000
"""How long a connection may take to say what ZeroMQ must hear first; then it is ended."""
GOODBYE_LINGER_MS = 500
"""How long frames on their way may take to leave after a close. Bounds the end of a transport whose peer hangs."""

HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | HANDSHAKE_FAILED
MONITOR_EVENT = struct.Struct("=HI")


def configure(raw: zmq.Socket[bytes], limits: LinkLimits) -> None:
    """Bound a socket's queues and messages."""
    raw.setsockopt(zmq.LINGER, 0)
    raw.setsockopt(zmq.SNDHWM, limits.credit_messages + CONTROL_FRAMES_MAX)
    raw.setsockopt(zmq.RCVHWM, limits.credit_messages + CONTROL_FRAMES_MAX)
    raw.setsockopt(zmq.MAXMSGSIZE, max(limits.message_bytes_max, ENVELOPE_BYTES_MAX) + SEALED_BYTES_EXTRA)
    raw.setsockopt(zmq.RECONNECT_IVL, RECONNECT_INTERVAL_MS)
    raw.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_INTERVAL_MS)


def bind(raw: zmq.Socket[bytes], address: Address) -> Path | None:
    """Bind a socket; the socket file, for the caller to remove. Raises `AddressError`."""
    path = None
    if isinstance(address, IpcAddress):
        listener = listen_unix(address, socket.SOCK_STREAM)
        path = Path(address.path)
        raw.setsockopt(zmq.USE_FD, listener.detach())
    attach(raw, raw.bind, address)
    return path


def attach(raw: zmq.Socket[bytes], how: Callable[[str], object], address: Address) -> None:
    """Bind or connect a socket. Raises `AddressError`."""
    if isinstance(address, MemoryAddress):
        raise AddressError(f"{address} joins two ends inside one process: between processes use ipc or tcp")
    raw.setsockopt(zmq.IPV6, isinstance(address, TcpAddress) and ":" in address.host)
    try:
        how(f"tcp://{address.place}" if isinstance(address, TcpAddress) else str(address))
    except zmq.ZMQError as error:
        raise AddressError(f"{address} cannot be used: {error.strerror}") from error


class ZmqWire:
    """A `Wire` over one DEALER socket, which the caller has made and attaches through `bind` or `connect`.

    ``on_stranger`` is called for each connection to a binding end that fails ZeroMQ's handshake, with what is known of it.
    """

    def __init__(self, raw: zmq.Socket[bytes], on_stranger: Callable[[str], None]) -> None:
        self._raw = raw
        # Before the socket is attached: an event that nobody watches is not kept.
        self._monitor = ZmqSocket(raw.get_monitor_socket(EVENTS))
        self._socket = ZmqSocket(raw)
        self._on_stranger = on_stranger
        self._binds = False
        self._socket_file: Path | None = None
        self._strangers = 0
        self._connections = 0
        self._peer_descriptor: int | None = None

    def bind(self, address: Address) -> None:
        """Take the binding end of ``address``. Raises `AddressError`."""
        self._binds = True
        self._socket_file = bind(self._raw, address)

    def connect(self, address: Address) -> None:
        """Take the connecting end of ``address``. Raises `AddressError`."""
        attach(self._raw, self._raw.connect, address)

    def send_nowait(self, segments: Segments) -> bool:
        """See `Wire`."""
        return self._socket.send_nowait(segments)

    def receive_nowait(self) -> list[memoryview] | None:
        """See `Wire`."""
        segments = self._socket.receive_nowait()
        if self._peer_descriptor is None and segments is not None:
            self._peer_descriptor = descriptor_of(segments[0])
        return segments

    async def wait_receivable(self) -> None:
        """See `Wire`."""
        await self._socket.wait_receivable()

    async def next_event(self) -> WireEvent:
        """See `Wire`. A connection that fails ZeroMQ's handshake (a port scan) is nobody's peer and not told."""
        while True:
            event, value = MONITOR_EVENT.unpack((await self._monitor.receive())[0])
            if event & HANDSHAKE_FAILED:
                if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and not self._binds:
                    return WireEvent.REFUSED
                self._strangers += 1
                self._report(event)
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connections += 1
                return WireEvent.CONNECTED
            elif self._is_peer(value):
                self._connections -= 1
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

    def _is_peer(self, descriptor: int) -> bool:
        """Whether the connection that has ended, of ``descriptor``, was the peer's, and not one whose handshake failed."""
        if descriptor == self._peer_descriptor:
            return True
        if self._strangers:
            # libzmq tells a failed handshake and the end of its connection one right after the other.
            self._strangers -= 1
            return False
        if self._peer_descriptor is None and self._connections:
            return True
        self._report(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)  # libzmq is silent on some: ZMTP 1 where it wants a proof
        return False

    def _report(self, event: int) -> None:
        # Of a refused proof the authenticator tells, which knows more.
        if self._binds and event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._on_stranger(stranger(event))


def stranger(event: int) -> str:
    """What a failed handshake says, in words."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return "what it said was not this socket's handshake"
    return "it left, or stayed silent, before the handshake was over"
