"""The end of a gateway's life: no new work, and what is under way gets a limited time to finish.

Owns the two states (serving, draining) and the deadline. It must never know of HTTP or of what
the work is.
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
        """Whether new work is refused."""
        return self._deadline_s is not None

    def begin(self, drain_s_max: float) -> None:
        """Refuse new work from now on and end what is under way after ``drain_s_max`` seconds. Idempotent."""
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
    def work(self, name: str) -> Iterator[None]:
        """Do one piece of work; raise `GenerationFailedError` ("shutting_down") where the drain's deadline ended it.

        ``name`` is what an error calls it: "generation".
        """
        self.check()
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise GenerationFailedError("shutting_down", f"{SENTENCE} This {name} did not end in time.")
