"""One request's tokens, from one home after another: a replica, or a leader with all of its replicas.

Owns the tokens that were delivered, and so what a home needs to go on where the one before stopped: each token comes once, and none
is drawn differently, since a token's random number is a function of the request's seed and its position. It must never know what a
home is, nor how the next one is found.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from .generation import GenerationFailedError, GenerationRequest, TokenEvent


class ContinuedStream(ABC):
    """See the module. `begin`, iterate, and `leave` in any case, all from one task.

    ``outputs`` are the tokens of ``request`` that were delivered before this stream, None where it is new: see `TokenSource.open`.
    """

    def __init__(self, request: GenerationRequest, outputs: tuple[int, ...] | None) -> None:
        self.request = request
        self._is_new = outputs is None
        self._outputs = list(outputs or ())
        self._home = AsyncExitStack()
        self._events: AsyncIterator[TokenEvent] | None = None

    @property
    def outputs(self) -> tuple[int, ...]:
        """The tokens delivered so far, those before this stream included."""
        return tuple(self._outputs)

    @property
    def output_tokens(self) -> int:
        """How many they are."""
        return len(self._outputs)

    async def begin(self) -> None:
        """Submit the request. Raises `GenerationFailedError` where it is refused."""
        self._events = await self._first_home(self._home, None if self._is_new else self.outputs)

    async def leave(self) -> None:
        """Cancel where it is not at its end."""
        await self._home.aclose()

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        return self

    async def __anext__(self) -> TokenEvent:
        while True:
            assert self._events is not None
            try:
                event = await anext(self._events)
            except GenerationFailedError as failure:
                self._events = await self._next_home(self._home, failure)
            else:
                self._outputs.append(event.token.token_id)
                return event

    @abstractmethod
    async def _first_home(self, home: AsyncExitStack, outputs: tuple[int, ...] | None) -> AsyncIterator[TokenEvent]:
        """Enter a source of its tokens into ``home``. Raises the `GenerationFailedError` of a refusal."""

    @abstractmethod
    async def _next_home(self, home: AsyncExitStack, failure: GenerationFailedError) -> AsyncIterator[TokenEvent]:
        """Leave what is in ``home``, which failed, and enter one that goes on from `outputs`. Raises ``failure`` where none can."""
