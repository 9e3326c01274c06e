"""Streamed answers of the SDK: iterators of text, under no loop, trio or asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import httpx

from .client_errors import ConnectionFailedError
from .client_messages import StreamState, Usage


@contextmanager
def connection_errors() -> Iterator[None]:
    """Turn httpx's errors into `ConnectionFailedError`."""
    try:
        yield
    except httpx.HTTPError as error:
        raise ConnectionFailedError(f"The server did not answer: {error or type(error).__name__}") from error


class _StreamFacts:
    """What a stream tells besides its texts."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._state = StreamState()

    @property
    def text(self) -> str:
        """All text so far."""
        return self._state.text

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended: "stop" or "length"; None before it did."""
        return self._state.finish_reason

    @property
    def usage(self) -> Usage | None:
        """Token counts; None before the end."""
        return self._state.usage


class TextStream(_StreamFacts):
    """The texts of a streamed answer, as they come. Iterate once; `close` (or the context) ends the generation early.

    Raises `StreamInterruptedError` where the server could not finish, after every text that came before.
    """

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response)
        self._parts = response.iter_bytes()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            text = self._next_text()
        except BaseException:
            self.close()
            raise
        if text is None:
            raise StopIteration
        return text

    def close(self) -> None:
        """Leave the stream; the server stops generating."""
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next_text(self) -> str | None:
        while not self._state.has_news:
            with connection_errors():
                part = next(self._parts, None)
            self._state.feed(part)
        return self._state.take()


class AsyncTextStream(_StreamFacts):
    """`TextStream` under trio and asyncio."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response)
        self._parts = response.aiter_bytes()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        try:
            text = await self._next_text()
        except BaseException:
            await self.aclose()
            raise
        if text is None:
            raise StopAsyncIteration
        return text

    async def aclose(self) -> None:
        """Leave the stream; the server stops generating."""
        await self._response.aclose()
        # Of a closed response httpx's nested generators come to their end at once; left to the garbage collector they
        # would make trio warn.
        with suppress(StopAsyncIteration, httpx.HTTPError, httpx.StreamError):
            while True:
                await anext(self._parts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _next_text(self) -> str | None:
        while not self._state.has_news:
            with connection_errors():
                part = await anext(self._parts, None)
            self._state.feed(part)
        return self._state.take()
