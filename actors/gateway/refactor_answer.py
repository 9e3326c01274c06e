"""The HTTP answer to a refactoring: its events as they happen, or its report as one body at the end, or an error.

Owns the order of what is sent. Rules: what fails before anything was told is a plain HTTP error; once events flow the last one
is the report or says what went wrong; a client that leaves stops watching, and the change goes on. It must never know how a
pipeline is refactored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import msgspec
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..generation import GenerationFailedError
from ..refactor import (
    Refactorer,
    RefactorEvent,
    RefactorFailed,
    RefactorProgress,
    RefactorRefusedError,
    RefactorReport,
    RefactorRequest,
)
from .drain import Drain
from .openai_errors import ApiError, generation_failed, internal_error, refactor_failed
from .sending import CLIENT_LEFT, COMPLETED, AnswerWriter, cancel_on_disconnect, event


class UnfinishedRefactorError(Exception):
    """The events of a refactoring ended without a last one: a bug of whoever refactors."""


class RefactorAnswer(Response):
    """Has one request carried out and tells of it, event by event where it is ``streamed``, else at the end only.

    ``ended(outcome)`` is called once, before the last part is sent; ``broke(error)`` before it, where something raised what no
    contract allows.
    """

    def __init__(
        self,
        refactorer: Refactorer,
        request: RefactorRequest,
        drain: Drain,
        ended: Callable[[str], None],
        broke: Callable[[Exception], None],
        *,
        streamed: bool,
    ) -> None:
        super().__init__()
        self._refactorer = refactorer
        self._request = request
        self._drain = drain
        self._ended = ended
        self._broke = broke
        self._streamed = streamed
        self._outcome = CLIENT_LEFT

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Refactor and tell."""
        writer = AnswerWriter(send)
        try:
            last = await self._refactor(receive, writer)
        finally:
            self._ended(self._outcome)
        if last is not None:
            await writer.last(last)  # outside the nursery, as in `GenerationAnswer`

    async def _refactor(self, receive: Receive, writer: AnswerWriter) -> bytes | None:
        """Send everything but the last part, which is returned; None where the client left."""
        last: bytes | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_on_disconnect, receive, nursery.cancel_scope)
                try:
                    with self._drain.work("refactoring"):
                        async with aclosing(self._refactorer.refactor(self._request)) as events:
                            last = await self._tell(events, writer)
                except RefactorRefusedError as error:
                    last = await self._fail(writer, refactor_failed(RefactorFailed("refused", str(error))))
                except GenerationFailedError as error:
                    last = await self._fail(writer, generation_failed(error))
                nursery.cancel_scope.cancel()
        except Exception as error:
            self._broke(error)
            last = await self._fail(writer, internal_error())
        return last

    async def _tell(self, events: AsyncIterator[RefactorEvent], writer: AnswerWriter) -> bytes:
        """Tell of every event; return the last part."""
        async for told in events:
            if isinstance(told, RefactorFailed) and not writer.started:
                return await self._fail(writer, refactor_failed(told))
            if self._streamed and not writer.started:
                await writer.start_events()
            if not isinstance(told, RefactorProgress):
                return await self._tell_last(told, writer)
            if self._streamed:
                await writer.part(event(msgspec.json.encode(told)))
        raise UnfinishedRefactorError("the events of a refactoring ended without its report")

    async def _tell_last(self, told: RefactorReport | RefactorFailed, writer: AnswerWriter) -> bytes:
        self._outcome = COMPLETED if isinstance(told, RefactorReport) else f"refactor_{told.reason}"
        body = msgspec.json.encode(told)
        if self._streamed:
            return event(body)
        await writer.start_body(body)
        return body

    async def _fail(self, writer: AnswerWriter, error: ApiError) -> bytes:
        self._outcome = error.detail.code or "internal_error"
        return await writer.fail(error)
