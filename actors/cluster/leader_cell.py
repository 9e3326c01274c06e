"""Who leads, as known in this process: one value, and those who wait for it to change.

Owns the waking. Knows no store.
"""

from __future__ import annotations

import trio

from .cluster_store import LeaderRecord


class LeaderCell:
    """Holds the last value that was set. Any number of tasks may wait for the next."""

    def __init__(self) -> None:
        self._value: LeaderRecord | None = None
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def value(self) -> LeaderRecord | None:
        """Who leads; None where nobody is known to."""
        return self._value

    def set(self, value: LeaderRecord | None) -> None:
        """Replace the value. The same again wakes nobody."""
        if value != self._value:
            self._value = value
            self._waiting.unpark_all()

    async def changed(self) -> None:
        """Wait for the value to change."""
        await self._waiting.park()
