"""A byte-level toy tokenizer and its incremental text stream: real implementations, small enough to reason about.

Ids 0 to 255 are bytes, then begin-of-sequence, end-of-sequence and a few multi-byte pieces, so that stop strings and
UTF-8 characters fall across token boundaries.
"""

from __future__ import annotations

import codecs

BEGIN, END = 256, 257
PIECES = {258: b"hello", 259: b" world", 260: "é".encode(), 261: b"STOP", 262: b" the"}
VOCABULARY_SIZE = 263
SPECIAL = {BEGIN: "<s>", END: "</s>"}


def token_bytes(token_id):
    if token_id in SPECIAL:
        return b""
    return PIECES[token_id] if token_id in PIECES else bytes([token_id])


class ToyTokenizer:
    """Implements `runtime.interface.Tokenizer`; the chat template is ``role: content`` lines."""

    @property
    def eos_token_ids(self):
        return (END,)

    @property
    def vocabulary_size(self):
        return VOCABULARY_SIZE

    def encode(self, text, *, add_special_tokens=True):
        return [BEGIN] * add_special_tokens + list(text.encode())

    def decode(self, token_ids):
        return b"".join(token_bytes(token_id) for token_id in token_ids).decode(errors="replace")

    def token_text(self, token_id):
        return SPECIAL.get(token_id) or token_bytes(token_id).decode(errors="replace")

    def apply_chat_template(self, messages):
        if any(message["role"] == "tool" for message in messages):
            raise ValueError("this model's template has no tool role")
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return [BEGIN, *"".join([*lines, "assistant: "]).encode()]


class ToyTextStream:
    """Implements `actors.request_machine.TextStream` with the standard library's incremental decoder."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id):
        return self._decoder.decode(token_bytes(token_id))

    def finish(self):
        return self._decoder.decode(b"", final=True)
