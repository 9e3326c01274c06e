"""The shape of `GET /flexpipe/v1/decisions?last=N`: what the autopilot decided last, oldest first.

Owns the question and its refusals. What a decision says is the autopilot's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from .openai_errors import refused

LAST_DEFAULT = 20
LAST_MAX = 1000
"""Decisions of one answer."""


class Decisions(Protocol):
    """Whoever keeps what was decided."""

    def last(self, count: int) -> Sequence[msgspec.Struct]:
        """The last ``count``, oldest first."""
        ...


def last_decisions(decisions: Decisions | None, query: Mapping[str, str]) -> dict[str, object]:
    """The answer. Raises `ApiError`: 404 where nobody decides, 400 where ``last`` is no number in bounds."""
    if decisions is None:
        raise refused(404, "no_autopilot", "Nobody decides anything here: the server was started without --auto.")
    text = query.get("last", str(LAST_DEFAULT))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:8]) <= LAST_MAX):
        raise refused(400, "invalid_value", f"last is {text[:32]!r}; give a number from 1 to {LAST_MAX}.", "last")
    return {"decisions": decisions.last(int(text))}
