import json
import random

import pytest
from flexpipe.runtime.models.pull import pull
from flexpipe.runtime.text.text_stream import CONTEXT_TOKENS, PENDING_TOKENS_MAX, TextStream
from flexpipe.runtime.text.tokenizer import HfTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import CORPUS, VOCABULARY_SIZE, write_tiny_checkpoint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return HfTokenizer(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), layers=1))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """Llama 2's kind: a mark for spaces, bytes as <0x..> tokens, the first space stripped."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    plain = [text.encode("ascii", "ignore").decode() for text in CORPUS]
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=360, min_frequency=1, special_tokens=special, show_progress=False)
    backend.train_from_iterator(plain, trainer)
    return with_byte_tokens(backend, tmp_path_factory.mktemp("sentencepiece"))


def with_byte_tokens(backend, folder):
    """Add the byte tokens to the vocabulary proper: as added tokens they would match in plain text."""
    described = json.loads(backend.to_str())
    vocabulary = described["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return HfTokenizer(folder)


def streamed(tokenizer, ids):
    stream = TextStream(tokenizer)
    return "".join([*(stream.push(token_id) for token_id in ids), stream.finish()])


any_ids = st.lists(st.integers(0, VOCABULARY_SIZE - 1), max_size=60)
mostly_bytes = st.lists(st.one_of(st.integers(3, 258), st.integers(0, 2)), max_size=60)


@given(any_ids)
def test_the_pieces_are_the_whole_text_for_any_tokens(tokenizer, ids):
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@settings(max_examples=400)
@given(mostly_bytes)
def test_the_pieces_are_the_whole_text_for_broken_utf8(tokenizer, ids):
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@given(st.text())
def test_the_pieces_are_the_whole_text_for_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
def test_the_pieces_are_the_whole_text_with_byte_fallback(sentencepiece, text):
    ids = sentencepiece.encode(text)
    assert streamed(sentencepiece, ids) == sentencepiece.decode(ids)


def test_words_keep_the_space_before_them(sentencepiece):
    ids = sentencepiece.encode("the stage owns the model")
    assert any(sentencepiece.decode([token_id]) != sentencepiece.token_text(token_id) for token_id in ids)
    stream = TextStream(sentencepiece)
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join(pieces) == "the stage owns the model"
    assert stream.finish() == ""


def test_a_character_comes_out_with_its_last_byte(tokenizer):
    first, *others, last = tokenizer.encode("\U0001f9ff")
    stream = TextStream(tokenizer)
    assert [stream.push(token_id) for token_id in (first, *others)] == [""] * (1 + len(others))
    assert stream.push(last) == "\U0001f9ff"


def test_every_text_token_comes_out_at_once(tokenizer):
    stream = TextStream(tokenizer)
    for token_id in tokenizer.encode("The pipeline is cut into stages."):
        assert stream.push(token_id) == tokenizer.token_text(token_id)


def test_an_unfinished_character_is_left_for_the_end(tokenizer):
    ids = tokenizer.encode("é€")[:-1]
    stream = TextStream(tokenizer)
    assert "".join(stream.push(token_id) for token_id in ids) == "é"
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


@pytest.mark.parametrize("broken", range(3 * PENDING_TOKENS_MAX))
def test_a_character_survives_any_amount_of_broken_utf8_before_it(tokenizer, broken):
    character = tokenizer.encode("\U0001f9ff")
    ids = [character[0]] * broken + character
    assert streamed(tokenizer, ids) == tokenizer.decode(ids) == "\ufffd" * broken + "\U0001f9ff"


class LongestDecode:
    """The tokenizer, remembering the longest sequence that it was asked to decode."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.tokens = 0

    def decode(self, token_ids):
        self.tokens = max(self.tokens, len(token_ids))
        return self._tokenizer.decode(token_ids)


@pytest.mark.parametrize("kind", ["text", "lead bytes", "continuation bytes", "special", "mixed"])
def test_the_window_stays_short_however_long_the_sequence(tokenizer, kind):
    lead, continuation = tokenizer.encode("\U0001f9ff")[:2]
    source = random.Random(3)
    ids = {
        "text": tokenizer.encode(" ".join(CORPUS) * 5),
        "lead bytes": [lead] * 2000,
        "continuation bytes": [continuation] * 2000,
        "special": [1] * 2000,
        "mixed": [source.randrange(VOCABULARY_SIZE) for _ in range(2000)],
    }[kind]
    watched = LongestDecode(tokenizer)
    assert streamed(watched, ids) == tokenizer.decode(ids)
    assert watched.tokens <= CONTEXT_TOKENS + 2 * (PENDING_TOKENS_MAX + 1)


@pytest.mark.slow
def test_smollm2_streams_any_tokens():
    tokenizer = HfTokenizer(pull("smollm2").path)
    source = random.Random(4)
    for _ in range(500):
        limit = source.choice([300, tokenizer.vocabulary_size])
        ids = [source.randrange(limit) for _ in range(source.randrange(120))]
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)
