"""Finds the first stop string in text that arrives in pieces, and never shows a part of one.

Owns the one rule of where text is cut: at the stop string that is *completed* first, whatever the pieces were; of
several completed by the same character, at the longest. Pure; knows no tokens and no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Text in, text out, less what may still become a stop string: fewer characters than the longest one has."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._prefixes = [_PrefixMatcher(stop) for stop in stops]
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was seen; what follows it is never shown."""
        return self._stopped

    def push(self, text: str) -> str:
        """Take the next piece; return what may be shown now. Raises ValueError after the stop string."""
        if self._stopped:
            raise ValueError("text was pushed after the stop string")
        if not self._prefixes:
            return text
        buffer = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            completed = [len(matcher.stop) for matcher in self._prefixes if matcher.advance(character)]
            if completed:
                self._stopped = True
                self._held = ""
                return buffer[: end - max(completed)]
        shown = len(buffer) - max(matcher.matched for matcher in self._prefixes)
        self._held = buffer[shown:]
        return buffer[:shown]

    def finish(self) -> str:
        """No more text comes: return what was held back, for it became no stop string."""
        held, self._held = self._held, ""
        return held


class _PrefixMatcher:
    """Knuth, Morris and Pratt's matcher: ``matched`` is the longest end of the text so far that begins ``stop``."""

    def __init__(self, stop: str) -> None:
        if not stop:
            raise ValueError("a stop string is empty")
        self.stop = stop
        self.matched = 0
        self._fallbacks = _fallbacks(stop)

    def advance(self, character: str) -> bool:
        """Take one character; return whether it completes ``stop``. Not to be called again once it did."""
        self.matched = _step(self.stop, self._fallbacks, self.matched, character)
        return self.matched == len(self.stop)


def _fallbacks(stop: str) -> list[int]:
    """For each prefix of ``stop``, the length of its longest proper suffix that is also a prefix."""
    fallbacks = [0]
    for character in stop[1:]:
        fallbacks.append(_step(stop, fallbacks, fallbacks[-1], character))
    return fallbacks


def _step(stop: str, fallbacks: list[int], matched: int, character: str) -> int:
    while matched and stop[matched] != character:
        matched = fallbacks[matched - 1]
    return matched + 1 if stop[matched] == character else 0
