"""Which requests make up the next step, and how many tokens each: continuous batching with chunked prefill.

Pure: values in, values out. It knows nothing of block tables or stages beyond the numbers it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one step. ``step_tokens_max``: tokens of all rows together; ``step_rows_max``: requests in the step."""

    step_tokens_max: int = 512
    step_rows_max: int = 128

    def __post_init__(self) -> None:
        """Refuse limits that would make no step possible."""
        if self.step_tokens_max < 1 or self.step_rows_max < 1:
            raise ValueError("step_tokens_max and step_rows_max must be at least 1")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that is in no step under way. ``missing`` tokens lack KV: 1 while decoding, more while prefilling."""

    request: int
    missing: int


@dataclass(frozen=True, slots=True)
class Share:
    """A request's part of a step: its next ``tokens`` tokens."""

    request: int
    tokens: int


def choose_batch(
    candidates: Sequence[Candidate], decoding: int, prefilling: int, depth: int, limits: BatchLimits
) -> list[Share]:
    """Fill one step from ``candidates`` (in order of arrival).

    Decoding rows come first, since each waits for one token; what is left of the token budget goes to prefill chunks in
    order of arrival. A pipeline of ``depth`` stages wants ``depth`` steps under way, so one step takes at most its even
    share of the requests that are ``decoding``, and at most its even share of those that are ``prefilling`` (both count those
    in steps under way and the candidates): otherwise the first step would take all of them and leave the other stages idle.
    Each kind has a share of its own, for where prompts had only the places that no row takes, the rows of a deep loaded
    pipeline packed into all steps but two, and prompts waited for these. Ties cannot occur: order is arrival order.
    """
    rows = [c for c in candidates if c.missing == 1][: _even_share(decoding, depth)]
    rows += [c for c in candidates if c.missing > 1][: _even_share(prefilling, depth)]
    budget = limits.step_tokens_max
    shares: list[Share] = []
    for candidate in rows[: limits.step_rows_max]:
        if budget == 0:
            break
        tokens = min(candidate.missing, budget)
        shares.append(Share(candidate.request, tokens))
        budget -= tokens
    return shares


def _even_share(requests: int, depth: int) -> int:
    return -(-requests // max(depth, 1))
