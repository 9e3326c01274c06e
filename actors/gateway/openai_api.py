"""What clients may send to /v1/chat/completions and /v1/completions, and the check of every field.

Owns field names, ranges and limits: OpenAI's documented parameters and the vLLM extensions that FlexPipe acts on. A
field that is neither acted on nor known to be harmless is an error that names it. It must never know of HTTP, tokens or
models: what depends on a tokenizer (ids, lengths) is checked in `prompts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ...runtime.interface import SamplingParams
from .openai_errors import invalid_parameter, unsupported_parameter
from .request_json import decode_json

CHOICES_MAX = 128
"""Sequences of one HTTP request: `n` times the number of prompts."""
MESSAGES_MAX = 4096
STOP_STRINGS_MAX = 16
STOP_CHARACTERS_MAX = 1000
STOP_TOKEN_IDS_MAX = 64
TOP_LOGPROBS_MAX = 20
NAME_CHARACTERS_MAX = 256
REPETITION_PENALTY_MAX = 10.0
GREEDY_BELOW_TEMPERATURE = 1e-5
"""Lower temperatures are greedy: a division by them would overflow float32 logits."""
COMPLETION_TOKENS_DEFAULT = 16
"""OpenAI's default `max_tokens` of /v1/completions; a chat may go on to the end of the context."""
SEED_MODULUS = 2**63

Ignored = object
"""Accepted whatever it holds: it concerns OpenAI's accounts, caches and tools, never the text of an answer."""
Unsupported = object
"""Not supported yet, but for the values that ask for nothing (`HARMLESS`)."""

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenLimit = Annotated[int, Meta(ge=1, le=2**31 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=STOP_CHARACTERS_MAX)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream tells besides text. ``continuous_usage_stats`` (vLLM) puts the usage so far into every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters that both endpoints share. None means the default."""

    model: Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
    n: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenLimit | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=STOP_STRINGS_MAX)] | None = None
    seed: Int64 | None = None

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None

    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=REPETITION_PENALTY_MAX)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=STOP_TOKEN_IDS_MAX)] | None = None
    ignore_eos: bool | None = None

    logit_bias: Unsupported = None

    user: Ignored = None


class TextPart(msgspec.Struct, frozen=True):
    """One part of a message's content. Other kinds than text are told apart in `_check_messages`."""

    type: Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)]
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message. The fields after ``name`` are what OpenAI's client sends back, null, with an assistant message."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)] | None = None
    refusal: Unsupported = None
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Unsupported = None
    tool_call_id: Unsupported = None

    @property
    def text(self) -> str:
        """The content, parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class ChatRequest(GenerationFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions. ``max_completion_tokens`` is the newer name of ``max_tokens``."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None

    tools: Unsupported = None
    tool_choice: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    response_format: Unsupported = None
    modalities: Unsupported = None
    audio: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    moderation: Unsupported = None

    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    parallel_tool_calls: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None


class CompletionRequest(GenerationFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/completions. ``prompt``: a text, several, one list of token ids, or several."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = None
    suffix: Unsupported = None


HARMLESS: Mapping[str, tuple[object, ...]] = {
    "logit_bias": (None, {}),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "moderation": (None,),
}
"""The unsupported parameters, each with the values that are accepted."""

_MESSAGE_HARMLESS: Mapping[str, tuple[object, ...]] = {
    "refusal": (None,),
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "tool_calls": (None, []),
    "tool_call_id": (None,),
}

_CHAT_DECODER = msgspec.json.Decoder(ChatRequest)
_COMPLETION_DECODER = msgspec.json.Decoder(CompletionRequest)


def decode_chat(body: bytes) -> ChatRequest:
    """Read and check the body of a chat request. Raises `ApiError` (400) that names the parameter."""
    request = decode_json(_CHAT_DECODER, body)
    _check_shared(request)
    _check_messages(request.messages)
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid_parameter("top_logprobs", "`top_logprobs` needs `logprobs` to be true.")
    if None not in {request.max_tokens, request.max_completion_tokens} and (
        request.max_tokens != request.max_completion_tokens
    ):
        raise invalid_parameter("max_tokens", "`max_tokens` and `max_completion_tokens` disagree; give one of them.")
    return request


def decode_completion(body: bytes) -> CompletionRequest:
    """Read and check the body of a completion request. Raises `ApiError` (400) that names the parameter."""
    request = decode_json(_COMPLETION_DECODER, body)
    _check_shared(request)
    if request.best_of not in {None, 1, request.n}:
        raise unsupported_parameter("best_of", "`best_of` is not supported yet; leave it out or make it equal to `n`.")
    if request.echo and request.logprobs is not None:
        raise unsupported_parameter("echo", "`echo` together with `logprobs` is not supported yet; choose one.")
    count = len(prompts_of(request))
    if count * (request.n or 1) > CHOICES_MAX:
        raise invalid_parameter("n", f"{count} prompts times `n` = {request.n or 1} is over {CHOICES_MAX} sequences.")
    return request


def prompts_of(request: CompletionRequest) -> tuple[str | tuple[int, ...], ...]:
    """The request's prompts, each a text or token ids. Raises `ApiError` where kinds are mixed or there are none."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return (prompt,)
    if not prompt:
        raise invalid_parameter("prompt", "`prompt` is an empty list; give at least one prompt.")
    if all(isinstance(part, int) for part in prompt):
        return (tuple(part for part in prompt if isinstance(part, int)),)
    if all(isinstance(part, str) for part in prompt) or all(isinstance(part, list) for part in prompt):
        return tuple(tuple(part) if isinstance(part, list) else part for part in prompt if not isinstance(part, int))
    raise invalid_parameter("prompt", "`prompt` mixes texts and token ids; use one kind in one request.")


def sampling_of(request: ChatRequest | CompletionRequest, seed: int) -> SamplingParams:
    """How to draw one sequence's tokens; ``seed`` is the sequence's own, in ``[0, SEED_MODULUS)``."""
    temperature = _or(request.temperature, 1.0)
    return SamplingParams(
        temperature=temperature if temperature >= GREEDY_BELOW_TEMPERATURE else 0.0,
        top_k=max(0, _or(request.top_k, 0)),
        top_p=_or(request.top_p, 1.0),
        min_p=_or(request.min_p, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        seed=seed,
        logprobs=_alternatives(request),
    )


def stops_of(request: GenerationFields) -> tuple[str, ...]:
    """The stop strings."""
    if request.stop is None:
        return ()
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)


def max_tokens_of(request: ChatRequest | CompletionRequest) -> int | None:
    """The output tokens asked for, None for "to the end of the context"."""
    if isinstance(request, ChatRequest):
        return request.max_completion_tokens or request.max_tokens
    return request.max_tokens or COMPLETION_TOKENS_DEFAULT


def _alternatives(request: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_shared(request: GenerationFields) -> None:
    _check_unsupported(request, HARMLESS, prefix="")
    if request.stream_options is not None and not request.stream:
        raise invalid_parameter("stream_options", "`stream_options` needs `stream` to be true.")


def _check_messages(messages: list[ChatMessage]) -> None:
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        _check_unsupported(message, _MESSAGE_HARMLESS, prefix=f"{where}.")
        if message.content is None or message.content == []:
            raise invalid_parameter(f"{where}.content", f"`{where}.content` is empty; every message needs a text.")
        for part in message.content if isinstance(message.content, list) else ():
            if part.type != "text":
                raise unsupported_parameter(f"{where}.content", f"`{where}.content` may hold parts of type text only.")
            if part.text is None:
                raise invalid_parameter(f"{where}.content", f"`{where}.content` has a text part without a text.")


def _check_unsupported(fields: msgspec.Struct, table: Mapping[str, tuple[object, ...]], prefix: str) -> None:
    for name, harmless in table.items():
        if getattr(fields, name, None) not in harmless:
            raise unsupported_parameter(prefix + name)
