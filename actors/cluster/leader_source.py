"""Who leads, as whoever follows asks: nodes and gateways. Knows no store and no link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import trio


@dataclass(frozen=True, slots=True)
class LeaderAt:
    """Who leads, where, and in which term; term 0 where only the address is known."""

    address: str
    term: int = 0


class LeaderSource(Protocol):
    """Knows who leads."""

    async def next_leader(self, known: LeaderAt | None) -> LeaderAt:
        """Wait for a leader other than ``known``."""
        ...


class FixedLeader:
    """The `LeaderSource` of a cluster whose leader was named to each node."""

    def __init__(self, address: str) -> None:
        self._leader = LeaderAt(address)

    async def next_leader(self, known: LeaderAt | None) -> LeaderAt:
        """See `LeaderSource.next_leader`."""
        if known is None:
            await trio.lowlevel.checkpoint()
            return self._leader
        await trio.sleep_forever()
        raise AssertionError
