"""Who holds which KV block: the one authority on block ids, kept by the scheduler.

An id means the same page set on every stage of the pipeline, so a page can change its home without any table changing. The
lowest free id goes first, so that what is held can be kept together when there are to be fewer blocks.
Pure; every move that would break the ledger raises `LedgerError` and changes nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np


class LedgerError(Exception):
    """A block was taken twice, or given back by one who does not hold it: our bug."""


class BlockLedger:
    """Hands out block ids ``0 .. capacity - 1`` to requests, lowest first; none from ``limit_blocks`` on."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.limit_blocks = capacity
        self._free = list(range(capacity))  # ids below the limit, a heap
        self._held: dict[int, list[int]] = {}

    @property
    def free(self) -> int:
        """Blocks below the limit that nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks somebody holds."""
        return sum(map(len, self._held.values()))

    def blocks_of(self, request: int) -> list[int]:
        """The request's blocks in token order (not a copy)."""
        return self._held.get(request, [])

    def grow(self, request: int, blocks: int) -> bool:
        """Let ``request`` hold ``blocks`` blocks in all; False, and nothing changed, where too few are free."""
        held = self._held.get(request, [])
        lacking = blocks - len(held)
        if lacking > len(self._free):
            return False
        if lacking > 0:
            self._held[request] = held + [heapq.heappop(self._free) for _ in range(lacking)]
        return True

    def release(self, request: int) -> int:
        """Give back all that ``request`` holds; the number of blocks."""
        blocks = self._held.pop(request, [])
        for block in blocks:
            if block < self.limit_blocks:
                heapq.heappush(self._free, block)
        return len(blocks)

    def limit(self, blocks: int) -> None:
        """Hand out no id from ``blocks`` on. What is held there stays held."""
        if not 0 <= blocks <= self.capacity:
            raise LedgerError(f"a limit of {blocks} blocks was set on {self.capacity}")
        self.limit_blocks = blocks
        self._free = sorted(set(range(blocks)).difference(*self._held.values()))

    def resize(self, capacity: int) -> None:
        """Have ``capacity`` blocks, all of which may be handed out. Raises where one beyond it is held."""
        if holders := self.holders_beyond(capacity):
            raise LedgerError(f"requests {holders} hold blocks beyond {capacity}")
        self.capacity = capacity
        self.limit(capacity)

    def holders_beyond(self, blocks: int) -> list[int]:
        """Requests that hold an id from ``blocks`` on, oldest first."""
        if blocks >= self.capacity:
            return []
        return sorted(request for request, held in self._held.items() if max(held, default=-1) >= blocks)

    def held_bits(self) -> bytes:
        """A bit per block, little-endian bit order: whether somebody holds it."""
        bits = np.zeros(self.capacity, bool)
        for held in self._held.values():
            bits[held] = True
        return np.packbits(bits, bitorder="little").tobytes()

    def check(self, alive: Iterable[int]) -> None:
        """Raise `LedgerError` unless every block is free or held exactly once, and only by requests in ``alive``."""
        stray = set(self._held) - set(alive)
        if stray:
            raise LedgerError(f"blocks are held by requests that are gone: {sorted(stray)}")
        beyond = set(range(self.limit_blocks, self.capacity)).difference(*self._held.values())
        seen = [*self._free, *beyond, *(block for held in self._held.values() for block in held)]
        if sorted(seen) != list(range(self.capacity)):
            raise LedgerError("some block is free and held at once, or held twice, or missing")
