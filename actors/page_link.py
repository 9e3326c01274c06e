"""KV pages from a donor to an acquirer: runs of pages forward, refusals back, over one link.

Between two processes of one host pages are gathered straight into a shared-memory ring and scattered straight out of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from .bulk_link import BulkReceiver, BulkSender
from .layer_pages import size_of
from .link_place import LinkPlace, Surroundings
from .messages import TO_ACQUIRER, TO_DONOR, PageRun, PagesEnd, PagesRefused, PagesWelcome

RING_SLOTS = 3
"""Runs that may lie in the ring at once; the donor waits for a free slot."""


@dataclass(frozen=True, slots=True)
class ArrivedRun:
    """Pages that came; where ``run.slot`` >= 0 they lie in that slot until `PageReceiver.release`."""

    run: PageRun
    data: memoryview


class PageSender:
    """The donor's end, which connects. ``run_bytes_max`` bounds the pages of one run."""

    def __init__(self, bulk: BulkSender, run_bytes_max: int) -> None:
        self._bulk = bulk
        self._run_bytes_max = run_bytes_max

    @classmethod
    async def connect(cls, around: Surroundings, place: LinkPlace, *, name: str, run_bytes_max: int) -> PageSender:
        """Connect to the acquirer that binds ``place``."""
        return cls(await BulkSender.connect(around, place, name=name, slots=RING_SLOTS), run_bytes_max)

    async def send(self, run: PageRun, gather: Callable[[memoryview], Awaitable[int]]) -> None:
        """Send the pages of ``run``, which ``gather`` puts into the memory it is given; it answers their checksum.

        Waits while the acquirer is too far behind. Raises `PeerLostError`.
        """
        bulk = await self._bulk.take(size_of(run.pages), self._run_bytes_max)
        try:
            checksum = await gather(bulk.data)
        except BaseException:
            self._bulk.give_back(bulk)
            raise
        header = msgspec.structs.replace(run, checksum=checksum, slot=bulk.slot)
        await self._bulk.send(TO_ACQUIRER.encode(header), bulk)

    async def send_end(self, epoch: int) -> None:
        """Say that all was sent. Raises `PeerLostError`."""
        await self._bulk.link.send([TO_ACQUIRER.encode(PagesEnd(epoch))])

    async def receive(self) -> PagesWelcome | PagesRefused:
        """What the acquirer says: a welcome first, before which nothing may be sent. Raises `PeerLostError`, `FrameError`.

        The ring is made with the welcome, so that making it takes no time of the first run.
        """
        (payload,) = await self._bulk.link.receive()
        message = TO_DONOR.decode(payload)
        if isinstance(message, PagesWelcome):
            await self._bulk.make_ring(self._run_bytes_max)
        return message

    def close(self) -> None:
        """Give the ring's memory up. Idempotent."""
        self._bulk.close()

    async def aclose(self) -> None:
        """Close the link, too. Idempotent."""
        self.close()
        await self._bulk.link.aclose()


class PageReceiver:
    """The acquirer's end, which binds."""

    def __init__(self, bulk: BulkReceiver) -> None:
        self._bulk = bulk

    @classmethod
    async def bind(cls, around: Surroundings, place: LinkPlace, *, name: str) -> PageReceiver:
        """Bind ``place`` for the donor."""
        return cls(await BulkReceiver.bind(around, place, name=name))

    async def receive(self) -> ArrivedRun | PagesEnd:
        """What the donor sent next. Raises `PeerLostError`, `FrameError`; what a run says is the caller's to check."""
        first, *parts = await self._bulk.link.receive()
        message = TO_ACQUIRER.decode(first)
        if isinstance(message, PagesEnd):
            return message
        return ArrivedRun(message, self._bulk.view(message.slot, size_of(message.pages), parts))

    def release(self, run: PageRun) -> None:
        """The pages of ``run`` are in their places, or will not be."""
        self._bulk.release(run.slot)

    async def welcome(self, epoch: int) -> None:
        """Tell the donor that pages may come. Raises `PeerLostError`."""
        await self._bulk.link.send([TO_DONOR.encode(PagesWelcome(epoch))])

    async def refuse(self, refusal: PagesRefused) -> None:
        """Tell the donor. Raises `PeerLostError`."""
        await self._bulk.link.send([TO_DONOR.encode(refusal)])

    def close(self) -> None:
        """Give the ring's memory up. Idempotent."""
        self._bulk.close()

    async def aclose(self) -> None:
        """Close the link, too. Idempotent."""
        self.close()
        await self._bulk.link.aclose()
