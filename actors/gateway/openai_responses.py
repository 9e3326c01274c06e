"""What clients get back: OpenAI's response bodies and stream chunks, made of deltas.

Owns field names and object names of both endpoints. It must never know of tokens' origin or of HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from .request_machine import Delta, TokenReport

LOGPROB_FLOOR = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON cannot say."""

REPLACEMENT = "\ufffd"


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one HTTP request: prompts once each, whatever `n`; outputs with their stop tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerFormat(Protocol):
    """One endpoint's JSON. Every method returns one complete JSON document."""

    def opening(self, index: int) -> bytes | None:
        """The chunk that begins choice ``index`` of a stream, None where the endpoint has none."""
        ...

    def chunk(self, index: int, delta: Delta, usage: Usage | None) -> bytes:
        """A stream's chunk: what ``delta`` adds to choice ``index``."""
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        """A stream's last chunk where usage was asked for: no choices."""
        ...

    def whole(self, answers: Sequence[Delta], usage: Usage) -> bytes:
        """The body of an answer that is not streamed; ``answers[i]`` is the whole of choice i."""
        ...


class _TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None


class _TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None
    top_logprobs: tuple[_TopLogprob, ...]


class _ChatLogprobs(msgspec.Struct, frozen=True):
    content: tuple[_TokenLogprob, ...]
    refusal: None = None


class _ChatDelta(msgspec.Struct, frozen=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class _ChatChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: _ChatDelta
    logprobs: _ChatLogprobs | None
    finish_reason: str | None


class _ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str
    refusal: None = None


class _ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: _ChatMessage
    logprobs: _ChatLogprobs | None
    finish_reason: str | None


class _CompletionLogprobs(msgspec.Struct, frozen=True):
    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]
    text_offset: tuple[int, ...]


class _CompletionChoice(msgspec.Struct, frozen=True):
    text: str
    index: int
    logprobs: _CompletionLogprobs | None
    finish_reason: str | None


class _Body(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: tuple[_ChatChunkChoice | _ChatChoice | _CompletionChoice, ...]
    usage: Usage | UnsetType | None = UNSET


class _Format:
    """What both endpoints share. ``usage_asked``: a stream's chunks carry ``"usage": null`` but for the last."""

    def __init__(self, request_id: str, created_s: int, model: str, *, usage_asked: bool) -> None:
        self._id = request_id
        self._created_s = created_s
        self._model = model
        self._no_usage = None if usage_asked else UNSET

    def _json(
        self,
        kind: str,
        choices: Sequence[_ChatChunkChoice | _ChatChoice | _CompletionChoice],
        usage: Usage | None,
    ) -> bytes:
        shown = self._no_usage if usage is None else usage
        return msgspec.json.encode(_Body(self._id, kind, self._created_s, self._model, tuple(choices), shown))


class ChatFormat(_Format):
    """/v1/chat/completions."""

    def opening(self, index: int) -> bytes:
        """The chunk with the role."""
        choice = _ChatChunkChoice(index, _ChatDelta("assistant", ""), None, None)
        return self._json("chat.completion.chunk", [choice], None)

    def chunk(self, index: int, delta: Delta, usage: Usage | None) -> bytes:
        """A chunk with more content, a finish reason, or both."""
        content = _ChatDelta(content=delta.text or UNSET)
        choice = _ChatChunkChoice(index, content, _chat_logprobs(delta.reports), delta.finish)
        return self._json("chat.completion.chunk", [choice], usage)

    def usage_chunk(self, usage: Usage) -> bytes:
        """The chunk without choices."""
        return self._json("chat.completion.chunk", [], usage)

    def whole(self, answers: Sequence[Delta], usage: Usage) -> bytes:
        """A `chat.completion`."""
        choices = [
            _ChatChoice(index, _ChatMessage("assistant", answer.text), _chat_logprobs(answer.reports), answer.finish)
            for index, answer in enumerate(answers)
        ]
        return self._json("chat.completion", choices, usage)


class CompletionFormat(_Format):
    """/v1/completions."""

    def opening(self, index: int) -> None:
        """Nothing: a completion has no role."""

    def chunk(self, index: int, delta: Delta, usage: Usage | None) -> bytes:
        """A chunk with more text, a finish reason, or both."""
        return self._json("text_completion", [_completion_choice(index, delta)], usage)

    def usage_chunk(self, usage: Usage) -> bytes:
        """The chunk without choices."""
        return self._json("text_completion", [], usage)

    def whole(self, answers: Sequence[Delta], usage: Usage) -> bytes:
        """A `text_completion`."""
        choices = [_completion_choice(index, answer) for index, answer in enumerate(answers)]
        return self._json("text_completion", choices, usage)


def joined(deltas: Sequence[Delta]) -> Delta:
    """Several consecutive deltas of one sequence as one."""
    if len(deltas) == 1:
        return deltas[0]
    reports = tuple(report for delta in deltas for report in delta.reports)
    return Delta("".join(delta.text for delta in deltas), reports, deltas[-1].finish if deltas else None)


def _completion_choice(index: int, delta: Delta) -> _CompletionChoice:
    return _CompletionChoice(delta.text, index, _completion_logprobs(delta.reports), delta.finish)


def _completion_logprobs(reports: Sequence[TokenReport]) -> _CompletionLogprobs | None:
    if not reports:
        return None
    return _CompletionLogprobs(
        tokens=tuple(report.text for report in reports),
        token_logprobs=tuple(_floored(report.logprob) for report in reports),
        top_logprobs=tuple({text: _floored(value) for text, value in report.top} for report in reports),
        text_offset=tuple(report.text_offset for report in reports),
    )


def _chat_logprobs(reports: Sequence[TokenReport]) -> _ChatLogprobs | None:
    if not reports:
        return None
    return _ChatLogprobs(tuple(_token_logprob(report) for report in reports))


def _token_logprob(report: TokenReport) -> _TokenLogprob:
    top = tuple(_TopLogprob(text, _floored(value), _bytes_of(text)) for text, value in report.top)
    return _TokenLogprob(report.text, _floored(report.logprob), _bytes_of(report.text), top)


def _floored(logprob: float) -> float:
    return max(logprob, LOGPROB_FLOOR)


def _bytes_of(text: str) -> tuple[int, ...] | None:
    """UTF-8 bytes of a token's text, None where it is a part of a character, whose bytes the text does not tell."""
    return None if REPLACEMENT in text else tuple(text.encode())
