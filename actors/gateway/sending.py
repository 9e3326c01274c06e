"""How answers go out that are written piece by piece: headers, parts, server-sent events, and a client that leaves.

Owns the ASGI messages of such answers and the form of an event. It must never know what is in an event.
"""

from __future__ import annotations

import trio
from starlette.types import Receive, Send

from .openai_errors import ApiError

CLIENT_LEFT, COMPLETED = "client_disconnected", "completed"
"""How an answer can end without an error; an error's outcome is its code."""

Headers = list[tuple[bytes, bytes]]

EVENT_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class AnswerWriter:
    """One answer on its way. ``started``: its status and headers are out, so that an error can only be an event."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def start_events(self) -> None:
        """Send the head of a stream of events."""
        await self._start(200, EVENT_STREAM_HEADERS)

    async def start_body(self, body: bytes, status: int = 200, headers: Headers | None = None) -> None:
        """Send the head of an answer that is ``body``, JSON where ``headers`` do not say otherwise."""
        kind: Headers = [(b"content-type", b"application/json")] if headers is None else headers
        await self._start(status, [*kind, (b"content-length", str(len(body)).encode())])

    async def fail(self, error: ApiError) -> bytes:
        """What to end the answer with for ``error``: its body, or where the answer has started, an event that holds it."""
        body = error.body()
        if self.started:
            return event(body)
        await self.start_body(body, error.status, error.headers())
        return body

    async def part(self, part: bytes) -> None:
        """Send bytes that are not the last ones."""
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def last(self, part: bytes) -> None:
        """Send the last bytes."""
        await self._send({"type": "http.response.body", "body": part})

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def event(payload: bytes) -> bytes:
    """A server-sent event; ``payload`` is JSON, which has no line ends."""
    return b"data: " + payload + b"\n\n"


async def cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    """Cancel ``scope`` when the client leaves; reads what else it sends, and throws it away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
