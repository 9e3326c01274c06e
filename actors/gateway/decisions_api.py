"""The shape of `GET /flexpipe/v1/decisions?last=N`: what the autopilot decided last, oldest first.

Owns the question and its refusals. What a decision says is the autopilot's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ..generation import GenerationFailedError
from .openai_errors import ApiError, generation_failed, refused

LAST_DEFAULT = 20
LAST_MAX = 1000
"""Decisions of one answer."""


class Decisions(Protocol):
    """Whoever keeps what was decided, perhaps elsewhere."""

    async def recall(self, count: int) -> Sequence[object] | None:
        """The last ``count``, oldest first, each to be written as JSON; None where nobody decides anything.

        Raises `GenerationFailedError` where whoever knows cannot be asked now.
        """
        ...


async def last_decisions(decisions: Decisions | None, query: Mapping[str, str]) -> dict[str, object]:
    """The answer. Raises `ApiError`: 404 where nobody decides, 400 where ``last`` is out of bounds, 503 where nobody knows."""
    if decisions is None:
        raise _nobody_decides()
    text = query.get("last", str(LAST_DEFAULT))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:8]) <= LAST_MAX):
        raise refused(400, "invalid_value", f"last is {text[:32]!r}; give a number from 1 to {LAST_MAX}.", "last")
    try:
        last = await decisions.recall(int(text))
    except GenerationFailedError as error:
        raise generation_failed(error) from error
    if last is None:
        raise _nobody_decides()
    return {"decisions": last}


def _nobody_decides() -> ApiError:
    return refused(404, "no_autopilot", "Nobody decides anything here: the server was started without --auto.")
