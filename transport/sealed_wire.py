"""A wire that seals what goes over another one. Knows neither of the two's insides."""

from __future__ import annotations

from .link import Wire, WireEvent
from .link_machine import Segments
from .seal import Seal


class SealedWire:
    """A `Wire` over ``wire`` whose frames only the holder of the same secret can read or make."""

    def __init__(self, wire: Wire, seal: Seal) -> None:
        self._wire = wire
        self._seal = seal

    def send_nowait(self, segments: Segments) -> bool:
        """See `Wire`."""
        return self._wire.send_nowait(self._seal.seal(segments))

    def receive_nowait(self) -> list[memoryview] | None:
        """See `Wire`."""
        segments = self._wire.receive_nowait()
        return None if segments is None else self._seal.open(segments)

    async def wait_receivable(self) -> None:
        """See `Wire`."""
        await self._wire.wait_receivable()

    async def next_event(self) -> WireEvent:
        """See `Wire`."""
        return await self._wire.next_event()

    def settle(self) -> None:
        """See `Wire`."""
        self._wire.settle()

    async def aclose(self, *, flush: bool) -> None:
        """See `Wire`."""
        await self._wire.aclose(flush=flush)
