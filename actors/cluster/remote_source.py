"""A gateway's `TokenSource`: the tokens that whoever leads makes, across leaders.

Each stream keeps its prompt and its delivered tokens. When its leader is lost it waits for the next one that is ready, and goes on
there: each token comes once, as the same request alone would have made it. It must never know how tokens are made, nor of HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import msgspec
import trio

from ..continued_stream import ContinuedStream
from ..event_log import EventLog
from ..generation import (
    FailureKind,
    GenerationFailedError,
    GenerationRequest,
    ModelFacts,
    PipelineStatus,
    TokenEvent,
)
from .leader_line import LeaderLine
from .leader_session import RETRY_AFTER_S, LeaderLostError, LeaderSession

_OF_THE_LEADER: frozenset[FailureKind] = frozenset({"stage_lost", "not_ready", "shutting_down"})
"""Refusals for which a request that goes on is not to blame: it waits until a leader is ready."""


@dataclass(frozen=True, slots=True)
class RemoteLimits:
    """``resume_s_max``: so long a stream waits for the next leader to be ready, from when it lost the one before.

    It covers the lease (2 s), the campaign and the start of all workers from warm weights.
    """

    resume_s_max: float = 60.0


class RemoteSource:
    """See the module. ``line`` must be running. ``facts`` are the model's as this node knows them."""

    def __init__(
        self, line: LeaderLine, facts: ModelFacts, log: EventLog, limits: RemoteLimits = RemoteLimits()
    ) -> None:
        self.line = line
        self.limits = limits
        self._facts = facts
        self._log = log
        self._waiting = 0

    @asynccontextmanager
    async def open(
        self, request: GenerationRequest, outputs: tuple[int, ...] | None = None
    ) -> AsyncIterator[AsyncIterator[TokenEvent]]:
        """See `TokenSource.open`. Refuses with "not_ready" while there is no leader; what was begun waits for the next."""
        stream = _RemoteStream(request, outputs, self, self._log)
        try:
            await stream.begin()
            yield stream
        finally:
            await stream.leave()

    def status(self) -> PipelineStatus:
        """What the leader said last, a moment ago; while there is none: not ready. Streams that wait for one are waiting."""
        session = self.line.session
        if session is not None:
            status = session.status
            return msgspec.structs.replace(status, waiting=status.waiting + self._waiting) if self._waiting else status
        return PipelineStatus(
            ready=False,
            reason=self.line.reason,
            epoch=0,
            model=self._facts,
            stages=(),
            running=0,
            waiting=self._waiting,
        )

    @contextmanager
    def waiting_stream(self) -> Iterator[None]:
        """A stream waits for a leader meanwhile."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


class _RemoteStream(ContinuedStream):
    """One request's tokens, from whichever leader has them made."""

    def __init__(
        self, request: GenerationRequest, outputs: tuple[int, ...] | None, source: RemoteSource, log: EventLog
    ) -> None:
        super().__init__(request, outputs)
        self._source = source
        self._log = log
        self._session: LeaderSession | None = None

    async def _first_home(self, home: AsyncExitStack, outputs: tuple[int, ...] | None) -> AsyncIterator[TokenEvent]:
        session = self._source.line.session
        if session is None:
            raise GenerationFailedError("not_ready", self._source.line.reason, RETRY_AFTER_S)
        try:
            return await self._enter(home, session, outputs)
        except LeaderLostError as lost:
            return await self._resume(home, lost, outputs)

    async def _next_home(self, home: AsyncExitStack, failure: GenerationFailedError) -> AsyncIterator[TokenEvent]:
        if not isinstance(failure, LeaderLostError) and failure.kind != "shutting_down":
            raise failure
        await home.aclose()
        return await self._resume(home, failure, self.outputs)

    async def _enter(
        self, home: AsyncExitStack, session: LeaderSession, outputs: tuple[int, ...] | None
    ) -> AsyncIterator[TokenEvent]:
        self._session = session
        return await home.enter_async_context(session.open(self.request, outputs))

    async def _resume(
        self, home: AsyncExitStack, failure: GenerationFailedError, outputs: tuple[int, ...] | None
    ) -> AsyncIterator[TokenEvent]:
        """Go on at the next leader that is ready. Raises ``failure`` where none is in time, and the refusal of one that is."""
        left, line = self._session, self._source.line
        limit_s = self._source.limits.resume_s_max
        with self._source.waiting_stream(), trio.move_on_after(limit_s):
            while True:
                news, session = line.news, line.session
                if session is not None and session is not left and session.status.ready:
                    events = await self._try(home, session, outputs)
                    if events is not None:
                        self._tell_resumed(left, session, failure)
                        return events
                await line.changed(news)
        sentence = f"{failure.sentence}; no other leader was ready within {limit_s:g} s"
        raise GenerationFailedError(failure.kind, sentence, RETRY_AFTER_S)

    async def _try(
        self, home: AsyncExitStack, session: LeaderSession, outputs: tuple[int, ...] | None
    ) -> AsyncIterator[TokenEvent] | None:
        """Enter; None where it is the leader that cannot. Raises the refusal where it is the request that cannot be."""
        try:
            return await self._enter(home, session, outputs)
        except GenerationFailedError as refusal:
            if refusal.kind not in _OF_THE_LEADER:
                raise
            return None

    def _tell_resumed(self, left: LeaderSession | None, session: LeaderSession, failure: GenerationFailedError) -> None:
        self._log.emit(
            "stream_resumed",
            trace=self.request.trace,
            from_term=left.term if left is not None else 0,
            to_term=session.term,
            output_tokens=self.output_tokens,
            sentence=failure.sentence,
        )
