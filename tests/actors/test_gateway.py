import io
import json
from contextlib import suppress

import pytest
import trio
from flexpipe.actors.event_log import EventLog
from flexpipe.actors.gateway.app import GatewayConfig
from flexpipe.actors.gateway.boundary import BodyLimits, Boundary
from flexpipe.actors.gateway.http_server import ServerLimits
from gateway_harness import (
    HANG_S,
    MODEL,
    chat_body,
    completion_body,
    frames_of,
    raw_request,
    read_response,
    read_to_end,
    read_until,
    running_gateway,
)
from toy_token_source import ToyTokenSource

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# The toy model says its prompt again: for a chat, the rendered conversation.
CHAT_TEXT = "user: hi\nassistant: "
CHAT_TOKENS = len(CHAT_TEXT) + 1


def error_of(response, status):
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    return error


async def post(gateway, path, body, **options):
    async with gateway.http() as http:
        return await http.post(path, json=body, **options)


async def metric(gateway, line):
    async with gateway.http() as http:
        exposition = (await http.get("/metrics")).text
    values = (float(each.rsplit(" ", 1)[1]) for each in exposition.splitlines() if each.startswith(line))
    return next(values, None)


# --- answers


async def test_a_chat_is_answered_whole():
    async with running_gateway() as gateway:
        response = await post(gateway, CHAT, chat_body())
        answer = response.json()
        assert response.status_code == 200
        assert answer["object"] == "chat.completion"
        assert answer["id"] == "chatcmpl-" + response.headers["x-request-id"]
        assert answer["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": CHAT_TEXT, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        assert answer["usage"] == {
            "prompt_tokens": CHAT_TOKENS,
            "completion_tokens": CHAT_TOKENS,
            "total_tokens": 2 * CHAT_TOKENS,
        }


async def test_a_chat_is_streamed_with_role_text_finish_and_usage():
    async with running_gateway() as gateway:
        body = chat_body(stream=True, stream_options={"include_usage": True})
        response = await post(gateway, CHAT, body)
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, usage, done = frames_of(response.content)
        assert done == "[DONE]"
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == CHAT_TOKENS
        assert all(chunk["usage"] is None for chunk in chunks)
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == CHAT_TEXT
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1


async def test_a_stream_says_nothing_of_usage_unless_asked():
    async with running_gateway() as gateway:
        response = await post(gateway, CHAT, chat_body(stream=True))
        assert all("usage" not in chunk for chunk in frames_of(response.content)[:-1])


async def test_continuous_usage_counts_up():
    async with running_gateway() as gateway:
        options = {"include_usage": True, "continuous_usage_stats": True}
        response = await post(gateway, COMPLETIONS, completion_body("hello", stream=True, stream_options=options))
        counts = [chunk["usage"]["completion_tokens"] for chunk in frames_of(response.content)[:-1]]
        assert counts == sorted(counts)
        assert counts[-1] == 6


async def test_a_completion_is_streamed_and_whole_alike():
    async with running_gateway() as gateway:
        whole = (await post(gateway, COMPLETIONS, completion_body("déjà vu", max_tokens=50))).json()
        stream = await post(gateway, COMPLETIONS, completion_body("déjà vu", max_tokens=50, stream=True))
        chunks = frames_of(stream.content)[:-1]
        assert whole["choices"][0]["text"] == "déjà vu"
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "déjà vu"
        assert whole["choices"][0]["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_max_tokens_ends_with_length():
    async with running_gateway() as gateway:
        choice = (await post(gateway, COMPLETIONS, completion_body("abcdef", max_tokens=3))).json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("abc", "length")


async def test_a_stop_string_cuts_the_text_and_cancels_the_generation():
    async with running_gateway() as gateway:
        body = completion_body("one two three " * 50, max_tokens=700, stop=["two", "never"])
        answer = (await post(gateway, COMPLETIONS, body)).json()
        assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("one ", "stop")
        assert answer["usage"]["completion_tokens"] == 7
        await gateway.source.until_idle()
        assert gateway.source.tokens_made < 700


async def test_ignore_eos_leaves_the_end_token_out_of_the_stop_tokens():
    async with running_gateway() as gateway:
        body = completion_body("ab", max_tokens=7, ignore_eos=True)
        answer = (await post(gateway, COMPLETIONS, body)).json()
        assert answer["choices"][0]["text"] == "abab" + "a"
        assert answer["choices"][0]["finish_reason"] == "length"


async def test_stop_token_ids_end_a_sequence_and_are_not_shown():
    async with running_gateway() as gateway:
        answer = (await post(gateway, COMPLETIONS, completion_body("abc", stop_token_ids=[ord("c")]))).json()
        assert answer["choices"][0]["text"] == "ab"


async def test_n_sequences_of_several_prompts_come_in_order_with_seeds_of_their_own():
    async with running_gateway() as gateway:
        body = completion_body(["abcd", "wxyz"], n=2, seed=0, temperature=1.0)
        answer = (await post(gateway, COMPLETIONS, body)).json()
        assert [choice["text"] for choice in answer["choices"]] == ["abcd", "bcda", "yzwx", "zwxy"]
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert answer["usage"]["prompt_tokens"] == 10


async def test_n_sequences_are_streamed_by_index():
    async with running_gateway() as gateway:
        response = await post(gateway, CHAT, chat_body(n=3, seed=0, temperature=1, stream=True))
        texts = ["", "", ""]
        for chunk in frames_of(response.content)[:-1]:
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
        assert texts == [CHAT_TEXT[shift:] + CHAT_TEXT[:shift] for shift in range(3)]


async def test_a_seed_draws_the_same_text_again():
    async with running_gateway() as gateway:
        body = completion_body("abcdefgh", seed=2**62 + 3, temperature=1.0)
        texts = {(await post(gateway, COMPLETIONS, body)).json()["choices"][0]["text"] for _ in range(2)}
        assert len(texts) == 1


async def test_a_request_without_a_seed_gets_one():
    async with running_gateway() as gateway:
        for _ in range(2):
            await post(gateway, COMPLETIONS, completion_body("a"))
        first, second = (request.params.seed for request in gateway.source.opened)
        assert first != second


async def test_logprobs_come_in_both_shapes():
    async with running_gateway() as gateway:
        chat = (await post(gateway, CHAT, chat_body(logprobs=True, top_logprobs=2, max_tokens=2))).json()
        first = chat["choices"][0]["logprobs"]["content"][0]
        assert (first["token"], first["logprob"], first["bytes"]) == ("u", -0.25, [ord("u")])
        assert [top["token"] for top in first["top_logprobs"]] == ["u", "v"]
        completion = (await post(gateway, COMPLETIONS, completion_body("ab", logprobs=1))).json()
        assert completion["choices"][0]["logprobs"] == {
            "tokens": ["a", "b"],
            "token_logprobs": [-0.25, -0.25],
            "top_logprobs": [{"a": -0.25}, {"b": -0.25}],
            "text_offset": [0, 1],
        }


async def test_echo_shows_the_prompt_first():
    async with running_gateway() as gateway:
        whole = (await post(gateway, COMPLETIONS, completion_body("ab", echo=True))).json()
        ids = (await post(gateway, COMPLETIONS, completion_body([97, 98], echo=True))).json()
        stream = frames_of((await post(gateway, COMPLETIONS, completion_body("ab", echo=True, stream=True))).content)
        assert whole["choices"][0]["text"] == ids["choices"][0]["text"] == "abab"
        assert "".join(chunk["choices"][0]["text"] for chunk in stream[:-1]) == "abab"


async def test_the_developer_role_is_the_system_role():
    async with running_gateway() as gateway:
        body = chat_body(messages=[{"role": "developer", "content": "x"}])
        answer = (await post(gateway, CHAT, body)).json()
        assert answer["choices"][0]["message"]["content"].startswith("system: x")


async def test_nuls_are_text_like_any_other():
    async with running_gateway() as gateway:
        answer = (await post(gateway, COMPLETIONS, completion_body("a\0b"))).json()
        assert answer["choices"][0]["text"] == "a\0b"


# --- refusals


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, chat_body(temperature=-1), "temperature"),
        (CHAT, chat_body(n=10**6), "n"),
        (CHAT, chat_body(unheard_of=1), "unheard_of"),
        (CHAT, {"model": MODEL, "messages": []}, "messages"),
        (CHAT, {"model": MODEL, "messages": [{"role": "tool", "content": "x"}]}, "messages"),
        (CHAT, chat_body("x" * 5000), "messages"),
        (CHAT, chat_body("x" * 7_000_000), "messages"),
        (CHAT, chat_body(max_tokens=5000), "max_tokens"),
        (CHAT, chat_body(max_completion_tokens=5000), "max_completion_tokens"),
        (CHAT, chat_body(stop_token_ids=[10**6]), "stop_token_ids"),
        (COMPLETIONS, completion_body("x" * 5000), "prompt"),
        (COMPLETIONS, completion_body([[]]), "prompt"),
        (COMPLETIONS, completion_body([263]), "prompt"),
        (COMPLETIONS, completion_body([-1]), "prompt"),
    ],
)
async def test_a_bad_parameter_is_refused_by_its_name(path, body, param):
    async with running_gateway() as gateway:
        error = error_of(await post(gateway, path, body), 400)
        assert error["param"] == param
        assert gateway.source.opened == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{",
        b"not json",
        b"\xff\xfe",
        b'{"model":"toy","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"toy","messages":[{"role":"user","content":"a\x00"}]}',
        b'{"model":"toy","temperature":NaN}',
        b'{"metadata":' + b"[" * 100_000,
    ],
)
async def test_a_body_that_is_no_request_is_refused_and_the_server_lives_on(body):
    async with running_gateway() as gateway, gateway.http() as http:
        response = await http.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert error_of(response, 400)["type"] == "invalid_request_error"
        assert (await http.post(CHAT, json=chat_body())).status_code == 200


async def test_what_is_not_declared_json_is_refused():
    async with running_gateway() as gateway, gateway.http() as http:
        error_of(await http.post(CHAT, content=b"{}", headers={"content-type": "text/plain"}), 415)
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        error_of(await http.post(CHAT, content=b"{}", headers=headers), 415)


async def test_unknown_models_paths_and_methods_are_errors_in_openais_shape():
    async with running_gateway() as gateway, gateway.http() as http:
        response = await http.post(CHAT, json={**chat_body(), "model": "../../etc/passwd"})
        assert error_of(response, 404)["code"] == "model_not_found"
        error_of(await http.get("/v1/models/other"), 404)
        error_of(await http.get("/v1/models/"), 404)
        error_of(await http.get("/nothing"), 404)
        refused = await http.get(CHAT)
        error_of(refused, 405)
        assert refused.headers["allow"] == "POST"


async def test_a_full_source_is_429_with_retry_after():
    async with running_gateway(ToyTokenSource(requests_max=1)) as gateway:
        gateway.source.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, gateway, CHAT, chat_body())
            await gateway.source.until(lambda: gateway.source.opened)
            response = await post(gateway, CHAT, chat_body(stream=True))
            gateway.source.release()
        assert error_of(response, 429)["code"] == "overloaded"
        assert response.headers["retry-after"] == "3"


async def test_n_sequences_of_which_one_is_refused_hold_nothing():
    async with running_gateway(ToyTokenSource(requests_max=2)) as gateway:
        gateway.source.hold()
        error_of(await post(gateway, CHAT, chat_body(n=3)), 429)
        await gateway.source.until_idle()


async def test_a_pipeline_that_is_not_ready_is_503_and_ready_says_why():
    async with running_gateway() as gateway, gateway.http() as http:
        assert (await http.get("/ready")).status_code == 200
        gateway.source.lose_stage()
        response = await http.post(CHAT, json=chat_body())
        assert error_of(response, 503)["code"] == "not_ready"
        assert int(response.headers["retry-after"]) >= 1
        ready = await http.get("/ready")
        assert ready.status_code == 503
        assert ready.json() == {"ready": False, "reason": "stage 1 is lost"}
        health = await http.get("/health")
        assert health.status_code == 200
        assert health.json() == {"alive": True, "ready": False, "reason": "stage 1 is lost"}
        gateway.source.recover()
        assert (await http.get("/ready")).status_code == 200


# --- failures


async def test_a_stream_that_is_lost_ends_with_an_error_frame_and_no_done():
    async with running_gateway() as gateway, gateway.http() as http:
        body = completion_body("abcdef " * 100, max_tokens=700, stream=True)
        async with http.stream("POST", COMPLETIONS, json=body) as response:
            received = bytearray()
            async for part in response.aiter_raw():
                received += part
                gateway.source.lose_stage()
        *chunks, last = frames_of(bytes(received))
        assert response.status_code == 200
        assert last["error"]["code"] == "stage_lost"
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        assert ("abcdef " * 100).startswith(text)


async def test_an_answer_that_is_lost_is_503():
    async with running_gateway() as gateway:
        gateway.source.hold()
        responses = []

        async def ask():
            responses.append(await post(gateway, CHAT, chat_body(n=2)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await gateway.source.until(lambda: len(gateway.source.opened) == 2)
            gateway.source.lose_stage()
        assert error_of(responses[0], 503)["code"] == "stage_lost"
        await gateway.source.until_idle()


class LyingSource(ToyTokenSource):
    """Breaks the contract: says token 0 twice."""

    async def _generate(self, stream):
        push = stream.push
        stream.push = lambda event: [push(event), push(event)]
        await super()._generate(stream)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_source_that_breaks_its_contract_fails_that_request_only(stream):
    async with running_gateway(LyingSource()) as gateway, gateway.http() as http:
        response = await http.post(CHAT, json=chat_body(stream=stream))
        error = frames_of(response.content)[-1]["error"] if stream else error_of(response, 500)
        assert error["code"] == "internal_error"
        assert "IllegalEventError" not in response.text
        assert (await http.get("/health")).status_code == 200
        (event,) = gateway.log_events("http_request_broke")
        assert "came where token" in event["error"]
        assert event["http_request"] == response.headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_its_request(stream):
    async with running_gateway() as gateway:
        gateway.source.hold()
        client = await gateway.raw()
        await client.send_all(raw_request(CHAT, json.dumps(chat_body(stream=stream)).encode()))
        await gateway.source.until(lambda: gateway.source.opened)
        await client.aclose()
        await gateway.source.until_idle()
        assert gateway.source.tokens_made == 0


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten():
    async with running_gateway() as gateway, gateway.http() as http:
        client = await gateway.raw()
        await client.send_all(raw_request(CHAT, b"x" * 1000)[:-500])
        await client.aclose()
        assert (await http.post(CHAT, json=chat_body())).status_code == 200
        assert gateway.log_events("http_request_broke") == []


async def test_a_client_that_never_reads_is_cut_off_and_delays_no_other():
    limits = ServerLimits(send_s_max=0.5)
    async with running_gateway(ToyTokenSource(context_tokens=10**6), limits=limits) as gateway:
        client = await gateway.raw(receive_buffer_bytes=4096)
        # Far more than the kernel's buffers hold, and than could be made before the reader is cut off.
        body = completion_body("x" * 3000, max_tokens=200_000, ignore_eos=True, stream=True, logprobs=20)
        await client.send_all(raw_request(COMPLETIONS, json.dumps(body).encode()))
        await gateway.source.until(lambda: gateway.source.opened)
        assert (await post(gateway, CHAT, chat_body())).status_code == 200
        await gateway.source.until_idle()
        await client.aclose()
        while await metric(gateway, 'flexpipe_requests_total{outcome="client_disconnected"}') != 1:
            pass  # counted when its tasks have ended, a little after its generation


# --- the body


async def test_ten_megabytes_are_413_whether_announced_or_not():
    async def pieces():
        for _ in range(160):
            yield b"x" * 65536

    headers = {"content-type": "application/json"}
    async with running_gateway() as gateway, gateway.http() as http:
        announced = await http.post(CHAT, content=b"x" * 10 * 1024 * 1024, headers=headers)
        assert error_of(announced, 413)["code"] == "request_too_large"
        chunked = await http.post(CHAT, content=pieces(), headers=headers)
        assert error_of(chunked, 413)["code"] == "request_too_large"
        assert (await http.post(CHAT, json=chat_body())).status_code == 200


TINY_CHUNKS = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 500_000
)


@pytest.mark.parametrize(
    "request_bytes", [raw_request(CHAT, b"x" * 20_000_000), TINY_CHUNKS], ids=["long", "tiny chunks"]
)
async def test_a_refused_request_whose_body_nobody_reads_leaves_no_connection_behind(request_bytes):
    # Hypercorn's queue of body parts is full here; see actors/gateway/boundary.
    config = GatewayConfig(api_keys=("right",), body=BodyLimits(unread_bytes_max=1000))
    async with running_gateway(config=config) as gateway:
        client = await gateway.raw()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_all_or_be_cut_off, client, request_bytes)
            received = await _read_to_end_or_reset(client)
            nursery.cancel_scope.cancel()
        assert received.startswith(b"HTTP/1.1 401")


async def test_an_answer_ends_although_the_queue_of_body_parts_is_full_at_that_moment():
    """As hypercorn does it: the body comes through a bounded queue, and so does the news that the answer has ended."""
    to_app, from_client = trio.open_memory_channel(10)
    sent = []

    async def client():
        while True:
            await to_app.send({"type": "http.request", "body": b"x", "more_body": True})

    async def send(message):
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            for _ in range(50):  # time enough to fill a queue that nobody reads
                await trio.lowlevel.checkpoint()
            await to_app.send({"type": "http.disconnect"})

    boundary = Boundary(None, ("right",), BodyLimits(unread_bytes_max=100), EventLog(io.StringIO()))
    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            await boundary({"type": "http", "path": CHAT, "headers": []}, from_client.receive, send)
            nursery.cancel_scope.cancel()
    assert sent[0]["status"] == 401


async def _send_all_or_be_cut_off(client, data):
    with suppress(trio.BrokenResourceError):
        await client.send_all(data)


async def _read_to_end_or_reset(client):
    received = bytearray()
    with suppress(trio.BrokenResourceError):
        while part := await client.receive_some(65536):
            received += part
    return bytes(received)


async def test_a_body_that_does_not_come_is_408():
    config = GatewayConfig(body=BodyLimits(body_s_max=0.05, unread_s_max=0.05))
    async with running_gateway(config=config) as gateway:
        client = await gateway.raw()
        await client.send_all(raw_request(CHAT, b"{}" * 100)[:-10])
        status, _, body = await read_response(client)
        assert status == 408
        assert json.loads(body)["error"]["code"] == "request_timeout"
        assert await read_to_end(client) == b""


# --- connections


async def test_a_thousand_half_open_connections_leave_room_for_others():
    async with running_gateway() as gateway:
        half_open = []
        for _ in range(1000):
            client = await gateway.raw()
            await client.send_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: te")
            half_open.append(client)
        assert (await post(gateway, CHAT, chat_body())).status_code == 200
        for client in half_open:
            await client.aclose()


async def test_a_half_open_connection_is_closed():
    async with running_gateway(limits=ServerLimits(idle_s_max=0.05)) as gateway:
        client = await gateway.raw()
        await client.send_all(b"GET /health HT")
        assert await read_to_end(client) == b""


async def test_one_connection_too_many_is_turned_away():
    async with running_gateway(limits=ServerLimits(connections_max=1)) as gateway:
        first = await gateway.raw()
        await first.send_all(raw_request("/health", b"", "GET"))
        assert (await read_response(first))[0] == 200
        second = await gateway.raw()
        status, headers, body = await read_response(second)
        assert status == 503
        assert headers[b"retry-after"] == b"1"
        assert json.loads(body)["error"]["code"] == "connection_limit"


@pytest.mark.parametrize(
    "noise",
    [
        b"\x00" * 100,
        b"GARBAGE\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
    ],
)
async def test_noise_is_answered_or_cut_off_and_the_server_lives_on(noise):
    async with running_gateway() as gateway:
        client = await gateway.raw()
        await client.send_all(noise)
        received = await read_to_end(client)
        assert received.startswith(b"HTTP/1.1 400")
        assert (await post(gateway, CHAT, chat_body())).status_code == 200


async def test_a_head_that_never_ends_is_cut_off():
    async with running_gateway() as gateway:
        client = await gateway.raw()
        await client.send_all(b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000)
        assert (await _read_to_end_or_reset(client)).startswith(b"HTTP/1.1 431")


async def test_connection_close_closes_after_a_stream():
    async with running_gateway() as gateway:
        client = await gateway.raw()
        body = json.dumps(chat_body(stream=True)).encode()
        await client.send_all(raw_request(CHAT, body, headers=["Connection: close"]))
        assert b"[DONE]" in await read_to_end(client)


async def test_a_connection_serves_one_request_after_another():
    async with running_gateway() as gateway:
        client = await gateway.raw()
        for _ in range(3):
            await client.send_all(raw_request(CHAT, json.dumps(chat_body()).encode()))
            assert (await read_response(client))[0] == 200


# --- keys and ids


@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer wrong", "Bearer righ", "Bearer", "right", "Basic right", "Bearer right\x01", "Bearer rightright"],
)
@pytest.mark.parametrize(
    "path", [CHAT, COMPLETIONS, "/v1/models", "/metrics", "/flexpipe/v1/status", "/nothing", "/ready/", "//health"]
)
async def test_every_route_but_health_needs_the_key(path, authorization):
    config = GatewayConfig(api_keys=("right", "also right"))
    headers = {} if authorization is None else {"authorization": authorization}
    async with running_gateway(config=config) as gateway, gateway.http(headers=headers) as http:
        error_of(await http.get(path), 401)
        error_of(await http.post(path, json=chat_body()), 401)


async def test_any_of_the_keys_opens():
    async with running_gateway(config=GatewayConfig(api_keys=("right", "other"))) as gateway:
        for key in ("right", "other"):
            async with gateway.http(headers={"authorization": f"Bearer {key}"}) as http:
                assert (await http.get("/v1/models")).status_code == 200
        async with gateway.http() as http:
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/ready")).status_code == 200


async def test_request_ids_are_ours():
    async with running_gateway() as gateway, gateway.http(headers={"x-request-id": "theirs"}) as http:
        ids = {(await http.get("/health")).headers["x-request-id"] for _ in range(2)}
        assert len(ids) == 2
        assert "theirs" not in ids


# --- facts


async def test_the_model_is_listed():
    async with running_gateway() as gateway, gateway.http() as http:
        (card,) = (await http.get("/v1/models")).json()["data"]
        assert (card["id"], card["object"], card["max_model_len"]) == (MODEL, "model", 4096)
        assert (await http.get(f"/v1/models/{MODEL}")).json() == card


async def test_the_status_is_what_the_source_says():
    async with running_gateway() as gateway, gateway.http() as http:
        status = (await http.get("/flexpipe/v1/status")).json()
        assert status["ready"] is True
        assert status["epoch"] == 7
        assert [stage["pid"] for stage in status["stages"]] == [1000, 1001]
        assert status["model"]["context_tokens"] == 4096


async def test_metrics_count_what_happened():
    async with running_gateway() as gateway:
        await post(gateway, CHAT, chat_body())
        await post(gateway, CHAT, chat_body(temperature=-1))
        await post(gateway, CHAT, {**chat_body(), "model": "other"})
        assert await metric(gateway, 'flexpipe_requests_total{outcome="completed"}') == 1
        assert await metric(gateway, 'flexpipe_requests_total{outcome="invalid_value"}') == 1
        assert await metric(gateway, 'flexpipe_requests_total{outcome="model_not_found"}') == 1
        assert await metric(gateway, "flexpipe_prompt_tokens_total") == CHAT_TOKENS
        assert await metric(gateway, "flexpipe_generation_tokens_total") == CHAT_TOKENS
        assert await metric(gateway, "flexpipe_time_to_first_token_seconds_count") == 1
        assert await metric(gateway, "flexpipe_time_per_output_token_seconds_count") == 1
        assert await metric(gateway, "flexpipe_e2e_request_latency_seconds_count") == 1
        assert await metric(gateway, 'flexpipe_ready{model_name="toy"}') == 1
        assert await metric(gateway, 'flexpipe_stage_kv_pages_free{model_name="toy",replica="0",stage="1"}') == 1000
        gateway.source.lose_stage()
        assert await metric(gateway, 'flexpipe_ready{model_name="toy"}') == 0


async def test_the_log_names_every_generation_and_no_prompt():
    async with running_gateway() as gateway:
        response = await post(gateway, CHAT, chat_body("a secret"))
        (event,) = gateway.log_events("http_generation_ended")
        assert event["http_request"] == response.headers["x-request-id"]
        assert event["outcome"] == "completed"
        assert "secret" not in json.dumps(event)


# --- the end


async def test_shutdown_lets_a_stream_finish_and_refuses_new_requests():
    async with running_gateway() as gateway:
        gateway.source.hold()
        kept, streaming = await gateway.raw(), await gateway.raw()
        await streaming.send_all(raw_request(CHAT, json.dumps(chat_body(stream=True)).encode()))
        await read_until(streaming, b'"role":"assistant"')
        await kept.send_all(raw_request(CHAT, json.dumps(chat_body()).encode())[:-1])
        await gateway.source.until(lambda: gateway.source.opened)
        gateway.shutdown.set()
        await _refuses_connections(gateway)
        await kept.send_all(b"}")
        status, _, body = await read_response(kept)
        assert status == 503
        assert json.loads(body)["error"]["code"] == "shutting_down"
        gateway.source.release()
        assert b"[DONE]" in await read_to_end(streaming)
        await gateway.stopped.wait()
        assert gateway.log_events("gateway_closed")[0]["cut_connections"] == 0


async def test_shutdown_ends_a_stream_that_takes_too_long_with_an_error_frame():
    async with running_gateway(limits=ServerLimits(drain_s_max=0.05)) as gateway:
        gateway.source.hold()
        client = await gateway.raw()
        await client.send_all(raw_request(CHAT, json.dumps(chat_body(stream=True)).encode()))
        await read_until(client, b'"role":"assistant"')
        gateway.shutdown.set()
        rest = await read_to_end(client)
        assert b'"code":"shutting_down"' in rest
        assert b"[DONE]" not in rest
        await gateway.stopped.wait()
        await gateway.source.until_idle()


async def test_a_client_that_never_reads_does_not_keep_the_server_from_stopping():
    limits = ServerLimits(drain_s_max=0.05, close_s_max=0.05)
    async with running_gateway(ToyTokenSource(context_tokens=10**6), limits=limits) as gateway:
        client = await gateway.raw(receive_buffer_bytes=4096)
        body = completion_body("x" * 3000, max_tokens=10_000, ignore_eos=True, stream=True, logprobs=20)
        await client.send_all(raw_request(COMPLETIONS, json.dumps(body).encode()))
        await gateway.source.until(lambda: gateway.source.tokens_made == 10_000)
        gateway.shutdown.set()
        await gateway.stopped.wait()
        assert gateway.log_events("gateway_closed")[0]["cut_connections"] == 1


async def test_an_idle_connection_does_not_delay_shutdown():
    async with running_gateway() as gateway:
        client = await gateway.raw()
        await client.send_all(raw_request("/health", b"", "GET"))
        assert (await read_response(client))[0] == 200
        gateway.shutdown.set()
        assert await read_to_end(client) == b""
        await gateway.stopped.wait()


async def _refuses_connections(gateway):
    while True:
        try:
            await (await gateway.raw()).aclose()
        except OSError:
            return
