"""What has come from the leader of one stream and was not read yet.

Owns the check that each token comes once and in order. Knows no link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

import trio

from ...transport.interface import FrameError
from ..generation import GenerationFailedError, TokenEvent
from .token_messages import StreamTokens


class StreamMailbox:
    """The tokens of one stream from number ``next_index`` on, for one reader. Holds at most what the stream may have."""

    def __init__(self, next_index: int) -> None:
        self.is_over = False
        self._next_index = next_index
        self._accepted = False
        self._events: deque[TokenEvent] = deque()
        self._failure: GenerationFailedError | None = None
        self._news = trio.lowlevel.ParkingLot()

    # --- the link's side ---

    def accept(self) -> None:
        """The leader took the request."""
        self._accepted = True
        self._news.unpark()

    def add(self, message: StreamTokens) -> None:
        """Tokens came. Raises `FrameError` unless they are the next ones."""
        if self.is_over or not self._accepted or message.index != self._next_index:
            raise FrameError(
                f"token {message.index} of stream {message.stream} came where token {self._next_index} was due"
                f"{', after its last' if self.is_over else ''}"
            )
        self._next_index += len(message.tokens)
        last = self._next_index - 1
        for index, token in enumerate(message.tokens, message.index):
            self._events.append(TokenEvent(index, token, message.finish if index == last else None))
        self.is_over = message.finish is not None
        self._news.unpark()

    def fail(self, failure: GenerationFailedError) -> None:
        """Nothing more will come; of a stream that is over: nothing."""
        if not self.is_over:
            self.is_over = True
            self._failure = failure
            self._news.unpark()

    # --- the reader's side ---

    async def accepted(self) -> None:
        """Wait until the request was taken. Raises the `GenerationFailedError` with which it was not."""
        while not self._accepted:
            if self._failure is not None:
                raise self._failure
            await self._news.park()

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        return self

    async def __anext__(self) -> TokenEvent:
        while not self._events:
            if self._failure is not None:
                raise self._failure
            if self.is_over:
                raise StopAsyncIteration
            await self._news.park()
        return self._events.popleft()
