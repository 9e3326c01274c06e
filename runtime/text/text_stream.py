"""Text of one sequence, token by token, where a character may be spread over several tokens.

Owns the window of recent tokens that has to be decoded again. Works with any `interface.Tokenizer`; knows nothing of
stop strings or of how text is sent.

A tokenizer promises only that the decoding of a whole sequence is right: one token alone may be a part of a UTF-8
character, or lose the space before it. So the stream decodes a short window without and with the new token and hands
out the difference (the method of vLLM and text-generation-inference). The window starts where the text was complete,
and is cut back to the last piece whenever it is complete again.
"""

from __future__ import annotations

from ..interface import Tokenizer

REPLACEMENT = "\ufffd"

PENDING_TOKENS_MAX = 8
"""An unfinished character needs at most 3 tokens, each a byte; what stays unfinished for longer is not UTF-8."""

CONTEXT_TOKENS = 4
"""Kept when the window is cut inside broken UTF-8: they hold every byte that may still belong to a character."""


class TextStream:
    """Push every token once, in order. The pieces and `finish` together are ``tokenizer.decode`` of all tokens.

    That holds exactly for byte-level tokenizers, whatever the tokens. Tokenizers with byte fallback (sentencepiece)
    turn a whole run of byte tokens into U+FFFD when any of it is not UTF-8, text that was complete included; of such a
    run the pieces keep what was already shown.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._text = ""  # what the window decodes to
        self._shown = 0  # how many of its characters were handed out
        self._settled = 0  # how many of the window's tokens have all of their text handed out

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes: often its own, "" in the middle of a character.

        Takes time for a few tokens at most, however long the sequence is.
        """
        text = self._tokenizer.decode([*self._window, token_id])
        if text == self._text and self._is_textless(token_id):
            return ""
        self._window.append(token_id)
        self._text = text
        if not text.endswith(REPLACEMENT):
            return self._settle()
        if len(self._window) - self._settled > PENDING_TOKENS_MAX:
            return self._give_up_waiting()
        return ""

    def finish(self) -> str:
        """What is left, an unfinished character as U+FFFD. The stream then is as new."""
        rest = self._text[self._shown :]
        self._window, self._text, self._shown, self._settled = [], "", 0, 0
        return rest

    def _is_textless(self, token_id: int) -> bool:
        """Whether this is a special token, which is left out of every text and need not be kept.

        Before any text a sentencepiece word mark looks the same but matters to the token after it, so a few are kept.
        """
        if not self._text and len(self._window) < PENDING_TOKENS_MAX:
            return False
        return not self._tokenizer.decode([token_id])

    def _settle(self) -> str:
        """All of the window's text is complete: hand out the rest of it, cut the window back to the last piece."""
        piece = self._text[self._shown :]
        if piece:
            self._keep(self._window[self._settled :])
            self._settled = len(self._window)
            self._shown = len(self._text)
        return piece

    def _give_up_waiting(self) -> str:
        """Broken UTF-8: all but the last U+FFFD is final, since an unfinished character decodes to exactly one."""
        piece = self._text[self._shown : -len(REPLACEMENT)]
        self._keep(self._window[-CONTEXT_TOKENS:])
        self._settled = 0
        self._shown = len(self._text) - len(REPLACEMENT)
        return piece

    def _keep(self, window: list[int]) -> None:
        self._window = window
        self._text = self._tokenizer.decode(window)
