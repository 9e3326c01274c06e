"""Who holds which KV block: the one authority on block ids, kept by the scheduler.

An id means the same page set on every stage of the pipeline, so a page can change its home without any table changing.
Pure; every move that would break the ledger raises `LedgerError` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable


class LedgerError(Exception):
    """A block was taken twice, or given back by one who does not hold it: our bug."""


class BlockLedger:
    """Hands out block ids ``0 .. capacity - 1`` to requests."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = list(range(capacity - 1, -1, -1))
        self._held: dict[int, list[int]] = {}

    @property
    def free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks somebody holds."""
        return self.capacity - len(self._free)

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
            self._held[request] = held + [self._free.pop() for _ in range(lacking)]
        return True

    def release(self, request: int) -> int:
        """Give back all that ``request`` holds; the number of blocks."""
        blocks = self._held.pop(request, [])
        self._free.extend(reversed(blocks))
        return len(blocks)

    def check(self, alive: Iterable[int]) -> None:
        """Raise `LedgerError` unless every block is free or held exactly once, and only by requests in ``alive``."""
        stray = set(self._held) - set(alive)
        if stray:
            raise LedgerError(f"blocks are held by requests that are gone: {sorted(stray)}")
        seen = [*self._free, *(block for held in self._held.values() for block in held)]
        if sorted(seen) != list(range(self.capacity)):
            raise LedgerError("some block is free and held at once, or held twice, or missing")
