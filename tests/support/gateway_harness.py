"""A gateway on a real hypercorn server on loopback, over a toy token source, in the test's own trio loop."""

from __future__ import annotations

import io
import json
import socket
from contextlib import asynccontextmanager

import h11
import httpx
import trio
from flexpipe.actors.event_log import EventLog
from flexpipe.actors.gateway.app import GatewayConfig, make_app, serve
from flexpipe.actors.gateway.http_server import ServerLimits
from toy_language import ToyTextStream, ToyTokenizer
from toy_token_source import ToyTokenSource

MODEL = "toy"
HANG_S = 30
"""A test that waits this long hangs."""


class Harness:
    """What a test needs: ``source``, ``refactorer``, ``url``,
    ``shutdown``, ``stopped``, ``log_events()``, ``http()``, ``raw()``.
    """

    def __init__(self, source, refactorer, address, shutdown, stopped, log):
        self.source = source
        self.refactorer = refactorer
        self.host, port = address.rsplit(":", 1)
        self.port = int(port)
        self.url = f"http://{address}"
        self.shutdown = shutdown
        self.stopped = stopped
        self._log = log
        self._raw_streams = []

    def log_events(self, name):
        return [event for event in map(json.loads, self._log.getvalue().splitlines()) if event["event"] == name]

    def http(self, **options):
        return httpx.AsyncClient(base_url=self.url, timeout=HANG_S, trust_env=False, **options)

    async def raw(self, receive_buffer_bytes=None):
        """A raw connection; ``receive_buffer_bytes`` bounds what the kernel takes for a client that does not read."""
        client = trio.socket.socket()
        if receive_buffer_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            await client.connect((self.host, self.port))
        except OSError:
            client.close()
            raise
        self._raw_streams.append(trio.SocketStream(client))
        return self._raw_streams[-1]

    def close_raw(self):
        for stream in self._raw_streams:
            stream.socket.close()


@asynccontextmanager
async def running_gateway(source=None, config=None, limits=None, refactorer=None, decisions=None):
    source = source or ToyTokenSource()
    text = io.StringIO()
    log = EventLog(text)
    app = make_app(source, ToyTokenizer(), ToyTextStream, MODEL, config or GatewayConfig(), log, refactorer, decisions)
    shutdown, stopped = trio.Event(), trio.Event()

    async def run_server(*, task_status):
        await serve(app, "127.0.0.1", 0, shutdown, limits or ServerLimits(), log, task_status=task_status)
        stopped.set()

    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            for part in (source, refactorer):
                if hasattr(part, "run"):  # else it runs already
                    await nursery.start(part.run)
            (address,) = await nursery.start(run_server)
            harness = Harness(source, refactorer, address, shutdown, stopped, text)
            try:
                yield harness
            finally:
                harness.close_raw()
            nursery.cancel_scope.cancel()


def chat_body(text="hi", **fields):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def completion_body(prompt="hi", **fields):
    return {"model": MODEL, "prompt": prompt, "temperature": 0, **fields}


def raw_request(path, body, method="POST", headers=()):
    """One HTTP/1.1 request as bytes."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: test",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


async def read_response(stream):
    """Read one HTTP response from a raw stream to its end; return (status, headers, body)."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "test")]))
    connection.send(h11.EndOfMessage())
    status, headers, body = None, {}, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Response):
            status, headers = event.status_code, dict(event.headers)
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, headers, bytes(body)


async def read_until(stream, marker):
    """Read raw bytes until ``marker`` was seen; return them all."""
    received = bytearray()
    while marker not in received:
        part = await stream.receive_some(65536)
        assert part, f"the connection ended before {marker!r}: {bytes(received)!r}"
        received += part
    return bytes(received)


async def read_to_end(stream):
    """Read raw bytes until the other side closes."""
    received = bytearray()
    while part := await stream.receive_some(65536):
        received += part
    return bytes(received)


def frames_of(body):
    """The payloads of a body of server-sent events; JSON but for "[DONE]"."""
    payloads = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line]
    return [payload.decode() if payload == b"[DONE]" else json.loads(payload) for payload in payloads]
