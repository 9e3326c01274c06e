"""The client's side of a benchmark: many completions streamed at once over HTTP, and when each token arrived.

Owns connections and arrival times. It must never know why anybody waits for tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx
import msgspec
import trio

from ..client_errors import ErrorDetail, FlexPipeError, error_of_answer
from ..client_events import EventReader
from ..client_streams import AsyncEventStream, connection_errors

SILENCE_S_MAX = 600.0
"""How long the server may say nothing: long prompts are computed, or all requests begun anew, before the next token."""


class _Logprobs(msgspec.Struct, frozen=True):
    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]


class _Choice(msgspec.Struct, frozen=True):
    logprobs: _Logprobs | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()
    error: ErrorDetail | None = None


class TokenReader(EventReader[_Logprobs]):
    """A streamed completion with log-probabilities, as the tokens that each event brings."""

    def _read(self, payload: bytes) -> None:
        if payload == b"[DONE]":
            self._done = True
            return
        chunk = msgspec.json.decode(payload, type=_Chunk)
        if chunk.error is not None:
            self._interrupt(chunk.error.message, chunk.error.code)
        self._items.extend(choice.logprobs for choice in chunk.choices if choice.logprobs is not None)


class NoTokensError(Exception):
    """A stream ended before its first token: there is nothing to measure; the sentence is the server's."""


@dataclass(slots=True)
class TokenStream:
    """One request. ``arrivals_s`` has an entry per event, of trio's clock; an event brings one token or, late, several.

    ``lost`` is the sentence with which the server ended it, "" where it did not; ``finished`` says that all tokens came.
    """

    prompt: Sequence[int]
    arrivals_s: list[float] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    lost: str = ""
    finished: bool = False

    @property
    def is_over(self) -> bool:
        """Whether no more tokens come."""
        return self.finished or bool(self.lost)


class TokenStreams:
    """Greedy streams of ``prompts``, ``tokens_max`` each, that never stop by themselves before. `run` in a task, `leave` early."""

    def __init__(self, url: str, model: str, prompts: Sequence[Sequence[int]], tokens_max: int) -> None:
        self._url = url
        self._model = model
        self._tokens_max = tokens_max
        self._left = False
        self._news = trio.Event()
        self.streams = tuple(TokenStream(prompt) for prompt in prompts)

    async def run(self) -> None:
        """Open all streams and read them to their ends, or until told to leave."""
        http = httpx.AsyncClient(
            base_url=self._url, timeout=httpx.Timeout(SILENCE_S_MAX), headers={"Content-Type": "application/json"}
        )
        async with http, trio.open_nursery() as nursery:
            for stream in self.streams:
                nursery.start_soon(self._follow, http, stream)

    async def begun(self) -> None:
        """Wait until every stream has its first token. Raises `NoTokensError`."""
        await self.until(lambda stream: bool(stream.tokens))
        for stream in self.streams:
            if not stream.tokens:
                raise NoTokensError(f"a stream ended before its first token: {stream.lost}")

    def leave(self) -> None:
        """Leave every stream at its next token."""
        self._left = True

    async def until(self, wanted: Callable[[TokenStream], bool]) -> None:
        """Wait until every stream that goes on is as ``wanted``."""
        while not all(stream.is_over or wanted(stream) for stream in self.streams):
            await self._news.wait()

    async def _follow(self, http: httpx.AsyncClient, stream: TokenStream) -> None:
        try:
            async with await self._open(http, stream) as events:
                async for came in events:
                    stream.arrivals_s.append(trio.current_time())
                    stream.tokens += came.tokens
                    stream.logprobs += came.token_logprobs
                    self._tell()
                    if self._left:
                        return
            stream.finished = True
        except FlexPipeError as error:
            stream.lost = str(error)
        finally:
            self._tell()

    async def _open(self, http: httpx.AsyncClient, stream: TokenStream) -> AsyncEventStream[_Logprobs]:
        body = {
            "model": self._model,
            "prompt": stream.prompt,
            "max_tokens": self._tokens_max,
            "temperature": 0,
            "ignore_eos": True,
            "logprobs": 0,
            "stream": True,
        }
        with connection_errors():
            request = http.build_request("POST", "/v1/completions", content=msgspec.json.encode(body))
            response = await http.send(request, stream=True)
            if not response.is_success:
                await response.aread()
                raise error_of_answer(response.status_code, response.content, None, None)
        return AsyncEventStream(response, TokenReader())

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()
