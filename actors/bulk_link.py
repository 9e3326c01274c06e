"""Messages with a bulk of bytes: a small header, and bytes that lie in the message or, between processes of one host, in a ring.

The mechanics that `activation_link` and `page_link` share. It knows neither hidden states nor pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import trio

from ..transport.interface import FrameError, Link, LinkClosedError
from ..transport.ring import RingReader, RingWriter
from .link_place import LinkPlace, Surroundings

IN_MESSAGE = -1
"""The slot number of bytes that travel in the message."""


@dataclass(frozen=True, slots=True)
class Bulk:
    """Memory to be filled and sent: ring slot ``slot``, or memory of its own."""

    data: memoryview
    slot: int


class BulkSender:
    """The sending end, for any number of tasks. ``slots`` bulks may be under way in the ring, which is made at the first use."""

    def __init__(self, link: Link, ring_path: str | None, *, slots: int) -> None:
        self.link = link
        self._ring_path = ring_path
        self._slots = slots
        self._ring: RingWriter | None = None
        self._closed = False
        self._turn = trio.Lock()  # a link takes one sender at a time

    @classmethod
    async def connect(cls, around: Surroundings, place: LinkPlace, *, name: str, slots: int) -> BulkSender:
        """Connect to who binds ``place``."""
        return cls(await around.connect(place, name=name), around.ring_path(place), slots=slots)

    @property
    def has_ring(self) -> bool:
        """Whether bulks may lie in shared memory."""
        return self._ring_path is not None

    async def make_ring(self, bytes_max: int) -> None:
        """Make the ring now, where there is to be one, rather than at the first use. The other end must listen already.

        In a thread: its memory is touched, which takes about a millisecond for 4 MiB. Raises `PeerLostError`.
        """
        if self._ring_path is None or self._ring is not None:
            return
        async with self._turn:
            if self._ring is None:
                connect = partial(RingWriter.connect, self._ring_path, slots=self._slots, slot_bytes=bytes_max)
                self._ring = await trio.to_thread.run_sync(connect)
            if self._closed:
                self._ring.close()

    async def take(self, size: int, bytes_max: int) -> Bulk:
        """Memory for ``size`` of at most ``bytes_max`` bytes; waits for a free slot. Then `send` it or `give_back` it.

        ``bytes_max`` is the same every time. Raises `PeerLostError`, `LinkClosedError` after `close`.
        """
        if self._closed:
            raise LinkClosedError(f"{self.link.name} was closed by this end")
        if self._ring_path is None:
            return Bulk(memoryview(bytearray(size)), IN_MESSAGE)
        await self.make_ring(bytes_max)
        assert self._ring is not None
        slot = await self._ring.acquire()
        return Bulk(self._ring.view(slot)[:size], slot)

    async def send(self, header: bytes, bulk: Bulk) -> None:
        """Send; the header names ``bulk.slot``. Where it fails or is cancelled, the slot is free again."""
        try:
            async with self._turn:
                await self.link.send([header] if bulk.slot != IN_MESSAGE else [header, bulk.data])
        except BaseException:
            self.give_back(bulk)
            raise

    def give_back(self, bulk: Bulk) -> None:
        """Free memory that was not sent after all."""
        if self._ring is not None and bulk.slot != IN_MESSAGE:
            self._ring.give_back(bulk.slot)

    def close(self) -> None:
        """Give the ring's memory up, not the link. Idempotent."""
        self._closed = True
        if self._ring is not None:
            self._ring.close()


class BulkReceiver:
    """The receiving end, which binds."""

    def __init__(self, link: Link, ring: RingReader | None) -> None:
        self.link = link
        self._ring = ring
        self._viewed: set[int] = set()

    @classmethod
    async def bind(cls, around: Surroundings, place: LinkPlace, *, name: str) -> BulkReceiver:
        """Bind ``place``; on one host a ring is expected beside it."""
        path = around.ring_path(place)
        ring = RingReader.listen(path) if path else None
        try:
            return cls(await around.bind(place, name=name), ring)
        except BaseException:
            if ring is not None:
                ring.close()
            raise

    def view(self, slot: int, size: int, parts: list[memoryview]) -> memoryview:
        """The ``size`` bytes of a message: its one other part, or those in ``slot``. Raises `FrameError` where they are not."""
        if self._ring is not None and slot >= 0 and not parts:
            if slot in self._viewed:
                raise FrameError(f"ring slot {slot} was sent again while it was in use")
            view = self._ring.view(slot, size)
            self._viewed.add(slot)
            return view
        if len(parts) != 1 or parts[0].nbytes != size:
            raise FrameError(
                f"{size} bytes were announced and came in parts of {[part.nbytes for part in parts]} bytes"
            )
        return parts[0]

    def release(self, slot: int) -> None:
        """What lay in ``slot`` is not needed any more. After `close` there is nobody to tell."""
        if self._ring is not None and slot in self._viewed:
            self._viewed.remove(slot)
            self._ring.release(slot)

    def close(self) -> None:
        """Give the ring's memory up, not the link; views that are in use stay good. Idempotent."""
        if self._ring is not None:
            self._ring.close()
        self._viewed.clear()
