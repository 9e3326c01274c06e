"""The model's chat template: messages to the text that the model was trained on.

Owns where the template is found and what messages may look like. Rendering is transformers' own sandboxed renderer, so
that the text equals what ``apply_chat_template`` gives there; that module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..models.model_folder import CHAT_TEMPLATE_FILE, BrokenCheckpointError, read_json_object

SPECIAL_TOKENS_FILE = "special_tokens_map.json"
DEFAULT_TEMPLATE = "default"

Renderer = Callable[..., tuple[list[str], Any]]


class ChatTemplate:
    """A Jinja template with the special tokens that it may name (``bos_token``, ``eos_token``, ...)."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        self._source = source
        self._special_tokens = special_tokens
        self._renderer = _load_renderer()

    def render(self, messages: Sequence[dict[str, object]]) -> str:
        """The conversation as text, ending where the assistant is to speak.

        A message is ``{"role": ..., "content": ...}``; content is text, None, or a list of ``{"type": "text"}`` parts,
        which are joined. Raises ValueError with a sentence where a message or the template objects.
        """
        conversation = [_plain_message(index, message) for index, message in enumerate(messages)]
        try:
            rendered, _ = self._renderer(
                [conversation], chat_template=self._source, add_generation_prompt=True, **self._special_tokens
            )
        except Exception as error:  # the template is the model's own code and may fail in any way
            raise ValueError(f"the model's chat template refuses these messages: {error}") from error
        return rendered[0]


def read_chat_template(folder: Path, settings: dict[str, Any]) -> ChatTemplate | None:
    """The template of the model in ``folder``, None where it has none. ``settings`` is its tokenizer_config.json."""
    source = _read_source(folder, settings)
    if source is None:
        return None
    older = folder / SPECIAL_TOKENS_FILE
    named = (read_json_object(older) if older.exists() else {}) | settings
    tokens: dict[str, str] = {}
    for name, token in named.items():
        text = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return ChatTemplate(source, tokens)


def _read_source(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / CHAT_TEMPLATE_FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BrokenCheckpointError(f"{path} cannot be read ({error}); fetch the model again") from error
    stated = settings.get("chat_template")
    if isinstance(stated, list):  # several by name, as models with tool use have them
        named = {entry.get("name"): entry.get("template") for entry in stated if isinstance(entry, dict)}
        stated = named.get(DEFAULT_TEMPLATE, next(iter(named.values()), None))
    return stated if isinstance(stated, str) else None


def _load_renderer() -> Renderer:
    renderer: Renderer = import_module("transformers.utils.chat_template_utils").render_jinja_template
    return renderer


def _plain_message(index: int, message: dict[str, object]) -> dict[str, object]:
    if not isinstance(message.get("role"), str):
        raise ValueError(f"message {index} has no role; give one of system, user, assistant")  # noqa: TRY004 - contract
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": "".join(_part_text(index, part) for part in content)}
    return dict(message)


def _part_text(index: int, part: object) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ValueError(f"message {index} holds a part that is not text; this server reads text only")
