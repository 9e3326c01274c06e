"""One request's tokens, from whichever replica makes them.

Where its replica is given up or retired before the request's end, another one goes on from prompt + delivered tokens.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol

from .continued_stream import ContinuedStream
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


class ReplicaStream(ContinuedStream):
    """See the module."""

    def __init__(
        self, request: GenerationRequest, homes: Homes, log: EventLog, outputs: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(request, outputs)
        self._homes = homes
        self._log = log
        self._replica = -1

    async def _first_home(self, home: AsyncExitStack, outputs: tuple[int, ...] | None) -> AsyncIterator[TokenEvent]:
        """At the best replica that takes it. Raises the best one's refusal where none does."""
        events = await self._enter(home, self._homes.takers(), outputs)
        if events is None:
            raise GenerationFailedError("not_ready", "the pipeline was not started", retry_after_s=2.0)
        return events

    async def _next_home(self, home: AsyncExitStack, failure: GenerationFailedError) -> AsyncIterator[TokenEvent]:
        """Elsewhere. Raises ``failure`` where there is nowhere else, and says why where nobody takes it."""
        if failure.kind not in _OF_THE_REPLICA:
            raise failure
        await home.aclose()
        before = self._replica
        others = [pipeline for pipeline in self._homes.takers() if pipeline.takes_requests]
        try:
            events = await self._enter(home, others, self.outputs)
        except GenerationFailedError as refusal:
            sentence = f"{failure.sentence}; no other replica can go on with the request: {refusal.sentence}"
            raise GenerationFailedError(failure.kind, sentence, failure.retry_after_s) from refusal
        if events is None:
            raise failure
        self._log.emit(
            "request_moved",
            trace=self.request.trace,
            from_replica=before,
            to_replica=self._replica,
            output_tokens=self.output_tokens,
            sentence=failure.sentence,
        )
        return events

    async def _enter(
        self, home: AsyncExitStack, takers: list[Pipeline], outputs: tuple[int, ...] | None
    ) -> AsyncIterator[TokenEvent] | None:
        """Submit to the first that takes it; None where there is none. Raises the first refusal where all refuse."""
        first: GenerationFailedError | None = None
        for pipeline in takers:
            try:
                events = await home.enter_async_context(pipeline.open(self.request, outputs))
            except GenerationFailedError as refusal:
                first = first or refusal
            else:
                self._replica = pipeline.replica
                return events
        if first is not None:
            raise first
        return None
