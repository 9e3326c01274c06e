"""What gateways and leaders say to each other: there and back, and what neither would say."""

import math

import msgspec
import pytest
from flexpipe.actors.cluster.token_messages import (
    FROM_GATEWAY,
    SEQUENCE_TOKENS_MAX,
    TO_GATEWAY,
    Accepted,
    AskRefactor,
    GatewayHello,
    GatewayWelcome,
    RefactorTold,
    StreamFailed,
    StreamTokens,
    Tokens,
    check_refactor,
    payload_of,
    submit_message,
    submitted,
)
from flexpipe.actors.generation import GenerationRequest, ModelFacts, PipelineStatus
from flexpipe.actors.refactor import RefactorFailed, RefactorProgress, RefactorRequest
from flexpipe.runtime.interface import SampledToken, SamplingParams
from flexpipe.transport.interface import FrameError
from toy_token_source import ToyTokenSource

PARAMS = SamplingParams(temperature=0.7, top_k=5, seed=2**62, logprobs=2)
REQUEST = GenerationRequest((1, 2, 999), PARAMS, 10, (7, 8))
VOCABULARY = 1000


@pytest.mark.parametrize("outputs", [None, (), (3, 0, 999)])
def test_a_request_comes_over_as_it_was(outputs):
    message = FROM_GATEWAY.decode(FROM_GATEWAY.encode(submit_message(4, REQUEST, outputs)))
    assert message.stream == 4
    assert submitted(message, VOCABULARY) == (REQUEST, outputs)


@pytest.mark.parametrize(
    "message",
    [
        Accepted(2**53 - 1),
        Tokens((StreamTokens(1, 5, (SampledToken(3), SampledToken(4, -0.5, ((4, -0.5), (3, -1.5)))), "stop"),)),
        StreamFailed(1, "overloaded", "256 requests are waiting already", 1.0),
        GatewayWelcome("n1", 4, 1, ToyTokenSource().status()),
        GatewayWelcome("n1", 4, 1, PipelineStatus(False, "why", 0, ModelFacts("m", "M", 2, 3), (), 0, 0)),
        RefactorTold(3, RefactorProgress(4, "load", 1, 2, "half", 1)),
        RefactorTold(3, RefactorFailed("lost", "gone")),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_a_leader_says_comes_over_as_it_was(message):
    assert TO_GATEWAY.decode(TO_GATEWAY.encode(message)) == message


def test_neither_end_accepts_what_only_the_other_may_say():
    with pytest.raises(FrameError):
        FROM_GATEWAY.decode(TO_GATEWAY.encode(Accepted(1)))
    with pytest.raises(FrameError):
        TO_GATEWAY.decode(FROM_GATEWAY.encode(GatewayHello("g", "m", 0)))


def submit(**changed):
    return msgspec.structs.replace(submit_message(1, REQUEST, None), **changed)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (submit(prompt=b""), "has no prompt"),
        (submit(prompt=b"abc"), "3 bytes are no int32"),
        (submit(prompt=b"\xff\xff\xff\xff"), "between -1 and -1"),
        (submit(prompt=b"\xe8\x03\x00\x00"), "between 1000 and 1000; the model has 1000"),
        (submit(outputs=b"\xe8\x03\x00\x00"), "between 1000 and 1000"),
        (submit(outputs=bytes(40)), "was at its end"),
        (submit(outputs=b"\x07\x00\x00\x00"), "was at its end"),
        (submit(params=SamplingParams(temperature=math.nan)), "no token can be drawn"),
        (submit(params=SamplingParams(repetition_penalty=0.0)), "no token can be drawn"),
        (submit(params=SamplingParams(presence_penalty=math.inf)), "no token can be drawn"),
        (submit(params=SamplingParams(logprobs=10_000)), "no token can be drawn"),
        (submit(params=SamplingParams(top_k=-1)), "no token can be drawn"),
    ],
)
def test_a_request_that_no_gateway_would_send_is_garbage(message, sentence):
    decoded = FROM_GATEWAY.decode(FROM_GATEWAY.encode(message))
    with pytest.raises(FrameError, match=sentence):
        submitted(decoded, VOCABULARY)


@pytest.mark.parametrize(
    "message",
    [
        submit(stream=-1),
        submit(max_tokens=0),
        submit(stop_token_ids=(1,) * 257),
        submit(prompt=bytes(4 * SEQUENCE_TOKENS_MAX + 4)),
        GatewayHello("", "m", 0),
        GatewayHello("g" * 64, "m", 0),
    ],
    ids=lambda message: str(message)[:40],
)
def test_what_is_out_of_bounds_is_not_even_read(message):
    with pytest.raises(FrameError):
        FROM_GATEWAY.decode(FROM_GATEWAY.encode(message))


def test_a_prompt_that_cannot_be_sent_is_refused_here():
    request = msgspec.structs.replace(REQUEST, prompt=(1,) * (SEQUENCE_TOKENS_MAX + 1))
    with pytest.raises(FrameError, match="a leader is sent at most"):
        submit_message(1, request, None)


@pytest.mark.parametrize(
    "request_",
    [RefactorRequest(), RefactorRequest(stages=1, move="x"), RefactorRequest(stages=2, strategy="by magic")],
)
def test_a_refactoring_that_no_gateway_would_let_pass_is_garbage(request_):
    message = FROM_GATEWAY.decode(FROM_GATEWAY.encode(AskRefactor(1, request_)))
    with pytest.raises(FrameError, match="a refactoring asks for one of"):
        check_refactor(message.request)


@pytest.mark.parametrize("parts", [[], [memoryview(b"a"), memoryview(b"b")]])
def test_a_message_has_one_part(parts):
    with pytest.raises(FrameError, match="parts"):
        payload_of(parts)
