"""One request's tokens, from whichever replica makes them.

Where its replica is given up or retired before the request's end, another one goes on from prompt + delivered tokens: each token
comes once, and none is drawn differently, since a token's random number is a function of the request's seed and its position.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol

from .event_log import EventLog
from .generation import FailureKind, GenerationFailedError, GenerationRequest, TokenEvent
from .pipeline import Pipeline

_OF_THE_REPLICA: frozenset[FailureKind] = frozenset({"stage_lost", "shutting_down"})
"""Failures for which the request itself is not to blame: another replica can go on with it."""


class Homes(Protocol):
    """Who knows the replicas."""

    def takers(self) -> list[Pipeline]:
        """Those that take requests, best first; where there is none, those that can say why."""
        ...


class ReplicaStream:
    """See the module. `begin`, iterate, and `leave` in any case, all from one task."""

    def __init__(self, request: GenerationRequest, homes: Homes, log: EventLog) -> None:
        self._request = request
        self._homes = homes
        self._log = log
        self._outputs: list[int] = []
        self._replica = -1
        self._stay = AsyncExitStack()
        self._events: AsyncIterator[TokenEvent] | None = None

    async def begin(self) -> None:
        """Submit to the best replica that takes it. Raises the best one's `GenerationFailedError` where none does."""
        if not await self._enter(None):
            raise GenerationFailedError("not_ready", "the pipeline was not started", retry_after_s=2.0)

    async def leave(self) -> None:
        """Cancel where it is not at its end."""
        await self._stay.aclose()

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        return self

    async def __anext__(self) -> TokenEvent:
        assert self._events is not None
        while True:
            try:
                event = await anext(self._events)
            except GenerationFailedError as failure:
                await self._move(failure)
            else:
                self._outputs.append(event.token.token_id)
                return event

    async def _move(self, failure: GenerationFailedError) -> None:
        """Go on elsewhere. Raises ``failure`` where there is nowhere else, and says why where nobody takes it."""
        if failure.kind not in _OF_THE_REPLICA:
            raise failure
        await self._stay.aclose()
        before = self._replica
        try:
            moved = await self._enter(tuple(self._outputs))
        except GenerationFailedError as refusal:
            sentence = f"{failure.sentence}; no other replica can go on with the request: {refusal.sentence}"
            raise GenerationFailedError(failure.kind, sentence, failure.retry_after_s) from refusal
        if not moved:
            raise failure
        self._log.emit(
            "request_moved",
            from_replica=before,
            to_replica=self._replica,
            output_tokens=len(self._outputs),
            sentence=failure.sentence,
        )

    async def _enter(self, outputs: tuple[int, ...] | None) -> bool:
        """Submit to the first replica that takes it; False where there is none. Raises the first refusal where all refuse."""
        first: GenerationFailedError | None = None
        for pipeline in self._homes.takers():
            if outputs is not None and not pipeline.takes_requests:
                continue
            try:
                self._events = await self._stay.enter_async_context(pipeline.open(self._request, outputs))
            except GenerationFailedError as refusal:
                first = first or refusal
            else:
                self._replica = pipeline.replica
                return True
        if first is not None:
            raise first
        return False
