"""The SDK: `Client` and `AsyncClient` (under trio and asyncio alike) for a FlexPipe server.

For what OpenAI's API has beyond one text per request (`n`, log-probabilities), use the `openai` package with
``base_url=f"{url}/v1"``. Light: no torch, no numba, no server code.

    with flexpipe.Client() as client:
        for text in client.chat("Tell me a story.", stream=True, max_tokens=100):
            print(text, end="", flush=True)
        print(client.refactor(stages=4).wait())
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload
from urllib.parse import quote

import httpx
import msgspec

from .client_errors import NotFoundError, error_of_answer
from .client_messages import (
    Completion,
    GenerationOptions,
    Message,
    Model,
    Readiness,
    RefactorOptions,
    chat_body,
    completion_body,
    read_completion,
    read_decisions,
    read_models,
    read_nodes,
    read_readiness,
    refactor_body,
)
from .client_streams import AsyncRefactoring, AsyncTextStream, Refactoring, TextStream, connection_errors

URL_DEFAULT = "http://127.0.0.1:8000"
CONNECT_S_MAX = 5.0
SILENCE_S_MAX = 600.0
"""How long an answer, or the next part of a stream, may take: a queue and a long prompt come before the first token."""

CONNECTIONS = httpx.Limits(max_connections=None, max_keepalive_connections=32)
"""As many as there are requests under way: the server says when it is too many, and a queue here would tell nobody."""

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
REFACTOR, DECISIONS = "/flexpipe/v1/refactor", "/flexpipe/v1/decisions"
NODES = "/flexpipe/v1/nodes"


class Client:
    """A connection pool to one server. Thread-safe; a context manager.

    Every method raises `FlexPipeError` (see `client_errors` for its kinds). ``model`` None means the served one.
    """

    def __init__(
        self,
        url: str = URL_DEFAULT,
        *,
        api_key: str | None = None,
        model: str | None = None,
        silence_s_max: float = SILENCE_S_MAX,
    ) -> None:
        self._http = httpx.Client(
            base_url=url, headers=_headers(api_key), timeout=_timeout(silence_s_max), limits=CONNECTIONS
        )
        self._model = model

    @overload
    def chat(
        self, messages: str | Sequence[Message], *, stream: Literal[False] = ..., **options: Unpack[GenerationOptions]
    ) -> Completion: ...

    @overload
    def chat(
        self, messages: str | Sequence[Message], *, stream: Literal[True], **options: Unpack[GenerationOptions]
    ) -> TextStream: ...

    def chat(
        self, messages: str | Sequence[Message], *, stream: bool = False, **options: Unpack[GenerationOptions]
    ) -> Completion | TextStream:
        """Answer a conversation (a text alone is one message of the user)."""
        body = chat_body(self._served_model(), messages, options, stream=stream)
        return TextStream(self._open(CHAT, body)) if stream else read_completion(self._post(CHAT, body))

    @overload
    def complete(
        self, prompt: str | Sequence[int], *, stream: Literal[False] = ..., **options: Unpack[GenerationOptions]
    ) -> Completion: ...

    @overload
    def complete(
        self, prompt: str | Sequence[int], *, stream: Literal[True], **options: Unpack[GenerationOptions]
    ) -> TextStream: ...

    def complete(
        self, prompt: str | Sequence[int], *, stream: bool = False, **options: Unpack[GenerationOptions]
    ) -> Completion | TextStream:
        """Continue a text or token ids, without a chat template."""
        body = completion_body(self._served_model(), prompt, options, stream=stream)
        return TextStream(self._open(COMPLETIONS, body)) if stream else read_completion(self._post(COMPLETIONS, body))

    def refactor(self, **options: Unpack[RefactorOptions]) -> Refactoring:
        """Change the pipeline while it serves; iterate for progress, or `wait` for the report. Raises `RefactorError`."""
        return Refactoring(self._open(REFACTOR, refactor_body(options)))

    def models(self) -> list[Model]:
        """The served models."""
        return read_models(self._get("/v1/models"))

    def status(self) -> dict[str, Any]:
        """What `flexpipe ps --json` shows: stages, epoch, queue lengths."""
        return msgspec.json.decode(self._get("/flexpipe/v1/status"), type=dict[str, Any])

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes of the cluster, as `flexpipe nodes --json` shows them. Raises `NotFoundError` on a server of one host."""
        return read_nodes(self._get(NODES))

    def drain(self, node: str) -> None:
        """Have everything moved off a node, whose daemon stops then; returns once that has begun. Raises `NodeRefusedError`."""
        self._post(f"{NODES}/{quote(node, safe='')}/drain", b"{}")

    def decisions(self, last: int = 20) -> list[dict[str, Any]]:
        """What the autopilot decided, the ``last`` decisions, oldest first. Raises `NotFoundError` without an autopilot."""
        return read_decisions(self._get(f"{DECISIONS}?last={last}"))

    def ready(self) -> Readiness:
        """Whether the server can serve now. Raises `ConnectionFailedError` where there is none."""
        with connection_errors():
            return read_readiness(_readable(self._http.get("/ready"), also=503))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _served_model(self) -> str:
        if self._model is None:
            self._model = _first(self.models())
        return self._model

    def _get(self, path: str) -> bytes:
        with connection_errors():
            return _readable(self._http.get(path))

    def _post(self, path: str, body: bytes) -> bytes:
        with connection_errors():
            return _readable(self._http.post(path, content=body))

    def _open(self, path: str, body: bytes) -> httpx.Response:
        with connection_errors():
            response = self._http.send(self._http.build_request("POST", path, content=body), stream=True)
            if not response.is_success:
                response.read()
                response.close()
                _readable(response)
        return response


class AsyncClient:
    """`Client` for trio and asyncio; an asynchronous context manager."""

    def __init__(
        self,
        url: str = URL_DEFAULT,
        *,
        api_key: str | None = None,
        model: str | None = None,
        silence_s_max: float = SILENCE_S_MAX,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers=_headers(api_key), timeout=_timeout(silence_s_max), limits=CONNECTIONS
        )
        self._model = model

    @overload
    async def chat(
        self, messages: str | Sequence[Message], *, stream: Literal[False] = ..., **options: Unpack[GenerationOptions]
    ) -> Completion: ...

    @overload
    async def chat(
        self, messages: str | Sequence[Message], *, stream: Literal[True], **options: Unpack[GenerationOptions]
    ) -> AsyncTextStream: ...

    async def chat(
        self, messages: str | Sequence[Message], *, stream: bool = False, **options: Unpack[GenerationOptions]
    ) -> Completion | AsyncTextStream:
        """Answer a conversation (a text alone is one message of the user)."""
        body = chat_body(await self._served_model(), messages, options, stream=stream)
        if stream:
            return AsyncTextStream(await self._open(CHAT, body))
        return read_completion(await self._post(CHAT, body))

    @overload
    async def complete(
        self, prompt: str | Sequence[int], *, stream: Literal[False] = ..., **options: Unpack[GenerationOptions]
    ) -> Completion: ...

    @overload
    async def complete(
        self, prompt: str | Sequence[int], *, stream: Literal[True], **options: Unpack[GenerationOptions]
    ) -> AsyncTextStream: ...

    async def complete(
        self, prompt: str | Sequence[int], *, stream: bool = False, **options: Unpack[GenerationOptions]
    ) -> Completion | AsyncTextStream:
        """Continue a text or token ids, without a chat template."""
        body = completion_body(await self._served_model(), prompt, options, stream=stream)
        if stream:
            return AsyncTextStream(await self._open(COMPLETIONS, body))
        return read_completion(await self._post(COMPLETIONS, body))

    async def refactor(self, **options: Unpack[RefactorOptions]) -> AsyncRefactoring:
        """Change the pipeline while it serves; iterate for progress, or `wait` for the report. Raises `RefactorError`."""
        return AsyncRefactoring(await self._open(REFACTOR, refactor_body(options)))

    async def models(self) -> list[Model]:
        """The served models."""
        return read_models(await self._get("/v1/models"))

    async def status(self) -> dict[str, Any]:
        """What `flexpipe ps --json` shows: stages, epoch, queue lengths."""
        return msgspec.json.decode(await self._get("/flexpipe/v1/status"), type=dict[str, Any])

    async def nodes(self) -> list[dict[str, Any]]:
        """See `Client.nodes`."""
        return read_nodes(await self._get(NODES))

    async def drain(self, node: str) -> None:
        """See `Client.drain`."""
        await self._post(f"{NODES}/{quote(node, safe='')}/drain", b"{}")

    async def decisions(self, last: int = 20) -> list[dict[str, Any]]:
        """See `Client.decisions`."""
        return read_decisions(await self._get(f"{DECISIONS}?last={last}"))

    async def ready(self) -> Readiness:
        """Whether the server can serve now. Raises `ConnectionFailedError` where there is none."""
        with connection_errors():
            return read_readiness(_readable(await self._http.get("/ready"), also=503))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _served_model(self) -> str:
        if self._model is None:
            self._model = _first(await self.models())
        return self._model

    async def _get(self, path: str) -> bytes:
        with connection_errors():
            return _readable(await self._http.get(path))

    async def _post(self, path: str, body: bytes) -> bytes:
        with connection_errors():
            return _readable(await self._http.post(path, content=body))

    async def _open(self, path: str, body: bytes) -> httpx.Response:
        with connection_errors():
            response = await self._http.send(self._http.build_request("POST", path, content=body), stream=True)
            if not response.is_success:
                await response.aread()
                await response.aclose()
                _readable(response)
        return response


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    return headers if api_key is None else {**headers, "Authorization": f"Bearer {api_key}"}


def _timeout(silence_s_max: float) -> httpx.Timeout:
    return httpx.Timeout(silence_s_max, connect=CONNECT_S_MAX)


def _readable(response: httpx.Response, also: int | None = None) -> bytes:
    """The body of a successful answer, or of one with the status ``also``; else the answer's error is raised."""
    if response.is_success or response.status_code == also:
        return response.content
    headers = response.headers
    raise error_of_answer(
        response.status_code, response.content, headers.get("retry-after"), headers.get("x-request-id")
    )


def _first(models: Sequence[Model]) -> str:
    if not models:
        raise NotFoundError("The server serves no model.")
    return models[0].id
