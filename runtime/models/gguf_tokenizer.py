"""The tokenizer that a GGUF file's metadata describes, as the files of a Hugging Face folder.

Owns the vocabularies whose splitting rule is known here (byte-level BPE of the GPT-2, SmolLM, Llama 3 and Qwen 2
kinds); others go through transformers' converter. Knows nothing of weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .gguf_file import GgufFile
from .model_folder import (
    CHAT_TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    BrokenCheckpointError,
    UnknownArchitectureError,
    first_line,
)

Item = TypeVar("Item", str, int)

# llama.cpp's token types
_CONTROL = 3
_USER_DEFINED = 4

# tokenizer.ggml.pre -> how text is cut before the merges apply
_GPT2_SPLIT = frozenset({"gpt-2", "gpt2"})
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "codeshell"})
_LLAMA3_NAMES = frozenset({"llama-bpe", "llama3", "llama-v3"})
_QWEN2_NAMES = frozenset({"qwen2", "deepseek-r1-qwen"})
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_SPLIT = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2_SPLIT = rf"{_WORDS}|\p{{N}}|{_REST}"


def write_tokenizer(source: GgufFile, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and, where the file has one, the chat template into ``folder``.

    Raises `BrokenCheckpointError` for a vocabulary that contradicts itself, `UnknownArchitectureError` for a kind of
    tokenizer that neither this module nor transformers reads.
    """
    tokens = _list_of(source, "tokens", str)
    if not tokens:
        raise BrokenCheckpointError(f"{source.path} holds no tokenizer; use a GGUF file that has its vocabulary inside")
    tokenizer = _byte_level(source, tokens) if _is_known_here(source) else _through_transformers(source)
    _prepend_bos(tokenizer, source, tokens)
    tokenizer.save(str(folder / TOKENIZER_FILE), pretty=False)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.metadata.get(f"{source.architecture}.context_length"),
    }
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")):
        token_id = special_token_id(source, key)
        if token_id is not None:
            settings[name] = tokens[token_id]
    (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    template = source.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")


def special_token_id(source: GgufFile, role: str) -> int | None:
    """The id of the token in ``role`` ("bos", "eos", "eot", "unknown", "padding"), None where the file has none."""
    token_id = source.metadata.get(f"tokenizer.ggml.{role}_token_id")
    if not isinstance(token_id, int):
        return None
    return token_id if 0 <= token_id < len(source.metadata.get("tokenizer.ggml.tokens", ())) else None


def _list_of(source: GgufFile, key: str, kind: type[Item]) -> list[Item]:
    """The metadata list tokenizer.ggml.``key``, empty where there is none."""
    values = source.metadata.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise BrokenCheckpointError(f"{source.path} holds a damaged vocabulary (tokenizer.ggml.{key}); fetch it again")
    return values


def _is_known_here(source: GgufFile) -> bool:
    known = _GPT2_SPLIT | _SINGLE_DIGITS | _LLAMA3_NAMES | _QWEN2_NAMES
    return source.metadata.get("tokenizer.ggml.model") == "gpt2" and source.metadata.get("tokenizer.ggml.pre") in known


def _byte_level(source: GgufFile, tokens: Sequence[str]) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise BrokenCheckpointError(f"{source.path} holds the same token twice in its vocabulary; fetch it again")
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in _list_of(source, "merges", str))]
    pre = str(source.metadata["tokenizer.ggml.pre"])
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, ignore_merges=pre in _LLAMA3_NAMES)
    except Exception as error:  # tokenizers raises bare Exception
        raise BrokenCheckpointError(
            f"{source.path} holds a damaged vocabulary ({first_line(error)}); fetch it again"
        ) from error
    tokenizer = Tokenizer(model)
    if pre in _QWEN2_NAMES:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _splitter(pre)
    tokenizer.decoder = decoders.ByteLevel()
    marked = list(zip(tokens, _list_of(source, "token_type", int), strict=False))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text, kind in marked if kind == _CONTROL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text, kind in marked if kind == _USER_DEFINED])
    return tokenizer


def _splitter(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre in _GPT2_SPLIT:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _SINGLE_DIGITS:
        cut: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    cut = pre_tokenizers.Split(Regex(_QWEN2_SPLIT if pre in _QWEN2_NAMES else _LLAMA3_SPLIT), behavior="isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _through_transformers(source: GgufFile) -> Tokenizer:
    """Sentencepiece and rarer kinds; slow (it may have to recover the merges) and done once per file."""
    try:
        converter = import_module("transformers.integrations.gguf")
        architecture, description, _ = converter.get_gguf_tokenizer(str(source.path))
        backend, _ = converter.convert_gguf_tokenizer(architecture, description)
    except Exception as error:  # a converter meeting a vocabulary it was not written for raises anything
        kind = source.metadata.get("tokenizer.ggml.model")
        raise UnknownArchitectureError(
            f"the tokenizer in {source.path} (kind {kind!r}) cannot be converted ({first_line(error)}); "
            "use the model's Hugging Face folder instead"
        ) from error
    tokenizer: Tokenizer = backend
    return tokenizer


def _prepend_bos(tokenizer: Tokenizer, source: GgufFile, tokens: Sequence[str]) -> None:
    """Start every text with BOS where the file says so; older files say nothing and mean it for these two kinds."""
    kind, pre = source.metadata.get("tokenizer.ggml.model"), source.metadata.get("tokenizer.ggml.pre")
    meant = kind == "llama" or pre in _LLAMA3_NAMES
    bos = special_token_id(source, "bos")
    if bos is None or not source.metadata.get("tokenizer.ggml.add_bos_token", meant):
        return
    text = tokens[bos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[text, "$A"], pair=[text, "$A", text, "$B"], special_tokens=[(text, bos)]
    )
