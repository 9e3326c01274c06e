"""What a gateway and the leader say to each other over one link, which the gateway makes. This file is the protocol.

The gateway says `GatewayHello` and is answered by `GatewayWelcome` or `GatewayRefused`; only then anything else is said. A stream
or call is a number of the gateway's, higher than those before it in this link. A link that is lost takes all of its streams and
calls with it at the leader; the gateway has what it needs to submit them again to whoever leads next. Token ids travel as
little-endian int32 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from ...runtime.interface import SampledToken, SamplingParams
from ...transport.codec import Codec
from ...transport.interface import FrameError, LinkLimits
from ..generation import FailureKind, Finish, GenerationRequest, PipelineStatus
from ..messages import Message
from ..refactor import RefactorEvent, RefactorRequest
from ..route import STRATEGIES

VERSION_LOWEST = 1
VERSION_HIGHEST = 1
"""The versions of this conversation that this build speaks; the leader takes the highest that both do."""
GATEWAY_PURPOSE = "gateway"
"""What a gateway's link to the leader's listener is for."""
SEQUENCE_TOKENS_MAX = 1 << 20
"""Tokens of a prompt, or of what was delivered of it: 4 MiB each."""
STOP_TOKENS_MAX = 256
TRACE_CHARACTERS_MAX = 64
LOGPROBS_MAX = 64
MESSAGE_TOKENS_MAX = 512
"""Tokens of one `Tokens`."""
DECISIONS_MAX = 1000
SENTENCE_CHARACTERS_MAX = 4096
GATEWAY_LIMITS = LinkLimits(message_bytes_max=16 * 1024 * 1024, heartbeat_interval_s=0.25, silence_s_max=1.5)
"""A leader that is gone is noticed within 2 s, and so is a gateway."""

Number = Annotated[int, Meta(ge=0, lt=2**53)]
Sentence = Annotated[str, Meta(max_length=SENTENCE_CHARACTERS_MAX)]
TokenBytes = Annotated[bytes, Meta(max_length=4 * SEQUENCE_TOKENS_MAX)]
Refused = Literal["refused", "busy", "same-shape"]
"""Which `RefactorRefusedError` it was."""


# --- gateway -> leader ------------------------------------------------------------------------------------------------


class GatewayHello(Message, frozen=True, tag=True):
    """Gateway → leader, first. ``model`` is the digest of the model on its node, ``term`` the highest that it has heard of."""

    gateway: Annotated[str, Meta(min_length=1, max_length=63)]
    model: Annotated[str, Meta(max_length=256)]
    term: Number
    lowest_version: Number = VERSION_LOWEST
    highest_version: Number = VERSION_HIGHEST


class Submit(Message, frozen=True, tag=True):
    """Gateway → leader: generate. Answered by `Accepted` and `Tokens`..., or by `StreamFailed`, which also may come later.

    ``outputs``, None for a new request, are the tokens that were delivered of it; see `TokenSource.open`.
    """

    stream: Number
    prompt: TokenBytes
    outputs: TokenBytes | None
    params: SamplingParams
    max_tokens: Annotated[int, Meta(ge=1, lt=2**31)]
    stop_token_ids: Annotated[tuple[Number, ...], Meta(max_length=STOP_TOKENS_MAX)]
    trace: Annotated[str, Meta(max_length=TRACE_CHARACTERS_MAX)] = ""


class Cancel(Message, frozen=True, tag=True):
    """Gateway → leader: nobody wants ``stream`` any more. Not answered; of a stream that ended: nothing."""

    stream: Number


class AskRefactor(Message, frozen=True, tag=True):
    """Gateway → leader: carry ``request`` out. Answered by `RefactorTold`... up to the last event, or by `RefactorRefused`."""

    call: Number
    request: RefactorRequest


class StopWatching(Message, frozen=True, tag=True):
    """Gateway → leader: tell no more of the refactoring of ``call``, which goes on. Not answered."""

    call: Number


class AskDecisions(Message, frozen=True, tag=True):
    """Gateway → leader: what did the autopilot decide last? Answered by `DecisionsTold`."""

    call: Number
    count: Annotated[int, Meta(ge=1, le=DECISIONS_MAX)]


class AskNodes(Message, frozen=True, tag=True):
    """Gateway → leader: which nodes are there? Answered by `NodesTold`."""

    call: Number


class AskDrain(Message, frozen=True, tag=True):
    """Gateway → leader: move everything off ``node`` and let it go. Answered by `DrainTold`, at once."""

    call: Number
    node: Annotated[str, Meta(max_length=63)]


# --- leader -> gateway ------------------------------------------------------------------------------------------------


class GatewayWelcome(Message, frozen=True, tag=True):
    """Leader → gateway: ask. What follows on this link is of ``term``; ``status`` is true at this moment."""

    leader: Annotated[str, Meta(max_length=63)]
    term: Number
    version: Number
    status: PipelineStatus


class GatewayRefused(Message, frozen=True, tag=True):
    """Leader → gateway: not here; the link ends. "term": the gateway has heard of a later leader than this one."""

    reason: Literal["name", "term", "model", "version", "full"]
    sentence: Sentence


class Accepted(Message, frozen=True, tag=True):
    """Leader → gateway: ``stream`` is in the queue, or further."""

    stream: Number


class StreamTokens(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Output tokens number ``index`` and on of ``stream``; ``finish`` is the last one's, see `TokenEvent`."""

    stream: Number
    index: Number
    tokens: Annotated[tuple[SampledToken, ...], Meta(min_length=1, max_length=MESSAGE_TOKENS_MAX)]
    finish: Finish | None = None


class Tokens(Message, frozen=True, tag=True):
    """Leader → gateway: what was made since the last one, of every stream that it was made of."""

    streams: Annotated[tuple[StreamTokens, ...], Meta(min_length=1, max_length=MESSAGE_TOKENS_MAX)]


class StreamFailed(Message, frozen=True, tag=True):
    """Leader → gateway: ``stream`` was refused or lost; see `GenerationFailedError`. Nothing of it follows."""

    stream: Number
    reason: FailureKind
    sentence: Sentence
    retry_after_s: float | None


class StatusPush(Message, frozen=True, tag=True):
    """Leader → gateway, when it has changed, at a bounded rate: what is true. Not answered; a later one says all of it again."""

    status: PipelineStatus


class RefactorTold(Message, frozen=True, tag=True):
    """Leader → gateway: something happened in the refactoring of ``call``."""

    call: Number
    event: RefactorEvent


class RefactorRefused(Message, frozen=True, tag=True):
    """Leader → gateway: it does not begin; nothing was changed."""

    call: Number
    reason: Refused
    sentence: Sentence


class DecisionsTold(Message, frozen=True, tag=True):
    """Leader → gateway: JSON documents, the oldest first, which a gateway need not understand; None: nobody decides anything."""

    call: Number
    decisions: Annotated[tuple[bytes, ...], Meta(max_length=DECISIONS_MAX)] | None


class NodesTold(Message, frozen=True, tag=True):
    """Leader → gateway: a JSON document for each node, which a gateway need not understand."""

    call: Number
    nodes: Annotated[tuple[bytes, ...], Meta(max_length=NODES_MAX)]


class DrainTold(Message, frozen=True, tag=True):
    """Leader → gateway: it has begun; with a ``sentence``, why it cannot."""

    call: Number
    sentence: Sentence


FromGateway = GatewayHello | Submit | Cancel | AskRefactor | StopWatching | AskDecisions | AskNodes | AskDrain
ToGateway = (
    GatewayWelcome
    | GatewayRefused
    | Accepted
    | Tokens
    | StreamFailed
    | StatusPush
    | RefactorTold
    | RefactorRefused
    | DecisionsTold
    | NodesTold
    | DrainTold
)

FROM_GATEWAY: Codec[FromGateway] = Codec(FromGateway)
TO_GATEWAY: Codec[ToGateway] = Codec(ToGateway)
"""One codec a direction: each end accepts only what the other may say."""


def payload_of(parts: Sequence[memoryview]) -> memoryview:
    """The one part that a message of this conversation has. Raises `FrameError`."""
    if len(parts) != 1:
        raise FrameError(f"a message has {len(parts)} parts; those of a gateway and its leader have one")
    return parts[0]


def submit_message(stream: int, request: GenerationRequest, outputs: tuple[int, ...] | None) -> Submit:
    """``request``, and what was delivered of it, as `Submit`. Raises `FrameError` where it is longer than can be sent."""
    if (
        max(len(request.prompt), len(outputs or ())) > SEQUENCE_TOKENS_MAX
        or len(request.stop_token_ids) > STOP_TOKENS_MAX
    ):
        raise FrameError(
            f"the request has {len(request.prompt)} prompt tokens and {len(request.stop_token_ids)} stop tokens; a leader is sent "
            f"at most {SEQUENCE_TOKENS_MAX} and {STOP_TOKENS_MAX}"
        )
    return Submit(
        stream,
        _packed(request.prompt),
        None if outputs is None else _packed(outputs),
        request.params,
        request.max_tokens,
        request.stop_token_ids,
        request.trace,
    )


def submitted(message: Submit, vocabulary_size: int) -> tuple[GenerationRequest, tuple[int, ...] | None]:
    """The request in ``message`` and what was delivered of it. Raises `FrameError` where no gateway of ours would say that."""
    prompt = _unpacked(message.prompt, vocabulary_size)
    outputs = None if message.outputs is None else _unpacked(message.outputs, vocabulary_size)
    if not prompt:
        raise FrameError(f"stream {message.stream} has no prompt")
    if outputs is not None and (
        len(outputs) >= message.max_tokens or not set(message.stop_token_ids).isdisjoint(outputs)
    ):
        raise FrameError(f"stream {message.stream} is to go on, and was at its end")
    _check(message.params)
    return GenerationRequest(prompt, message.params, message.max_tokens, message.stop_token_ids, message.trace), outputs


def check_refactor(request: RefactorRequest) -> None:
    """Raise `FrameError` unless a gateway of ours may have let it pass. Whether it can be carried out is another question."""
    given = [plan for plan in (request.stages, request.partition, request.move, request.replicas) if plan is not None]
    if len(given) != 1 or request.strategy not in STRATEGIES:
        raise FrameError("a refactoring asks for one of stages, partition, move and replicas, by a known strategy")


def _packed(tokens: tuple[int, ...]) -> bytes:
    return np.asarray(tokens, dtype="<i4").tobytes()


def _unpacked(data: bytes, vocabulary_size: int) -> tuple[int, ...]:
    if len(data) % 4:
        raise FrameError(f"{len(data)} bytes are no int32 token ids")
    ids = np.frombuffer(data, dtype="<i4")
    if ids.size and (ids.min() < 0 or ids.max() >= vocabulary_size):
        raise FrameError(f"token ids lie between {ids.min()} and {ids.max()}; the model has {vocabulary_size}")
    return tuple(ids.tolist())


def _check(params: SamplingParams) -> None:
    numbers = (
        params.temperature,
        params.top_p,
        params.min_p,
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
    )
    if not (
        all(map(math.isfinite, numbers))
        and params.temperature >= 0
        and params.repetition_penalty > 0
        and params.top_k >= 0
        and 0 <= (params.logprobs or 0) <= LOGPROBS_MAX
    ):
        raise FrameError(f"no token can be drawn by these parameters: {params}")


NODES_MAX = 4096
