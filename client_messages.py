"""What the SDK says and hears: request bodies, and answers that come whole.

Pure: it opens no connection and imports neither torch nor an event loop, so both clients share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import msgspec

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


class RefactorOptions(TypedDict, total=False):
    """What the pipeline shall look like: exactly one of the first four (None: not that one); and how to get there.

    ``partition`` is "7,9,8,6" (decoder layers per stage) or "0:15,15:33" (atoms), ``move`` "12-17:cpu:3" (layers 12 to 17 to that
    device), ``replicas`` how many pipelines serve the model; the others change every replica in turn, or only ``replica``.
    ``strategy`` is "precopy" (the default), "stop-copy", "recompute" or "restart". ``allow_preempt`` lets requests begin
    anew whose KV would not fit any more, where the change would be refused otherwise.
    """

    stages: int | None
    partition: str | None
    move: str | None
    replicas: int | None
    replica: int | None
    strategy: str
    allow_preempt: bool


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


def refactor_body(options: RefactorOptions) -> bytes:
    """The body of a refactoring."""
    return msgspec.json.encode(options)


def _body(fields: dict[str, Any], options: GenerationOptions, *, stream: bool) -> bytes:
    streaming = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return msgspec.json.encode({**fields, **options, **streaming})


class _Text(msgspec.Struct, frozen=True):
    content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    """A choice of either endpoint, whole or a chunk of a stream."""

    text: str | None = None
    message: _Text | None = None
    delta: _Text | None = None
    finish_reason: str | None = None

    @property
    def shown(self) -> str:
        """Its text, "" where it has none."""
        holder = self.message or self.delta
        return (holder.content if holder is not None else self.text) or ""


class _Answer(msgspec.Struct, frozen=True):
    id: str
    choices: list[Choice]
    usage: Usage


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


class _Nodes(msgspec.Struct):
    nodes: list[dict[str, Any]]


def read_nodes(body: bytes) -> list[dict[str, Any]]:
    """The answer of /flexpipe/v1/nodes."""
    return msgspec.json.decode(body, type=_Nodes).nodes


class _Decisions(msgspec.Struct):
    decisions: list[dict[str, Any]]


def read_decisions(body: bytes) -> list[dict[str, Any]]:
    """The answer of /flexpipe/v1/decisions."""
    return msgspec.json.decode(body, type=_Decisions).decisions
