import asyncio
import inspect
import subprocess
import sys
from functools import partial

import flexpipe
import openai
import pytest
import trio
from flexpipe.actors.gateway.app import GatewayConfig
from flexpipe.client import AsyncClient, Client
from flexpipe.client_errors import (
    AuthenticationError,
    ConnectionFailedError,
    FlexPipeError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ServerError,
    StreamInterruptedError,
    UnavailableError,
    error_of_answer,
)
from flexpipe.client_events import TextReader
from flexpipe.client_messages import Usage
from gateway_harness import MODEL, running_gateway
from toy_token_source import ToyTokenSource

CHAT_TEXT = "user: hi\nassistant: "
MESSAGES = [{"role": "user", "content": "hi"}]
# What Python and httpx take for the end of a line, and JSON does not.
ODD_LINE_ENDS = "a\u2028b\x85c\x0bd\r\ne"


async def in_thread(function):
    return await trio.to_thread.run_sync(function)


def test_the_package_stays_light():
    heavy = ["torch", "numba", "transformers", "trio", "zmq", "starlette", "hypercorn"]
    code = (
        "import sys, flexpipe\n"
        "assert 'httpx' not in sys.modules\n"
        "flexpipe.Client, flexpipe.AsyncClient, flexpipe.FlexPipeError\n"
        f"loaded = [name for name in {heavy!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_the_public_face_is_complete():
    assert flexpipe.Client is Client
    assert flexpipe.AsyncClient is AsyncClient
    assert flexpipe.FlexPipeError is FlexPipeError
    with pytest.raises(AttributeError):
        flexpipe.nothing  # noqa: B018


def test_both_clients_offer_the_same():
    names = {name for name in vars(Client) if not name.startswith("_")} - {"close"}
    assert names == {name for name in vars(AsyncClient) if not name.startswith("_")} - {"aclose"}
    for name in names:
        sync, asynchronous = (inspect.signature(getattr(kind, name)) for kind in (Client, AsyncClient))
        assert sync.parameters == asynchronous.parameters


# --- the clients against a real server


async def test_the_client_chats_completes_and_streams():
    def use(url):
        with Client(url) as client:
            answer = client.chat("hi", temperature=0)
            assert (answer.text, answer.finish_reason) == (CHAT_TEXT, "stop")
            assert client.chat(MESSAGES, temperature=0, max_tokens=4).finish_reason == "length"
            assert client.complete("abc", temperature=0, stop="c").text == "ab"
            assert client.complete([97, 98], temperature=0).usage == Usage(2, 3, 5)
            with client.chat("hi", temperature=0, stream=True) as stream:
                assert "".join(stream) == stream.text == CHAT_TEXT
            assert stream.finish_reason == "stop"
            assert stream.usage.completion_tokens == len(CHAT_TEXT) + 1
            assert "".join(client.complete(ODD_LINE_ENDS, temperature=0, stream=True)) == ODD_LINE_ENDS

    async with running_gateway() as gateway:
        await in_thread(partial(use, gateway.url))


async def use_async_client(url):
    async with AsyncClient(url) as client:
        answer = await client.chat("hi", temperature=0)
        assert (answer.text, answer.finish_reason) == (CHAT_TEXT, "stop")
        assert (await client.complete([97, 98], temperature=0)).usage == Usage(2, 3, 5)
        async with await client.chat("hi", temperature=0, stream=True) as stream:
            assert "".join([text async for text in stream]) == stream.text == CHAT_TEXT
        assert stream.usage.completion_tokens == len(CHAT_TEXT) + 1
        odd = await client.complete(ODD_LINE_ENDS, temperature=0, stream=True)
        assert "".join([text async for text in odd]) == ODD_LINE_ENDS
        assert [model.id for model in await client.models()] == [MODEL]
        assert await client.ready()
        assert (await client.status())["epoch"] == 7
        with pytest.raises(InvalidRequestError):
            await client.complete("x", temperature=-1)


async def test_the_asynchronous_client_works_under_trio():
    async with running_gateway() as gateway:
        await use_async_client(gateway.url)


async def test_the_asynchronous_client_works_under_asyncio():
    async with running_gateway() as gateway:
        await in_thread(lambda: asyncio.run(use_async_client(gateway.url)))


async def test_facts_are_typed():
    def use(url, source):
        with Client(url) as client:
            (model,) = client.models()
            assert (model.id, model.max_model_len) == (MODEL, 4096)
            assert client.status()["stages"][1]["stage"] == 1
            assert client.ready()
            source.lose_stage()
            readiness = client.ready()
            assert not readiness
            assert readiness.reason == "stage 1 is lost"

    async with running_gateway() as gateway:
        await in_thread(partial(use, gateway.url, gateway.source))


async def test_leaving_a_stream_early_ends_its_generation():
    async with running_gateway() as gateway, AsyncClient(gateway.url) as client:
        stream = await client.complete("abc " * 100, temperature=0, max_tokens=3000, ignore_eos=True, stream=True)
        async with stream:
            async for _ in stream:
                gateway.source.hold()
                break
        await gateway.source.until_idle()


async def test_a_lost_stream_raises_after_the_texts_that_came():
    async with running_gateway() as gateway, AsyncClient(gateway.url) as client:
        stream = await client.complete("abc " * 100, temperature=0, max_tokens=3000, ignore_eos=True, stream=True)
        texts = [await anext(stream)]
        gateway.source.lose_stage()
        with pytest.raises(StreamInterruptedError) as interruption:
            await collect(stream, texts)
        assert interruption.value.code == "stage_lost"
        assert "".join(texts) == stream.text
        assert ("abc " * 100).startswith(stream.text[:400])


async def collect(stream, texts):
    async for text in stream:
        texts.append(text)


async def test_errors_have_types_and_say_what_is_wrong():
    source = ToyTokenSource(requests_max=0)
    async with running_gateway(source, GatewayConfig(api_keys=("right",))) as gateway:
        async with AsyncClient(gateway.url, api_key="wrong") as client:
            with pytest.raises(AuthenticationError) as refusal:
                await client.chat("hi")
            assert (refusal.value.status, refusal.value.code) == (401, "invalid_api_key")
        async with AsyncClient(gateway.url, api_key="right") as client:
            with pytest.raises(InvalidRequestError) as refusal:
                await client.chat("hi", temperature=-1, stream=True)
            assert (refusal.value.status, refusal.value.param) == (400, "temperature")
            assert refusal.value.request_id
            with pytest.raises(OverloadedError) as refusal:
                await client.chat("hi", stream=True)
            assert refusal.value.retry_after_s == 3
            gateway.source.lose_stage()
            with pytest.raises(UnavailableError) as refusal:
                await client.chat("hi")
            assert refusal.value.code == "not_ready"
        async with AsyncClient(gateway.url, api_key="right", model="other") as client:
            with pytest.raises(NotFoundError):
                await client.complete("x")


async def test_a_server_that_is_not_there_is_a_connection_error():
    async with AsyncClient("http://127.0.0.1:9") as client:
        with pytest.raises(ConnectionFailedError):
            await client.chat("hi")
        with pytest.raises(ConnectionFailedError):
            await client.ready()


def test_an_answer_without_json_is_an_error_with_its_status():
    error = error_of_answer(502, b"<html>\xff", "soon", None)
    assert isinstance(error, ServerError)
    assert (error.status, error.retry_after_s) == (502, None)
    assert "502" in str(error)


# --- the stream's bytes


FRAMES = (
    b'data: {"choices":[{"text":"a"}]}\n\ndata: {"choices":[{"text":"b","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)


@pytest.mark.parametrize("part_bytes", [1, 7, 1000])
def test_a_stream_reads_the_same_however_its_bytes_arrive(part_bytes):
    state = TextReader()
    for start in range(0, len(FRAMES), part_bytes):
        state.feed(FRAMES[start : start + part_bytes])
    state.feed(None)
    assert [state.take(), state.take(), state.take()] == ["a", "b", None]
    assert (state.text, state.finish_reason) == ("ab", "stop")


def test_a_stream_without_done_is_interrupted_after_its_texts():
    state = TextReader()
    state.feed(FRAMES[: FRAMES.index(b"data: [DONE]")])
    state.feed(None)
    assert [state.take(), state.take()] == ["a", "b"]
    with pytest.raises(StreamInterruptedError):
        state.take()


# --- the openai package, unmodified


def openai_client(gateway, key="any"):
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


async def test_the_openai_client_works_from_a_thread():
    def use(url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [MODEL]
            answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, logprobs=True)
            assert answer.choices[0].message.content == CHAT_TEXT
            assert answer.choices[0].finish_reason == "stop"
            assert len(answer.choices[0].logprobs.content) == len(CHAT_TEXT)
            assert answer.usage.completion_tokens == len(CHAT_TEXT) + 1
            again = [*MESSAGES, answer.choices[0].message.model_dump(), *MESSAGES]
            assert client.chat.completions.create(model=MODEL, messages=again).choices[0].message.content
            completion = client.completions.create(
                model=MODEL,
                prompt=["ab", "cd"],
                temperature=0,
                logprobs=2,
                extra_body={"top_k": 5, "ignore_eos": False},
            )
            assert [choice.text for choice in completion.choices] == ["ab", "cd"]
            assert completion.choices[0].logprobs.tokens == ["a", "b"]
            stream = client.chat.completions.create(
                model=MODEL, messages=MESSAGES, temperature=0, n=2, stream=True, stream_options={"include_usage": True}
            )
            chunks = list(stream)
            assert chunks[-1].usage.total_tokens == 3 * (len(CHAT_TEXT) + 1)
            for index in range(2):
                parts = [choice.delta.content or "" for c in chunks for choice in c.choices if choice.index == index]
                assert "".join(parts) == CHAT_TEXT
            odd = client.completions.create(model=MODEL, prompt=ODD_LINE_ENDS, temperature=0, stream=True)
            assert "".join(chunk.choices[0].text for chunk in odd) == ODD_LINE_ENDS
            with pytest.raises(openai.BadRequestError) as refusal:
                client.chat.completions.create(model=MODEL, messages=MESSAGES, n=10**6)
            assert refusal.value.param == "n"
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="other", messages=MESSAGES)

    async with running_gateway() as gateway:
        await in_thread(partial(use, gateway.url))


# A stream that fails leaves generators of openai's and httpx2's unclosed.
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_the_asynchronous_openai_client_works_under_trio():
    async with running_gateway() as gateway, openai_client(gateway) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == CHAT_TEXT
        gateway.source.hold()
        stream = await client.completions.create(model=MODEL, prompt="abc", stream=True)
        gateway.source.lose_stage()
        with pytest.raises(openai.APIError) as failure:
            async for _ in stream:
                pass
        assert failure.value.code == "stage_lost"
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)


async def test_the_openai_client_meets_keys_and_full_queues():
    source = ToyTokenSource(requests_max=0)
    async with running_gateway(source, GatewayConfig(api_keys=("right",))) as gateway:
        for key, expected in (("wrong", openai.AuthenticationError), ("right", openai.RateLimitError)):
            async with openai_client(gateway, key) as client:
                with pytest.raises(expected):
                    await client.chat.completions.create(model=MODEL, messages=MESSAGES)


async def test_many_streams_at_once_each_get_their_own_text():
    texts = {}

    async def ask(client, prompt):
        stream = await client.complete(prompt, temperature=0, max_tokens=100, stream=True)
        texts[prompt] = "".join([text async for text in stream])

    async with running_gateway() as gateway, AsyncClient(gateway.url) as client, trio.open_nursery() as nursery:
        for number in range(32):
            nursery.start_soon(ask, client, f"stream number {number} says this")
    assert len(texts) == 32
    assert all(text == prompt for prompt, text in texts.items())
