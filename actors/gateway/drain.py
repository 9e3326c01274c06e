"""The end of a gateway's life: no new generations, and those under way get a limited time to finish.

Owns the two states (serving, draining) and the deadline. It must never know of HTTP or of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ..generation import GenerationFailedError

SENTENCE = "The server is shutting down."


class Drain:
    """Begins serving; draining is final."""

    def __init__(self) -> None:
        self._deadline_s: float | None = None
        self._scopes: set[trio.CancelScope] = set()

    @property
    def draining(self) -> bool:
        """Whether new generations are refused."""
        return self._deadline_s is not None

    def begin(self, drain_s_max: float) -> None:
        """Refuse new generations from now on and end those under way after ``drain_s_max`` seconds. Idempotent."""
        if self._deadline_s is not None:
            return
        self._deadline_s = trio.current_time() + drain_s_max
        for scope in self._scopes:
            scope.deadline = self._deadline_s

    def check(self) -> None:
        """Raise `GenerationFailedError` ("shutting_down") while draining."""
        if self.draining:
            raise GenerationFailedError("shutting_down", SENTENCE)

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Run one generation; raise `GenerationFailedError` ("shutting_down") where the drain's deadline ended it."""
        self.check()
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise GenerationFailedError("shutting_down", f"{SENTENCE} This generation did not end in time.")
