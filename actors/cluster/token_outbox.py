"""What waits to be sent to one gateway: messages in order, and tokens that gather while the link is busy.

Owns the coalescing: the tokens of one step, or of all steps that were made while an earlier message was on its way, leave as one
message; a lone stream's token leaves at once. Bounded by whoever adds tokens: they wait for `room`. Knows no link.
"""

from __future__ import annotations

from collections import deque

import trio

from ..generation import TokenEvent
from .token_messages import MESSAGE_TOKENS_MAX, TO_GATEWAY, StreamTokens, ToGateway, Tokens

OUTBOX_TOKENS_MAX = 4096
"""Tokens that may wait for one gateway; beyond them its streams wait in the source, which keeps what they do not read."""
OUTBOX_MESSAGES_MAX = 1024
"""Other messages that may wait; beyond them nothing more is heard from the gateway until it reads."""


class TokenOutbox:
    """See the module. One task takes, any number add."""

    def __init__(self) -> None:
        self._status: bytes | None = None
        self._items: deque[bytes | _Batch] = deque()
        self._tokens = 0
        self._came = trio.lowlevel.ParkingLot()
        self._left = trio.lowlevel.ParkingLot()

    def post(self, message: ToGateway) -> None:
        """Send ``message`` after everything that was added before it. Raises `FrameError` where it is too large to be sent."""
        self._items.append(TO_GATEWAY.encode(message))
        self._came.unpark()

    def post_status(self, message: bytes) -> None:
        """Send an encoded `StatusPush` next; one that waits already is outdated."""
        self._status = message
        self._came.unpark()

    def add_token(self, stream: int, event: TokenEvent) -> None:
        """Send a token of ``stream``, with whatever else goes then."""
        last = self._items[-1] if self._items else None
        if not isinstance(last, _Batch) or last.tokens >= MESSAGE_TOKENS_MAX:
            last = _Batch()
            self._items.append(last)
        last.add(stream, event)
        self._tokens += 1
        self._came.unpark()

    async def room(self) -> None:
        """Wait until more may be added."""
        while not self._has_room:
            await self._left.park()

    async def take(self) -> bytes:
        """Wait for something, and take the next message, encoded."""
        while True:
            if self._status is not None:
                status, self._status = self._status, None
                return status
            if self._items:
                return self._encoded(self._items.popleft())
            await self._came.park()

    @property
    def _has_room(self) -> bool:
        return self._tokens < OUTBOX_TOKENS_MAX and len(self._items) < OUTBOX_MESSAGES_MAX

    def _encoded(self, item: bytes | _Batch) -> bytes:
        if isinstance(item, _Batch):
            self._tokens -= item.tokens
            item = TO_GATEWAY.encode(item.message())
        if self._has_room:
            self._left.unpark_all()
        return item


class _Batch:
    """Tokens that go in one message."""

    def __init__(self) -> None:
        self.tokens = 0
        self._events: dict[int, list[TokenEvent]] = {}

    def add(self, stream: int, event: TokenEvent) -> None:
        """The next token of ``stream``."""
        self.tokens += 1
        events = self._events.get(stream)
        if events is None:
            self._events[stream] = [event]
        else:
            events.append(event)

    def message(self) -> Tokens:
        """All of them."""
        return Tokens(
            tuple(
                StreamTokens(stream, events[0].index, tuple([event.token for event in events]), events[-1].finish)
                for stream, events in self._events.items()
            )
        )
