"""Serves an ASGI application on hypercorn's trio worker, with bounds on connections, idleness and slow readers.

Owns the listening sockets and every connection. It must never know what the application does.

`hypercorn.trio.serve` is not used, for three things it does not offer: one connection's unforeseen exception must not end
all others; a client that never reads must not keep the server from stopping (hypercorn shields its writes from
cancellation, without a limit); and the number of connections must be bounded.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import msgspec
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import LifespanState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

from ..event_log import EventLog
from .openai_errors import ErrorBody, ErrorDetail

SEND_PART_BYTES = 64 * 1024
BUSY_S_MAX = 1.0
_BUSY_ERROR = ErrorDetail("Too many connections.", "server_error", None, "connection_limit")
_BUSY_BODY = msgspec.json.encode(ErrorBody(_BUSY_ERROR))
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_BUSY_BODY), _BUSY_BODY)
)


class ListenError(Exception):
    """The host and port cannot be listened on; the sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of the HTTP server.

    ``idle_s_max``: a connection without a complete request head, a new one or one kept alive, is closed after it.
    ``send_s_max``: a client that takes longer for 64 KiB of an answer is cut off.
    ``drain_s_max``: how long generations may go on after the order to stop; ``close_s_max``: how long answers may then
    take to leave.
    """

    connections_max: int = 4096
    backlog: int = 512
    head_bytes_max: int = 16 * 1024
    idle_s_max: float = 20.0
    send_s_max: float = 30.0
    drain_s_max: float = 30.0
    close_s_max: float = 2.0


class HttpServer:
    """One application on one host and port."""

    def __init__(self, app: ASGIApp, limits: ServerLimits, log: EventLog) -> None:
        self._app = wrap_app(cast("Any", app), 0, "asgi")
        self._limits = limits
        self._log = log
        self._context = WorkerContext(None)
        self._connections: set[BoundedStream] = set()
        self._one_ended = trio.Event()
        self._config = Config()
        self._config.errorlog = None
        self._config.include_server_header = False
        self._config.keep_alive_timeout = limits.idle_s_max
        self._config.h11_max_incomplete_size = limits.head_bytes_max

    async def run(
        self,
        host: str,
        port: int,
        shutdown: trio.Event,
        begin_drain: Callable[[float], None],
        *,
        task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until ``shutdown``; then accept nothing, let answers finish within limits, and close everything.

        Reports the addresses as "host:port" when it listens. Raises `ListenError` where it cannot.
        """
        try:
            listeners = await trio.open_tcp_listeners(port, host=host, backlog=self._limits.backlog)
        except OSError as error:
            raise ListenError(
                f"cannot listen on {host}:{port} ({error.strerror or error}); stop what uses it, or choose another port"
            ) from error
        addresses = ["{}:{}".format(*listener.socket.getsockname()[:2]) for listener in listeners]
        async with trio.open_nursery() as connections:
            try:
                await self._accept(listeners, connections, shutdown, lambda: task_status.started(addresses))
                self._log.emit("gateway_draining", drain_s_max=self._limits.drain_s_max)
                begin_drain(self._limits.drain_s_max)
                await self._let_connections_end()
            finally:
                for connection in self._connections:
                    connection.abort()
                connections.cancel_scope.cancel()

    async def _accept(
        self,
        listeners: list[trio.SocketListener],
        connections: trio.Nursery,
        shutdown: trio.Event,
        listening: Callable[[], None],
    ) -> None:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(partial(trio.serve_listeners, self._serve, listeners, handler_nursery=connections))
            listening()
            await shutdown.wait()
            accepting.cancel_scope.cancel()

    async def _let_connections_end(self) -> None:
        await self._context.terminated.set()
        with trio.move_on_after(self._limits.drain_s_max + self._limits.close_s_max):
            while self._connections:
                self._one_ended = trio.Event()
                await self._one_ended.wait()
        self._log.emit("gateway_closed", cut_connections=len(self._connections))

    async def _serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection; nothing it raises reaches the others."""
        if len(self._connections) >= self._limits.connections_max:
            await _turn_away(stream)
            return
        bounded = BoundedStream(stream, self._limits.send_s_max)
        self._connections.add(bounded)
        try:
            # The cast: hypercorn names trio's TLS stream, and uses only what `BoundedStream` has.
            await TCPServer(self._app, self._config, self._context, LifespanState({}), cast("Any", bounded))
        except Exception as error:
            self._log.emit("connection_broke", error="".join(traceback.format_exception(error)))
        finally:
            bounded.abort()
            self._connections.discard(bounded)
            self._one_ended.set()


class BoundedStream:
    """A socket's stream that cuts off a client who does not read, and can be closed from outside at once."""

    def __init__(self, stream: trio.SocketStream, send_s_max: float) -> None:
        self._stream = stream
        self._send_s_max = send_s_max
        self.socket = stream.socket

    async def send_all(self, data: bytes) -> None:
        """Send, part by part. Raises `trio.BrokenResourceError` where a part takes longer than ``send_s_max``."""
        view = memoryview(data)
        for start in range(0, len(view), SEND_PART_BYTES):
            with trio.move_on_after(self._send_s_max) as scope:
                await self._stream.send_all(view[start : start + SEND_PART_BYTES])
            if scope.cancelled_caught:
                self.abort()
                raise trio.BrokenResourceError(f"the client took over {self._send_s_max:g} s to read")

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        """Receive; empty at the end."""
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        """Say that no more comes."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close."""
        await self._stream.aclose()

    def abort(self) -> None:
        """Close now: whoever sends or receives gets `trio.ClosedResourceError`."""
        self.socket.close()


async def _turn_away(stream: trio.SocketStream) -> None:
    with trio.move_on_after(BUSY_S_MAX), suppress(trio.BrokenResourceError):
        await stream.send_all(BUSY)
    await trio.aclose_forcefully(stream)
