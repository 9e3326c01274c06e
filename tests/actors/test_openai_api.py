import json

import pytest
from flexpipe.actors.gateway.openai_api import (
    CHOICES_MAX,
    STOP_STRINGS_MAX,
    decode_chat,
    decode_completion,
    max_tokens_of,
    prompts_of,
    sampling_of,
    stops_of,
)
from flexpipe.actors.gateway.openai_errors import ApiError

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return decode_chat(json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def completion(**fields):
    return decode_completion(json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def refusal_of(decode, body):
    with pytest.raises(ApiError) as refusal:
        decode(body)
    assert refusal.value.status == 400
    return refusal.value.detail


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.0001),
        ("top_k", -2),
        ("top_k", 2**40),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e9),
        ("presence_penalty", 1e9),
        ("frequency_penalty", -2.1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("n", 0),
        ("n", -1),
        ("n", 1.5),
        ("n", 10**6),
        ("n", "2"),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 2**31),
        ("max_tokens", 2**70),
        ("stop", ["x"] * (STOP_STRINGS_MAX + 1)),
        ("stop", ""),
        ("stop", "x" * 10**4),
        ("stop_token_ids", list(range(1000))),
        ("stream", "yes"),
        ("ignore_eos", 1),
        ("model", ""),
        ("model", "x" * 10**4),
    ],
)
@pytest.mark.parametrize("endpoint", [chat, completion])
def test_a_value_out_of_range_is_refused_by_the_name_of_its_parameter(endpoint, field, value):
    with pytest.raises(ApiError) as refusal:
        endpoint(**{field: value})
    assert refusal.value.status == 400
    assert refusal.value.detail.param == field
    assert field in refusal.value.detail.message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(number):
    detail = refusal_of(decode_chat, b'{"model":"m","messages":[],"temperature":%s}' % number.encode())
    assert detail.type == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b'{"model":"\xff"}',
        b'{"model":"\\ud800","messages":[]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800 lone"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"a\x00b"}]}',
        b"\xef\xbb\xbf{}",
        b'{"metadata":' + b"[" * 100_000,
        b'{"unknown":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"n":' + b"9" * 10_000 + b"}",
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body):
    assert refusal_of(decode_chat, body).message


def test_a_nul_that_json_allows_is_text():
    assert chat(messages=[{"role": "user", "content": "a\0b"}]).messages[0].text == "a\0b"


def test_an_unknown_field_is_refused_by_its_name():
    detail = refusal_of(decode_chat, b'{"model":"m","messages":[{"role":"user","content":"x"}],"temprature":1}')
    assert (detail.param, detail.code) == ("temprature", "unknown_parameter")


def test_an_unknown_field_inside_a_message_is_refused_by_its_place():
    detail = refusal_of(decode_chat, b'{"model":"m","messages":[{"role":"user","content":"x","mood":1}]}')
    assert detail.param == "messages[0].mood"


def test_the_name_of_an_unknown_field_is_cut():
    assert len(refusal_of(decode_chat, b'{"%s":1}' % (b"x" * 10**6)).message) < 1000


def test_a_missing_field_is_named():
    detail = refusal_of(decode_chat, b'{"model":"m"}')
    assert (detail.param, detail.code) == ("messages", "missing_required_parameter")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"1": 5}),
        ("modalities", ["audio"]),
        ("audio", {}),
        ("prediction", {}),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
    ],
)
def test_what_is_not_supported_yet_is_refused_and_says_so(field, value):
    with pytest.raises(ApiError) as refusal:
        chat(**{field: value})
    assert refusal.value.detail.param == field
    assert "not supported yet" in refusal.value.detail.message


def test_what_concerns_only_accounts_is_accepted():
    chat(
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        parallel_tool_calls=True,
        safety_identifier="s",
        prompt_cache_key="k",
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        modalities=["text"],
        logit_bias={},
    )


def test_nulls_mean_the_default():
    request = chat(temperature=None, top_p=None, n=None, stop=None, max_tokens=None, seed=None, logprobs=None)
    params = sampling_of(request, 5)
    assert (params.temperature, params.top_p, params.seed, params.logprobs) == (1.0, 1.0, 5, None)
    assert max_tokens_of(request) is None


@pytest.mark.parametrize("role", ["wizard", "", None])
def test_an_unknown_role_is_refused(role):
    with pytest.raises(ApiError) as refusal:
        chat(messages=[{"role": role, "content": "x"}])
    assert refusal.value.detail.param == "messages[0].role"


@pytest.mark.parametrize(
    "content", [None, [], [{"type": "text"}], [{"type": "image_url", "image_url": {"url": "file:///x"}}]]
)
def test_a_message_without_text_is_refused(content):
    with pytest.raises(ApiError) as refusal:
        chat(messages=[{"role": "user", "content": content}])
    assert refusal.value.detail.param == "messages[0].content"


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].text == "ab"


def test_an_assistant_message_goes_back_as_the_openai_client_dumps_it():
    dumped = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "annotations": None,
        "tool_calls": None,
        "audio": None,
    }
    assert chat(messages=[*MESSAGES, dumped]).messages[1].text == "x"


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": "x"}] * 5000])
def test_a_conversation_has_a_bounded_number_of_messages(messages):
    with pytest.raises(ApiError) as refusal:
        chat(messages=messages)
    assert refusal.value.detail.param == "messages"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_a_prompt_is_text_or_ids_one_or_several(prompt, expected):
    assert prompts_of(completion(prompt=prompt)) == expected


@pytest.mark.parametrize("prompt", [[], [1, "a"], ["a", [1]], [[1], 2], [1.5], None, {}])
def test_a_prompt_of_no_or_mixed_kinds_is_refused(prompt):
    with pytest.raises(ApiError) as refusal:
        completion(prompt=prompt)
    assert refusal.value.detail.param.startswith("prompt")


def test_prompts_times_n_are_bounded():
    with pytest.raises(ApiError) as refusal:
        completion(prompt=["a"] * 2, n=CHOICES_MAX)
    assert refusal.value.detail.param == "n"
    with pytest.raises(ApiError):
        completion(prompt=["a"] * 100_000)


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        (chat, {"top_logprobs": 2}, "top_logprobs"),
        (chat, {"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
        (chat, {"logprobs": 3}, "logprobs"),
        (chat, {"stream_options": {"include_usage": True}}, "stream_options"),
        (chat, {"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
        (chat, {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        (chat, {"best_of": 2}, "best_of"),
        (completion, {"logprobs": 10**6}, "logprobs"),
        (completion, {"logprobs": True}, "logprobs"),
        (completion, {"echo": True, "logprobs": 1}, "echo"),
        (completion, {"best_of": 3, "n": 2}, "best_of"),
        (completion, {"suffix": "x"}, "suffix"),
        (completion, {"min_tokens": 3}, "min_tokens"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(endpoint, fields, param):
    with pytest.raises(ApiError) as refusal:
        endpoint(**fields)
    assert refusal.value.detail.param == param


def test_best_of_equal_to_n_asks_for_nothing():
    completion(best_of=1)
    completion(best_of=2, n=2)


def test_sampling_parameters_arrive():
    params = sampling_of(chat(temperature=0.5, top_k=-1, min_p=0.1, logprobs=True, top_logprobs=3), 9)
    assert (params.temperature, params.top_k, params.min_p, params.logprobs, params.seed) == (0.5, 0, 0.1, 3, 9)
    assert sampling_of(chat(logprobs=True), 0).logprobs == 0


def test_a_temperature_that_would_overflow_is_greedy():
    assert sampling_of(chat(temperature=1e-9), 0).temperature == 0.0


def test_stop_is_one_string_or_several():
    assert stops_of(chat(stop="a")) == ("a",)
    assert stops_of(chat(stop=["a", "b"])) == ("a", "b")
    assert stops_of(chat()) == ()


def test_the_newer_name_of_max_tokens_counts():
    assert max_tokens_of(chat(max_completion_tokens=7)) == 7
    assert max_tokens_of(chat(max_tokens=7, max_completion_tokens=7)) == 7
    assert max_tokens_of(completion()) == 16
