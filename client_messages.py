"""What the SDK says and hears: request bodies, answers, and a stream's bytes turned into text.

Pure: it opens no connection and imports neither torch nor an event loop, so both clients share it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import msgspec

from .client_errors import ErrorDetail, StreamInterruptedError

FRAME_BYTES_MAX = 16 * 1024 * 1024
"""One server-sent event; more is not from FlexPipe."""

Message = Mapping[str, str]
"""A chat message: ``{"role": "user", "content": "Hello"}``."""


class GenerationOptions(TypedDict, total=False):
    """How to generate; docs of the HTTP API say what each does. What is left out has the server's default."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool


class Usage(msgspec.Struct, frozen=True):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(msgspec.Struct, frozen=True):
    """A whole answer. ``finish_reason``: "stop" (the model or a stop string ended it) or "length"."""

    id: str
    text: str
    finish_reason: str
    usage: Usage


class Model(msgspec.Struct, frozen=True):
    """A served model; ``max_model_len`` bounds prompt and answer together, in tokens."""

    id: str
    max_model_len: int


class Readiness(msgspec.Struct, frozen=True):
    """Whether the server can serve now, and if not, why. True in a condition exactly when ready."""

    ready: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ready


def chat_body(model: str, messages: str | Sequence[Message], options: GenerationOptions, *, stream: bool) -> bytes:
    """The body of a chat request; a text alone is one message of the user."""
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return _body({"model": model, "messages": conversation}, options, stream=stream)


def completion_body(model: str, prompt: str | Sequence[int], options: GenerationOptions, *, stream: bool) -> bytes:
    """The body of a completion request; ``prompt`` is text or token ids."""
    return _body({"model": model, "prompt": prompt}, options, stream=stream)


def _body(fields: dict[str, Any], options: GenerationOptions, *, stream: bool) -> bytes:
    streaming = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return msgspec.json.encode({**fields, **options, **streaming})


class _Text(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    """A choice of either endpoint, whole or a chunk of a stream."""

    text: str | None = None
    message: _Text | None = None
    delta: _Text | None = None
    finish_reason: str | None = None

    @property
    def shown(self) -> str:
        holder = self.message or self.delta
        return (holder.content if holder is not None else self.text) or ""


class _Answer(msgspec.Struct, frozen=True):
    id: str
    choices: list[_Choice]
    usage: Usage


class _Frame(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: ErrorDetail | None = None


class _Models(msgspec.Struct, frozen=True):
    data: list[Model]


def read_completion(body: bytes) -> Completion:
    """A whole answer of either endpoint."""
    answer = msgspec.json.decode(body, type=_Answer)
    (choice,) = answer.choices
    return Completion(answer.id, choice.shown, choice.finish_reason or "", answer.usage)


def read_models(body: bytes) -> list[Model]:
    """The answer of /v1/models."""
    return msgspec.json.decode(body, type=_Models).data


def read_readiness(body: bytes) -> Readiness:
    """The answer of /ready."""
    return msgspec.json.decode(body, type=Readiness)


class StreamState:
    """A stream so far: bytes in, texts out.

    Frames are split by bytes and not by lines of text, for a text may hold what Unicode calls the end of a line.
    """

    def __init__(self) -> None:
        self.text = ""
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self._texts: deque[str] = deque()
        self._unread = bytearray()
        self._done = False
        self._ended = False
        self._failure: StreamInterruptedError | None = None

    @property
    def has_news(self) -> bool:
        """Whether `take` has something to say without more bytes."""
        return bool(self._texts) or self._failure is not None or self._ended

    def feed(self, part: bytes | None) -> None:
        """Take bytes as they come, None where no more come."""
        if part is None:
            self._ended = True
            if not self._done:
                self._fail("The connection ended before the answer did.")
            return
        self._unread += part
        *frames, self._unread = self._unread.split(b"\n\n")
        if len(self._unread) > FRAME_BYTES_MAX:
            self._fail(f"The server sent an event of over {FRAME_BYTES_MAX} bytes.")
        for frame in frames:
            self._read(bytes(frame))

    def take(self) -> str | None:
        """The next text, None at the end. Raises `StreamInterruptedError` after the last text where there was one."""
        if self._texts:
            return self._texts.popleft()
        if self._failure is not None:
            raise self._failure
        return None

    def _read(self, frame: bytes) -> None:
        payload = frame.removeprefix(b"data: ")
        if payload == b"[DONE]":
            self._done = True
            return
        read = msgspec.json.decode(payload, type=_Frame)
        if read.error is not None:
            self._fail(read.error.message, read.error.code)
        self.usage = read.usage or self.usage
        for choice in read.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.shown:
                self.text += choice.shown
                self._texts.append(choice.shown)

    def _fail(self, sentence: str, code: str | None = None) -> None:
        self._failure = self._failure or StreamInterruptedError(sentence, code=code)
