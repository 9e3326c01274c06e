"""What every HTTP request passes before and after its route: id, key, errors as JSON, and a body of bounded size.

Plain ASGI (starlette's BaseHTTPMiddleware costs a quarter of the throughput). Owns `X-Request-Id`, authentication, and the
bounds on a request's body. It must never know what a route does.

Why a body that nobody read is read to its end (`_Body.drain`): hypercorn hands a body over through a queue of ten parts. An
answer that ends while that queue is full waits for the queue, and the queue's reader, being the application, is the one
that waits: the connection would hang for ever. And a socket closed with unread data resets, so that the client would never
see why it was refused.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import traceback
from dataclasses import dataclass

import trio
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..event_log import EventLog
from .openai_errors import ApiError, ErrorDetail, internal_error, refused

OPEN_PATHS = frozenset({"/health", "/ready"})
"""The only routes that need no key, for those who watch the process."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds of one request's body, and of what is read and thrown away so that a refused client sees the refusal."""

    body_bytes_max: int = 8 * 1024 * 1024
    body_s_max: float = 30.0
    unread_bytes_max: int = 64 * 1024 * 1024
    unread_s_max: float = 5.0


async def read_json_body(request: Request, limits: BodyLimits) -> bytes:
    """The request's body. Raises `ApiError`: 413 as soon as it is over the limit, 408 if too slow, 415 if not JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise refused(415, "unsupported_media_type", "Send JSON, with the header Content-Type: application/json.")
    if "content-encoding" in request.headers:
        raise refused(415, "unsupported_media_type", "Send the body as it is, without Content-Encoding.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body_bytes_max:
        raise _too_large(limits)
    with trio.move_on_after(limits.body_s_max):
        return await _gather(request.receive, limits)
    raise refused(408, "request_timeout", f"The body did not arrive within {limits.body_s_max:g} seconds.")


async def _gather(receive: Receive, limits: BodyLimits) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        body += message.get("body", b"")
        if len(body) > limits.body_bytes_max:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limits: BodyLimits) -> ApiError:
    return refused(413, "request_too_large", f"The body is over {limits.body_bytes_max} bytes.")


class ClientLeftError(Exception):
    """The client closed the connection before its request was complete; there is nobody to answer."""


class Boundary:
    """The outermost application."""

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...], limits: BodyLimits, log: EventLog) -> None:
        self._app = app
        self._key_digests = [_digest(key.encode()) for key in api_keys]
        self._limits = limits
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; whatever is raised becomes an answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        body = _Body(receive, self._limits)
        answer = _Answer(send, body, request_id)
        try:
            self._authenticate(scope)
            await self._app(scope, body.receive, answer.send)
        except ClientLeftError:
            return
        except ApiError as error:
            await answer.fail(error)
        except Exception as error:
            self._log.emit(
                "http_request_broke", http_request=request_id, error="".join(traceback.format_exception(error))
            )
            await answer.fail(internal_error())

    def _authenticate(self, scope: Scope) -> None:
        if not self._key_digests or scope["path"] in OPEN_PATHS:
            return
        headers = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        scheme, _, key = (headers[0] if len(headers) == 1 else b"").partition(b" ")
        presented = _digest(key.strip())
        # Digests of equal length, all of them compared: the time taken tells nothing of the keys.
        known = [hmac.compare_digest(presented, digest) for digest in self._key_digests]
        if scheme.lower() != b"bearer" or not any(known):
            sentence = "A valid API key is needed: send it as Authorization: Bearer KEY."
            raise ApiError(401, ErrorDetail(sentence, "invalid_request_error", None, "invalid_api_key"))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class _Body:
    """Knows whether the request's body was read to its end, and reads the rest of it where it was not."""

    def __init__(self, receive: Receive, limits: BodyLimits) -> None:
        self._receive = receive
        self._limits = limits
        self.ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.ended = True
        return message

    async def drain(self) -> None:
        """Throw the rest of the body away, within limits."""
        thrown_bytes = 0
        with trio.move_on_after(self._limits.unread_s_max):
            while not self.ended and thrown_bytes <= self._limits.unread_bytes_max:
                thrown_bytes += len((await self.receive()).get("body", b""))

    async def discard(self) -> None:
        """Throw away whatever comes, until cancelled: keeps hypercorn's queue moving while the answer ends."""
        while True:
            await self._receive()


class _Answer:
    """Adds the request's id to the answer, and lets the answer end only when the body has ended (or is given up)."""

    def __init__(self, send: Send, body: _Body, request_id: str) -> None:
        self._send = send
        self._body = body
        self._request_id = request_id
        self._started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._request_id.encode())]
        elif not self._body.ended and not message.get("more_body", False):
            await self._end_before_body(message)
            return
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Answer with ``error``; where an answer has begun, end it unfinished (its length or its frames tell)."""
        if self._started:
            return
        payload = error.body()
        headers = [*error.headers(), (b"content-length", str(len(payload)).encode())]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": payload})

    async def _end_before_body(self, message: Message) -> None:
        await self._send({**message, "more_body": True})
        await self._body.drain()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._body.discard)
            await self._send({"type": "http.response.body", "body": b""})
            nursery.cancel_scope.cancel()
