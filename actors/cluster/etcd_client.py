"""Talks to etcd: its JSON gateway over HTTP, under trio, each call bounded in time and size, over as many endpoints as there are.

Owns connections, endpoints, login and the meaning of failures. Knows nothing of leaders and journals. A call that no endpoint
answered may have happened or not: whoever calls makes calls of which a second one does no harm, since the next endpoint is asked
the same.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec
import trio

from .cluster_store import ClusterStoreError, StoreRefusedError, StoreUnavailableError
from .etcd_messages import (
    Answer,
    Authenticate,
    Refusal,
    Request,
    Token,
    WatchAnswer,
    WatchCreate,
    WatchRequest,
    WatchResult,
)

ANSWER_BYTES_MAX = 8 * 1024 * 1024
"""Bytes of one answer, and of one line of a watch. etcd itself bounds a request by 1.5 MiB."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")

_NOT_FOUND, _FAILED_PRECONDITION, _UNAUTHENTICATED, _RESOURCE_EXHAUSTED = 5, 9, 16, 8
_PASSING = frozenset({1, 2, 4, 8, 10, 13, 14, 15})
"""gRPC's codes of failures that may pass: cancelled, unknown, deadline, exhausted, aborted, internal, unavailable, data loss."""

A = TypeVar("A", bound=Answer)


class EtcdNotFoundError(ClusterStoreError):
    """What was named is not there, a lease for example."""


class EtcdPreconditionError(ClusterStoreError):
    """It is not as it would have to be, a lease of that number exists for example."""


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """How to reach etcd. ``endpoints`` are URLs, asked in turn; ``answer_s_max`` is how long one may take for an answer.

    With a ``user`` there is a login. ``ca_file`` says whom to believe instead of the system's list; ``cert_file`` and ``key_file``
    are shown to etcd. Plain http leads to loopback only, unless ``insecure``.
    """

    endpoints: tuple[str, ...]
    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure: bool = False
    answer_s_max: float = 0.7

    def check(self) -> None:
        """Raise `StoreRefusedError` where that cannot work, or is not safe."""
        if not self.endpoints:
            raise StoreRefusedError("no etcd endpoint is named: name one, such as https://10.0.0.1:2379")
        for endpoint in self.endpoints:
            url = urlsplit(endpoint)
            if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/") or url.username:
                raise StoreRefusedError(
                    f"{url.scheme}://{url.hostname or ''} is no etcd endpoint: write https://HOST:PORT"
                )
            if url.scheme == "http" and url.hostname not in LOOPBACK and not self.insecure:
                raise StoreRefusedError(
                    f"{endpoint} would carry who leads, and passwords, in the clear: use https, or say that it may be insecure"
                )
        if (self.cert_file is None) != (self.key_file is None):
            raise StoreRefusedError("a certificate to show to etcd needs its key, and a key its certificate")


class EtcdClient:
    """See the module. Every call raises `StoreUnavailableError`, `StoreRefusedError`; any number of tasks may call."""

    def __init__(self, settings: EtcdSettings, http: httpx.AsyncClient) -> None:
        self._settings = settings
        self._http = http
        self._current = 0
        self._token = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: EtcdSettings) -> AsyncIterator[Self]:
        """A client; nothing is sent yet. Raises `StoreRefusedError` where the settings cannot be."""
        settings.check()
        verify = await trio.to_thread.run_sync(_tls_context, settings)
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=16)
        # Calls are bounded as a whole, and a watch may be silent for ever. Connecting, in two halves, is bounded by httpx: it
        # leaves a handshake that is cancelled to the garbage collector.
        timeout = httpx.Timeout(None, connect=settings.answer_s_max / 2)
        # Proxies named in the environment are for the world outside.
        async with httpx.AsyncClient(verify=verify, limits=limits, timeout=timeout, trust_env=False) as http:
            yield cls(settings, http)

    @property
    def endpoint(self) -> str:
        """The endpoint that is asked first: the last that answered."""
        return self._settings.endpoints[self._current]

    async def call(self, path: str, request: Request, kind: type[A], *, endpoint: str = "") -> A:
        """Ask the endpoints in turn until one answers, or ``endpoint`` alone.

        Also raises `EtcdNotFoundError` and `EtcdPreconditionError`.
        """
        if endpoint:
            return await self._ask(endpoint, path, request, kind)
        failures = []
        for _ in self._settings.endpoints:
            first = self._current
            try:
                return await self._ask(self.endpoint, path, request, kind)
            except StoreUnavailableError as error:
                failures.append(str(error))
                if self._current == first:  # another task may have turned to the next already
                    self._current = (first + 1) % len(self._settings.endpoints)
        raise StoreUnavailableError("; ".join(failures))

    async def watch(self, key: bytes, start_revision: int, endpoint: str) -> AsyncGenerator[WatchResult, None]:
        """The changes of ``key`` from ``start_revision`` on, without end; close it (`aclosing`).

        A silent ``endpoint`` looks as one where nothing changes: ask it something from time to time.
        """
        body = WatchRequest(WatchCreate(key, start_revision))
        async with self._sent(endpoint, "watch", body) as parts, aclosing(_lines(parts)) as lines:
            async for line in lines:
                result = _decoded(endpoint, line, WatchAnswer).result
                if result.canceled:
                    raise StoreUnavailableError(
                        f"{endpoint} ended the watch: {result.cancel_reason or 'it did not say why'}"
                    )
                yield result

    async def _ask(self, endpoint: str, path: str, request: Request, kind: type[A]) -> A:
        with trio.move_on_after(self._settings.answer_s_max):
            body = await self._body(endpoint, path, request)
            refusal = _refusal(endpoint, body)
            if refusal is not None and refusal.code == _UNAUTHENTICATED and self._settings.user:
                self._token = ""  # it ran out, or etcd started anew
                body = await self._body(endpoint, path, request)
                refusal = _refusal(endpoint, body)
            if refusal is not None:
                raise _error(endpoint, refusal)
            return _decoded(endpoint, body, kind)
        raise StoreUnavailableError(f"{endpoint} did not answer within {self._settings.answer_s_max:g} s")

    async def _body(self, endpoint: str, path: str, request: Request) -> bytes:
        if self._settings.user and not self._token and not isinstance(request, Authenticate):
            login = Authenticate(self._settings.user, self._settings.password)
            body = await self._body(endpoint, "auth/authenticate", login)
            if (refusal := _refusal(endpoint, body)) is not None:
                raise _error(endpoint, refusal)
            self._token = _decoded(endpoint, body, Token).token
        async with self._sent(endpoint, path, request) as parts:
            answer = bytearray()
            async for part in parts:
                answer += part
                if len(answer) > ANSWER_BYTES_MAX:
                    raise StoreUnavailableError(f"{endpoint} sent an answer of more than {ANSWER_BYTES_MAX} bytes")
            return bytes(answer)

    @asynccontextmanager
    async def _sent(self, endpoint: str, path: str, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send ``request``; the answer's parts."""
        body = msgspec.json.encode(request)
        headers = {
            "Host": urlsplit(endpoint).netloc,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        if self._token:
            headers["Authorization"] = self._token
        url = f"{endpoint.rstrip('/')}/v3/{path}"
        try:
            response = await self._http.send(
                httpx.Request("POST", url, headers=headers, stream=_Body(body)), stream=True
            )
            parts = response.aiter_bytes()
            try:
                yield parts
            finally:
                await response.aclose()
                # Of a closed response httpx's nested generators come to their end at once; left to the garbage collector
                # they would make trio warn.
                with suppress(StopAsyncIteration, httpx.HTTPError, httpx.StreamError):
                    while True:
                        await anext(parts)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise StoreUnavailableError(
                f"{endpoint} cannot be reached: {str(error) or type(error).__name__}"
            ) from error


def _tls_context(settings: EtcdSettings) -> ssl.SSLContext | bool:
    if not any(endpoint.startswith("https") for endpoint in settings.endpoints):
        return False  # no list of authorities need be read
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise StoreRefusedError(f"the certificates for etcd cannot be read: {error}") from error
    return context


class _Body(httpx.AsyncByteStream):
    """A request's bytes. httpx's own are an async generator, which a cancelled call leaves to the garbage collector."""

    def __init__(self, body: bytes) -> None:
        self._left = [body]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


async def _lines(parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > ANSWER_BYTES_MAX:
            raise StoreUnavailableError(f"a line of a watch has more than {ANSWER_BYTES_MAX} bytes")
    raise StoreUnavailableError("etcd ended the watch")


def _decoded(endpoint: str, body: bytes, kind: type[A]) -> A:
    try:
        return msgspec.json.decode(body, type=kind, strict=False)
    except msgspec.MsgspecError as error:
        raise StoreUnavailableError(f"{endpoint} does not answer as etcd does: {error}") from error


class _Failed(Answer, frozen=True):
    """An answer that may be a refusal: its own fields, or under ``error`` in a stream."""

    error: str | Refusal = ""
    message: str = ""
    code: int = 0


def _refusal(endpoint: str, body: bytes) -> Refusal | None:
    failed = _decoded(endpoint, body, _Failed)
    if isinstance(failed.error, Refusal):
        return Refusal(failed.error.message, failed.error.code)
    return Refusal(failed.message or failed.error, failed.code) if failed.error else None


def _error(endpoint: str, refusal: Refusal) -> ClusterStoreError:
    sentence = f"{endpoint} says: {refusal.message}"
    if refusal.code == _NOT_FOUND:
        return EtcdNotFoundError(sentence)
    if refusal.code == _FAILED_PRECONDITION:
        return EtcdPreconditionError(sentence)
    is_full = refusal.code == _RESOURCE_EXHAUSTED and "space" in refusal.message
    if refusal.code in _PASSING and not is_full:
        return StoreUnavailableError(sentence)
    return StoreRefusedError(sentence)
