"""The model's tokenizer: `HfTokenizer` implements `interface.Tokenizer` over a Hugging Face folder.

Owns the reading of tokenizer.json and of the ids that end a generation. It runs in the gateway's process, so it must
never import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from ..models.model_folder import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    BrokenCheckpointError,
    read_json_object,
)
from .chat_template import ChatTemplate, read_chat_template

_WORD_START = "\u2581"
"""Sentencepiece's mark for a space before a word."""


class TokenizerMissingError(BrokenCheckpointError):
    """The folder holds no tokenizer that can be read."""


class HfTokenizer:
    """Text to ids and back. Safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        """Read the tokenizer in ``folder``; raises `BrokenCheckpointError`, `TokenizerMissingError`."""
        self._folder = folder
        self._backend = _read_backend(folder)
        settings = _optional_json(folder / TOKENIZER_CONFIG_FILE)
        self._special_ids = frozenset(
            token_id for token_id, token in self._backend.get_added_tokens_decoder().items() if token.special
        )
        self._vocabulary_size = max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._eos_token_ids = _eos_token_ids(folder, settings, self._backend)
        self._chat_template: ChatTemplate | None = read_chat_template(folder, settings)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation, from generation_config.json, config.json or the tokenizer."""
        return self._eos_token_ids

    @property
    def vocabulary_size(self) -> int:
        """Ids are below this."""
        return self._vocabulary_size

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Text to ids. Raises ValueError for a lone surrogate, which is no character."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds half of a surrogate pair at index {error.start}, which is no character; "
                "send valid Unicode"
            ) from None
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Ids to text, special tokens left out; an incomplete UTF-8 tail comes out as U+FFFD."""
        text: str = self._backend.decode(token_ids, skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str:
        """One token alone, its leading space and special tokens shown; U+FFFD where it is a part of a character."""
        piece = self._backend.id_to_token(token_id)
        if piece is None:
            return ""
        if token_id in self._special_ids:
            return str(piece)
        text = self.decode([token_id])
        return f" {text}" if piece.startswith(_WORD_START) and not text.startswith(" ") else text

    def apply_chat_template(self, messages: Sequence[dict[str, object]]) -> list[int]:
        """Render the model's own template with a generation prompt and encode it. Raises ValueError with a sentence."""
        if self._chat_template is None:
            raise ValueError("this model has no chat template; use /v1/completions with a plain prompt instead")
        return self.encode(self._chat_template.render(messages), add_special_tokens=False)


def _read_backend(folder: Path) -> Backend:
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise TokenizerMissingError(
            f"{folder} holds no {TOKENIZER_FILE}; with transformers, AutoTokenizer.from_pretrained(folder)"
            ".save_pretrained(folder) writes it from the older files"
        )
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise BrokenCheckpointError(f"{path} cannot be read ({error}); fetch the model again") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _eos_token_ids(folder: Path, settings: dict[str, Any], backend: Backend) -> tuple[int, ...]:
    """The first file that names any decides; generation_config.json lists every end of turn, config.json often one."""
    for name in (GENERATION_CONFIG_FILE, CONFIG_FILE):
        value = _optional_json(folder / name).get("eos_token_id")
        candidates = value if isinstance(value, list) else [value]
        ids = tuple(token_id for token_id in candidates if isinstance(token_id, int))
        if ids:
            return ids
    token = settings.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    token_id = backend.token_to_id(text) if isinstance(text, str) else None
    return () if token_id is None else (token_id,)
