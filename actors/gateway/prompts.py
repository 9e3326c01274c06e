"""From a checked request to the sequences to generate: chat template, tokenising, and every check that needs a tokenizer.

Owns the tokenizer's thread. It must never know of HTTP or of where tokens come from.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec
import trio

from ...runtime.interface import Tokenizer
from ..generation import GenerationRequest
from .openai_api import (
    SEED_MODULUS,
    ChatRequest,
    CompletionRequest,
    max_tokens_of,
    prompts_of,
    sampling_of,
    stops_of,
)
from .openai_errors import ApiError, invalid_parameter

PROMPT_CHARACTERS_PER_TOKEN_MAX = 64
"""A longer prompt is refused before it is tokenised: no text has so long tokens, and megabytes would take seconds."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence to generate. ``echo`` is text to show before it."""

    request: GenerationRequest
    stops: tuple[str, ...]
    echo: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One HTTP request's sequences; choice i is the i-th. ``prompt_tokens`` counts each prompt once."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    stream: bool
    include_usage: bool
    continuous_usage: bool

    def traced(self, trace: str) -> Job:
        """The same, with the id by which logs tell of it."""
        requests = (msgspec.structs.replace(choice.request, trace=trace) for choice in self.choices)
        choices = tuple(
            replace(choice, request=request) for choice, request in zip(self.choices, requests, strict=True)
        )
        return replace(self, choices=choices)


class PromptReader:
    """Makes jobs. The tokenizer runs in one worker thread at a time: a long prompt delays nobody's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._thread = trio.CapacityLimiter(1)

    async def chat(self, request: ChatRequest, context_tokens: int) -> Job:
        """Render and encode the conversation. Raises `ApiError` where the template refuses it or it is too long."""
        # "developer" is OpenAI's newer name for the system role; no open model's template knows it.
        messages: list[dict[str, object]] = [
            {"role": "system" if message.role == "developer" else message.role, "content": message.text}
            for message in request.messages
        ]
        _check_characters("messages", sum(len(message.text) for message in request.messages), context_tokens)
        try:
            prompt = await self._in_thread(lambda: self._tokenizer.apply_chat_template(messages))
        except ValueError as error:
            raise invalid_parameter("messages", f"The model's chat template refuses `messages`: {error}") from None
        return self._job(request, "messages", [(tuple(prompt), "")], context_tokens)

    async def completion(self, request: CompletionRequest, context_tokens: int) -> Job:
        """Encode the prompts. Raises `ApiError` where one is empty, too long or has ids beyond the vocabulary."""
        prompts = []
        for prompt in prompts_of(request):
            if isinstance(prompt, str):
                _check_characters("prompt", len(prompt), context_tokens)
            prompts.append(await self._encoded(prompt, echo=bool(request.echo)))
        return self._job(request, "prompt", prompts, context_tokens)

    async def _encoded(self, prompt: str | tuple[int, ...], *, echo: bool) -> tuple[tuple[int, ...], str]:
        if isinstance(prompt, str):
            return tuple(await self._in_thread(lambda: self._tokenizer.encode(prompt))), prompt if echo else ""
        self._check_ids("prompt", prompt)
        return prompt, (await self._in_thread(lambda: self._tokenizer.decode(prompt)) if echo else "")

    def _job(
        self,
        request: ChatRequest | CompletionRequest,
        param: str,
        prompts: Sequence[tuple[tuple[int, ...], str]],
        context_tokens: int,
    ) -> Job:
        stop_token_ids = self._stop_token_ids(request)
        seed = secrets.randbelow(SEED_MODULUS) if request.seed is None else request.seed
        choices: list[Choice] = []
        for prompt, echo in prompts:
            max_tokens = _room(request, param, len(prompt), context_tokens)
            for _ in range(request.n or 1):
                # Each sequence has a seed of its own, or all of one seed would be the same text.
                params = sampling_of(request, (seed + len(choices)) % SEED_MODULUS)
                generation = GenerationRequest(prompt, params, max_tokens, stop_token_ids)
                choices.append(Choice(generation, stops_of(request), echo))
        options = request.stream_options
        return Job(
            choices=tuple(choices),
            prompt_tokens=sum(len(prompt) for prompt, _ in prompts),
            stream=bool(request.stream),
            include_usage=options is not None and (options.include_usage or options.continuous_usage_stats),
            continuous_usage=options is not None and options.continuous_usage_stats,
        )

    def _stop_token_ids(self, request: ChatRequest | CompletionRequest) -> tuple[int, ...]:
        asked = tuple(request.stop_token_ids or ())
        self._check_ids("stop_token_ids", asked)
        ends = () if request.ignore_eos else self._tokenizer.eos_token_ids
        return tuple(dict.fromkeys((*ends, *asked)))

    def _check_ids(self, param: str, token_ids: Sequence[int]) -> None:
        size = self._tokenizer.vocabulary_size
        bad = next((token_id for token_id in token_ids if not 0 <= token_id < size), None)
        if bad is not None:
            raise invalid_parameter(param, f"`{param}` has the token id {bad}; ids are 0 to {size - 1}.")

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await trio.to_thread.run_sync(function, limiter=self._thread)


def _room(request: ChatRequest | CompletionRequest, param: str, prompt_tokens: int, context_tokens: int) -> int:
    """The output tokens that the sequence may have."""
    if prompt_tokens == 0:
        raise invalid_parameter(param, f"`{param}` has no tokens; give some text.")
    room = context_tokens - prompt_tokens
    if room < 1:
        raise _too_long(
            param, f"`{param}` has {prompt_tokens} tokens; with one token of output the context", context_tokens
        )
    asked = max_tokens_of(request)
    if asked is None:
        return room
    if asked <= room:
        return asked
    if request.max_tokens is None and isinstance(request, CompletionRequest):
        return room
    name = "max_tokens" if request.max_tokens is not None else "max_completion_tokens"
    raise _too_long(
        name, f"`{name}` = {asked} and {prompt_tokens} tokens of prompt are too many; the context", context_tokens
    )


def _check_characters(param: str, characters: int, context_tokens: int) -> None:
    if characters > PROMPT_CHARACTERS_PER_TOKEN_MAX * context_tokens:
        raise _too_long(param, f"`{param}` has {characters} characters; the context", context_tokens)


def _too_long(param: str, sentence: str, context_tokens: int) -> ApiError:
    return invalid_parameter(param, f"{sentence} holds {context_tokens} tokens.", "context_length_exceeded")
