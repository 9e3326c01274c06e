"""Streams of the SDK under no loop, trio or asyncio: iterators of an answer's texts, and of a refactoring's progress."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Generic, Self

import httpx

from .actors.refactor import RefactorProgress, RefactorReport
from .client_errors import ConnectionFailedError
from .client_events import EventReader, Item, RefactorReader, TextReader
from .client_messages import Usage


@contextmanager
def connection_errors() -> Iterator[None]:
    """Turn httpx's errors into `ConnectionFailedError`."""
    try:
        yield
    except httpx.HTTPError as error:
        raise ConnectionFailedError(f"The server did not answer: {error or type(error).__name__}") from error


class EventStream(Generic[Item]):
    """What comes of a streamed answer, as it comes. Iterate once; `close` (or the context) leaves it early.

    Raises `FlexPipeError` where the server could not finish, after everything that came before.
    """

    def __init__(self, response: httpx.Response, reader: EventReader[Item]) -> None:
        self._response = response
        self._events = reader
        self._parts = response.iter_bytes()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            item = self._next_item()
        except BaseException:
            self.close()
            raise
        if item is None:
            raise StopIteration
        return item

    def close(self) -> None:
        """Leave the stream."""
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next_item(self) -> Item | None:
        while not self._events.has_news:
            with connection_errors():
                part = next(self._parts, None)
            self._events.feed(part)
        return self._events.take()


class AsyncEventStream(Generic[Item]):
    """`EventStream` under trio and asyncio."""

    def __init__(self, response: httpx.Response, reader: EventReader[Item]) -> None:
        self._response = response
        self._events = reader
        self._parts = response.aiter_bytes()

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        try:
            item = await self._next_item()
        except BaseException:
            await self.aclose()
            raise
        if item is None:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """Leave the stream."""
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

    async def _next_item(self) -> Item | None:
        while not self._events.has_news:
            with connection_errors():
                part = await anext(self._parts, None)
            self._events.feed(part)
        return self._events.take()


class _TextFacts:
    """What a stream of texts tells besides them."""

    _reader: TextReader

    @property
    def text(self) -> str:
        """All text so far."""
        return self._reader.text

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended: "stop" or "length"; None before it did."""
        return self._reader.finish_reason

    @property
    def usage(self) -> Usage | None:
        """Token counts; None before the end."""
        return self._reader.usage


class TextStream(_TextFacts, EventStream[str]):
    """The texts of a streamed answer. Leaving it ends the generation early.

    Raises `StreamInterruptedError` where the server could not finish.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._reader = TextReader()
        super().__init__(response, self._reader)


class AsyncTextStream(_TextFacts, AsyncEventStream[str]):
    """`TextStream` under trio and asyncio."""

    def __init__(self, response: httpx.Response) -> None:
        self._reader = TextReader()
        super().__init__(response, self._reader)


class _RefactorFacts:
    """What a refactoring tells besides its progress."""

    _reader: RefactorReader

    @property
    def report(self) -> RefactorReport | None:
        """How it went; None before its end."""
        return self._reader.report

    def _final_report(self) -> RefactorReport:
        assert self._reader.report is not None  # else the iteration would have raised
        return self._reader.report


class Refactoring(_RefactorFacts, EventStream[RefactorProgress]):
    """The progress of a refactoring. Leaving it ends the watching only: the server goes on with the change.

    Raises `RefactorError` where the change does not come off.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._reader = RefactorReader()
        super().__init__(response, self._reader)

    def wait(self) -> RefactorReport:
        """Wait until the change is over; its report."""
        for _ in self:
            pass
        return self._final_report()


class AsyncRefactoring(_RefactorFacts, AsyncEventStream[RefactorProgress]):
    """`Refactoring` under trio and asyncio."""

    def __init__(self, response: httpx.Response) -> None:
        self._reader = RefactorReader()
        super().__init__(response, self._reader)

    async def wait(self) -> RefactorReport:
        """Wait until the change is over; its report."""
        async for _ in self:
            pass
        return self._final_report()
