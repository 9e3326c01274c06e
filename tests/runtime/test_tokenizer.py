import json
import subprocess
import sys

import gguf
import pytest
from flexpipe.runtime.interface import Tokenizer
from flexpipe.runtime.models.gguf_file import read_gguf
from flexpipe.runtime.models.gguf_tokenizer import write_tokenizer
from flexpipe.runtime.models.model_folder import BrokenCheckpointError, UnknownArchitectureError
from flexpipe.runtime.models.pull import pull
from flexpipe.runtime.text.tokenizer import HfTokenizer, TokenizerMissingError
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import CORPUS, END, TURN_END, VOCABULARY_SIZE, write_json, write_tiny_checkpoint
from tokenizers.pre_tokenizers import ByteLevel

HELLO = [{"role": "user", "content": "hello"}]

TEXTS = [
    *CORPUS,
    "",
    " ",
    "   three  spaces\n\n\tand\ttabs \r\n",
    "I'm, you'll, it's: they'd've; WE'RE",
    "naïve café — “quotes” … ½ ² ٣",
    "日本語のテキストと한국어",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u200b\ufeff",
    "def f(x):\n    return x ** 2  # 1234567890",
    "nul \0 and bell \a",
    "<|im_end|> in the text, <|im_start|>too",
    "\ufffd",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), layers=1)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return HfTokenizer(tiny)


def test_it_is_the_tokenizer_of_the_interface(tokenizer):
    typed: Tokenizer = tokenizer
    assert typed.vocabulary_size == VOCABULARY_SIZE
    assert typed.eos_token_ids == (2,)


@given(st.text())
def test_text_comes_back_from_its_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(0 <= token_id < VOCABULARY_SIZE for token_id in ids)
    if "<|" not in text:
        assert tokenizer.decode(ids) == text


def test_half_a_surrogate_pair_is_refused_with_its_place(tokenizer):
    with pytest.raises(ValueError, match="index 3"):
        tokenizer.encode("abc\ud83d")
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.apply_chat_template([{"role": "user", "content": "\udfff"}])


def test_special_tokens_are_left_out_of_text_and_shown_alone(tokenizer):
    ids = tokenizer.encode(f"a{TURN_END}b")
    assert 2 in ids
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.token_text(2) == TURN_END
    assert tokenizer.token_text(VOCABULARY_SIZE) == ""
    assert tokenizer.token_text(tokenizer.encode(" the")[0]).startswith(" ")


def test_part_of_a_character_shows_as_the_replacement(tokenizer):
    ids = tokenizer.encode("\U0001f9ff")
    assert len(ids) > 1
    assert tokenizer.token_text(ids[0]) == "\ufffd"
    assert tokenizer.decode([*tokenizer.encode("ok "), *ids[:-1]]) == "ok \ufffd"


def test_the_chat_template_ends_where_the_assistant_speaks(tokenizer):
    ids = tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, *HELLO])
    assert ids == tokenizer.encode(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_text_parts_are_joined(tokenizer):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert tokenizer.apply_chat_template([{"role": "user", "content": parts}]) == tokenizer.apply_chat_template(HELLO)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"content": "x"}, "message 0 has no role"),
        ({"role": 3, "content": "x"}, "message 0 has no role"),
        ({"role": "user"}, "chat template refuses"),
        ({"role": "user", "content": 3}, "chat template refuses"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "reads text only"),
        ({"role": "user", "content": ["x"]}, "reads text only"),
    ],
)
def test_a_message_that_cannot_be_rendered_is_one_sentence(tokenizer, message, sentence):
    with pytest.raises(ValueError, match=sentence):
        tokenizer.apply_chat_template([message])


def with_template(folder, tmp_path, template, **settings):
    """The tokenizer of ``folder`` with another template, given in tokenizer_config.json."""
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    write_json(copy / "tokenizer_config.json", {"chat_template": template, **settings})
    return HfTokenizer(copy)


def test_a_model_without_a_template_names_the_other_endpoint(tiny, tmp_path):
    with pytest.raises(ValueError, match="/v1/completions"):
        with_template(tiny, tmp_path, None).apply_chat_template(HELLO)


def test_the_template_may_be_one_of_several_by_name(tiny, tmp_path):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ messages[0].content }}"}]
    tokenizer = with_template(tiny, tmp_path, named)
    assert tokenizer.apply_chat_template(HELLO) == tokenizer.encode("hello")


def test_the_template_sees_special_tokens_and_the_helpers_of_transformers(tiny, tmp_path):
    template = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}\n"
        "    {% if m.role == 'user' %}\n{{ m | tojson }}{% endif %}\n"
        "{% endfor %}{{ strftime_now('%%') }}"
    )
    tokenizer = with_template(tiny, tmp_path, template, bos_token={"content": END})
    text = END + json.dumps(HELLO[0]) + "%"
    assert tokenizer.apply_chat_template([*HELLO, *HELLO]) == tokenizer.encode(text)


def test_a_template_may_refuse_in_its_own_words(tiny, tmp_path):
    tokenizer = with_template(tiny, tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="roles must alternate"):
        tokenizer.apply_chat_template(HELLO)


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{% for x in range(10**9) %}{% endfor %}", "{% if %}", "{{ messages.append(1) }}"],
)
def test_a_hostile_or_broken_template_is_contained(tiny, tmp_path, template):
    tokenizer = with_template(tiny, tmp_path, template)
    with pytest.raises(ValueError, match="chat template refuses"):
        tokenizer.apply_chat_template(HELLO)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": [2, 0]}, "config.json": {"eos_token_id": 1}}, (2, 0)),
        ({"generation_config.json": {"eos_token_id": None}, "config.json": {"eos_token_id": 1}}, (1,)),
        ({"tokenizer_config.json": {"eos_token": TURN_END}}, (2,)),
        ({"tokenizer_config.json": {"eos_token": {"content": END}}}, (0,)),
        ({"tokenizer_config.json": {"eos_token": "nowhere"}}, ()),
        ({}, ()),
    ],
)
def test_the_first_file_that_names_an_end_decides(tiny, tmp_path, files, expected):
    (tmp_path / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    for name, value in files.items():
        write_json(tmp_path / name, value)
    assert HfTokenizer(tmp_path).eos_token_ids == expected


def test_a_missing_or_damaged_tokenizer_is_one_sentence(tmp_path):
    with pytest.raises(TokenizerMissingError, match="save_pretrained"):
        HfTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(BrokenCheckpointError, match="fetch the model again"):
        HfTokenizer(tmp_path)


NO_TORCH = """
import sys
from pathlib import Path
from flexpipe.runtime.text.text_stream import TextStream
from flexpipe.runtime.text.tokenizer import HfTokenizer

tokenizer = HfTokenizer(Path(sys.argv[1]))
TextStream(tokenizer).push(tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])[0])
sys.exit("torch" in sys.modules)
"""


def test_a_chat_is_tokenised_without_torch(tiny):
    assert subprocess.run([sys.executable, "-c", NO_TORCH, tiny], check=False).returncode == 0


def write_vocabulary(path, *, pre, tokens, merges, **flags):
    """A GGUF file of a vocabulary alone: the bytes' alphabet, then ``tokens``, the last of them a control token."""
    alphabet = sorted(ByteLevel.alphabet())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*alphabet, *tokens])
    writer.add_token_types([1] * (len(alphabet) + len(tokens) - 1) + [3])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(alphabet) + len(tokens) - 1)
    for name, value in flags.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["12", "12", "3"]),
        ("smollm", ["1", "2", "1", "2", "3"]),
        ("qwen2", ["1", "2", "1", "2", "3"]),
        ("llama-bpe", ["12", "1", "23"]),
    ],
)
def test_a_vocabulary_is_split_the_way_its_merges_were_learned(tmp_path, pre, pieces):
    path = write_vocabulary(tmp_path / "v.gguf", pre=pre, tokens=["12", "23", "<s>"], merges=["1 2", "2 3"])
    write_tokenizer(read_gguf(path), tmp_path)
    tokenizer = HfTokenizer(tmp_path)
    ids = tokenizer.encode("12123", add_special_tokens=False)
    assert [tokenizer.token_text(token_id) for token_id in ids] == pieces


@pytest.mark.parametrize(
    ("pre", "flags", "starts"),
    [
        ("gpt-2", {}, False),
        ("gpt-2", {"add_bos_token": True}, True),
        ("llama-bpe", {}, True),
        ("llama-bpe", {"add_bos_token": False}, False),
    ],
)
def test_a_text_starts_with_bos_where_the_file_means_it(tmp_path, pre, flags, starts):
    path = write_vocabulary(tmp_path / "v.gguf", pre=pre, tokens=["<s>"], merges=[], **flags)
    write_tokenizer(read_gguf(path), tmp_path)
    tokenizer = HfTokenizer(tmp_path)
    assert (tokenizer.token_text(tokenizer.encode("a")[0]) == "<s>") == starts
    assert tokenizer.decode(tokenizer.encode("a")) == "a"


def test_a_sentencepiece_vocabulary_goes_through_transformers(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab", "\u2581ab"]
    writer = gguf.GGUFWriter(str(tmp_path / "v.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0, 0.0, 0.0, -4.0, -5.0, -6.0, -1.0, -2.0])
    writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_tokenizer(read_gguf(tmp_path / "v.gguf"), tmp_path)
    tokenizer = HfTokenizer(tmp_path)
    assert [tokens[token_id] for token_id in tokenizer.encode("ab ab")] == ["<s>", "\u2581ab", "\u2581ab"]
    assert tokenizer.decode(tokenizer.encode("ab ab")) == "ab ab"
    assert tokenizer.eos_token_ids == (2,)


def test_a_tokenizer_of_an_unknown_kind_is_named(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "v.gguf"), "llama")
    writer.add_tokenizer_model("riddle")
    writer.add_token_list(["a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnknownArchitectureError, match="'riddle'"):
        write_tokenizer(read_gguf(tmp_path / "v.gguf"), tmp_path)


def test_a_vocabulary_that_contradicts_itself_is_refused(tmp_path):
    double = write_vocabulary(tmp_path / "double.gguf", pre="gpt-2", tokens=["x", "<s>"], merges=[])
    with pytest.raises(BrokenCheckpointError, match="same token twice"):
        write_tokenizer(read_gguf(double), tmp_path)
    unknown = write_vocabulary(tmp_path / "unknown.gguf", pre="gpt-2", tokens=["<s>"], merges=["q u"])
    with pytest.raises(BrokenCheckpointError, match="damaged vocabulary"):
        write_tokenizer(read_gguf(unknown), tmp_path)


@pytest.mark.slow
def test_smollm2_tokenises_and_renders_as_transformers_does():
    from transformers import AutoTokenizer

    folder = pull("smollm2").path
    ours, theirs = HfTokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 12 + 30?"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "Thanks — 谢谢 🙂"},
    ]
    for messages in (chat, chat[1:2]):
        assert (
            ours.apply_chat_template(messages)
            == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        )
