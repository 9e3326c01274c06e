"""Which replica of a pipeline gets the next request: the one with the least work, of those that serve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What a replica has to do: ``work_tokens`` of context over all of its requests, waiting or running.

    ``serves`` is False while it starts or recovers: requests may have to wait there.
    """

    replica: int
    serves: bool
    work_tokens: int


def preference(loads: Iterable[ReplicaLoad]) -> tuple[int, ...]:
    """The replicas, best first: those that serve before others, then the least work, then the lowest number.

    Work is counted in tokens of context and not in requests, since a prompt's length is what it costs in prefill, in attention
    and in KV room; how many tokens a request will still make is not known.
    """
    return tuple(load.replica for load in sorted(loads, key=lambda at: (not at.serves, at.work_tokens, at.replica)))
