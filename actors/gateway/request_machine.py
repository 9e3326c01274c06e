"""One output sequence, from token events to text deltas: stop strings, log-probabilities, finish reason, token count.

Pure: events in, deltas out. It must never know of HTTP, of JSON or of where tokens come from; the gateway carries out
what a delta says (show the text, leave the generation).

    OPEN --token--> OPEN                    OPEN --token that completes a stop string--> CLOSED (delta says: cancel)
    OPEN --token with a finish--> CLOSED    CLOSED --anything--> IllegalEventError, nothing changes
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ..generation import Finish, TokenEvent
from .stop_strings import StopScanner


class TextStream(Protocol):
    """Tokens of one sequence to text, piece by piece; `runtime.text.text_stream` has the real one."""

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is certain now ("" inside a character of several tokens)."""
        ...

    def finish(self) -> str:
        """No more tokens come: return what is left, an incomplete character as U+FFFD."""
        ...


class TokenReport(msgspec.Struct, frozen=True):
    """One token's log-probability report. ``text_offset`` counts characters of the sequence's text before the token.

    ``top`` holds (token text, log-probability) pairs, most likely first.
    """

    text: str
    logprob: float
    text_offset: int
    top: tuple[tuple[str, float], ...] = ()


class Delta(msgspec.Struct, frozen=True):
    """What one event adds. ``cancel``: a stop string was seen; leave the generation, further tokens are not wanted."""

    text: str = ""
    reports: tuple[TokenReport, ...] = ()
    finish: Finish | None = None
    cancel: bool = False


class IllegalEventError(Exception):
    """A token came after the end, twice, or out of order."""


class RequestMachine:
    """The state of one output sequence.

    A token's report is given out together with the first character it brought; reports of tokens of which no character
    is shown (they lie in or behind a stop string, or are the stop token) are left out.
    """

    def __init__(self, text: TextStream, stops: Sequence[str], token_text: Callable[[int], str]) -> None:
        self._text = text
        self._scanner = StopScanner(stops)
        self._token_text = token_text
        self._pending: deque[TokenReport] = deque()
        self._tokens = 0
        self._made_characters = 0
        self._shown_characters = 0
        self._closed = False

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far, a stop token included."""
        return self._tokens

    @property
    def closed(self) -> bool:
        """Whether the sequence has its finish reason."""
        return self._closed

    def take(self, event: TokenEvent) -> Delta:
        """Take the next token. Raises `IllegalEventError`, changing nothing, where it is not the next."""
        if self._closed:
            raise IllegalEventError(f"token {event.index} came after the end of its sequence")
        if event.index != self._tokens:
            raise IllegalEventError(f"token {event.index} came where token {self._tokens} is due")
        self._tokens += 1
        shown = "" if event.finish == "stop" else self._show(event)
        if event.finish is not None and not self._scanner.stopped:
            shown += self._flush()
        self._shown_characters += len(shown)
        return self._delta(shown, event.finish)

    def _show(self, event: TokenEvent) -> str:
        piece = self._text.push(event.token.token_id)
        if event.token.logprob is not None:
            self._pending.append(self._report(event, event.token.logprob))
        self._made_characters += len(piece)
        return self._scanner.push(piece)

    def _flush(self) -> str:
        shown = self._scanner.push(self._text.finish())
        return shown if self._scanner.stopped else shown + self._scanner.finish()

    def _delta(self, shown: str, finish: Finish | None) -> Delta:
        if self._scanner.stopped:
            self._closed = True
            return Delta(shown, self._shown_reports(), "stop", cancel=finish is None)
        if finish is not None:
            self._closed = True
            return Delta(shown, tuple(self._pending), finish)
        return Delta(shown, self._shown_reports())

    def _shown_reports(self) -> tuple[TokenReport, ...]:
        reports = []
        while self._pending and self._pending[0].text_offset < self._shown_characters:
            reports.append(self._pending.popleft())
        return tuple(reports)

    def _report(self, event: TokenEvent, logprob: float) -> TokenReport:
        top = tuple((self._token_text(token_id), value) for token_id, value in event.token.top)
        return TokenReport(self._token_text(event.token.token_id), logprob, self._made_characters, top)
