"""Server-sent events of the SDK's streams, turned into what people iterate over: texts, or the progress of a refactoring.

Pure: bytes in, items out; it opens no connection and imports no event loop, so both clients share it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Generic, TypeVar

import msgspec

from .actors.refactor import RefactorFailed, RefactorProgress, RefactorReport
from .client_errors import ErrorDetail, FlexPipeError, StreamInterruptedError, refactor_error
from .client_messages import Choice, Usage

EVENT_BYTES_MAX = 16 * 1024 * 1024
"""One server-sent event; more is not from FlexPipe."""

Item = TypeVar("Item")


class EventReader(ABC, Generic[Item]):
    """A stream so far.

    Events are split by bytes and not by lines of text, for a text may hold what Unicode calls the end of a line.
    """

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._unread = bytearray()
        self._done = False
        self._ended = False
        self._failure: FlexPipeError | None = None

    @property
    def has_news(self) -> bool:
        """Whether `take` has something to say without more bytes."""
        return bool(self._items) or self._failure is not None or self._ended

    def feed(self, part: bytes | None) -> None:
        """Take bytes as they come, None where no more come."""
        if part is None:
            self._ended = True
            if not self._done:
                self._interrupt("The connection ended before the answer did.")
            return
        self._unread += part
        *events, self._unread = self._unread.split(b"\n\n")
        if len(self._unread) > EVENT_BYTES_MAX:
            self._interrupt(f"The server sent an event of over {EVENT_BYTES_MAX} bytes.")
        for event in events:
            self._read(bytes(event).removeprefix(b"data: "))

    def take(self) -> Item | None:
        """The next item, None at the end. Raises `FlexPipeError` after the last item where the stream failed."""
        if self._items:
            return self._items.popleft()
        if self._failure is not None:
            raise self._failure
        return None

    @abstractmethod
    def _read(self, payload: bytes) -> None:
        """Take in one event; append to ``_items``, set ``_done`` at the last one."""

    def _fail(self, error: FlexPipeError) -> None:
        self._failure = self._failure or error

    def _interrupt(self, sentence: str, code: str | None = None) -> None:
        self._fail(StreamInterruptedError(sentence, code=code))


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: ErrorDetail | None = None


class TextReader(EventReader[str]):
    """A streamed answer, as texts. ``usage`` and ``finish_reason`` are None before its end."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.usage: Usage | None = None
        self.finish_reason: str | None = None

    def _read(self, payload: bytes) -> None:
        if payload == b"[DONE]":
            self._done = True
            return
        chunk = msgspec.json.decode(payload, type=_Chunk)
        if chunk.error is not None:
            self._interrupt(chunk.error.message, chunk.error.code)
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.shown:
                self.text += choice.shown
                self._items.append(choice.shown)


class _Error(msgspec.Struct, frozen=True):
    error: ErrorDetail | None = None


_REFACTOR_EVENT: msgspec.json.Decoder[RefactorProgress | RefactorReport | RefactorFailed] = msgspec.json.Decoder(
    RefactorProgress | RefactorReport | RefactorFailed
)


class RefactorReader(EventReader[RefactorProgress]):
    """A refactoring, as its progress. ``report`` is None before its end."""

    def __init__(self) -> None:
        super().__init__()
        self.report: RefactorReport | None = None

    def _read(self, payload: bytes) -> None:
        error = msgspec.json.decode(payload, type=_Error).error
        if error is not None:
            self._interrupt(error.message, error.code)
            return
        match _REFACTOR_EVENT.decode(payload):
            case RefactorProgress() as progress:
                self._items.append(progress)
            case RefactorReport() as report:
                self.report = report
                self._done = True
            case RefactorFailed(reason, sentence):
                self._fail(refactor_error(f"refactor_{reason}", sentence))
