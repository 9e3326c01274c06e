"""Where a listener's peers wait: first for their hello, then to be accepted. Bounded in both; knows no socket."""

from __future__ import annotations

from collections import deque

import trio

from .interface import AcceptedLink, FrameError, LinkClosedError, TransportError
from .link import WireLink
from .refusal import OnRefusal, Refusal, RefusalReason

GREETING_S_MAX = 5.0
"""Whoever has not said hello by then is sent away; an honest peer's hello is its first frame."""
GUESTS_MAX = 256
"""How many may wait at once."""


class Reception:
    """The waiting room of the listener called ``name``. Its tasks live in ``nursery``."""

    def __init__(self, name: str, nursery: trio.Nursery, on_refusal: OnRefusal) -> None:
        self._name = name
        self._nursery = nursery
        self._on_refusal = on_refusal
        self._greeted = 0
        self._ready: deque[AcceptedLink] = deque()
        self._came = trio.lowlevel.ParkingLot()
        self._closed = False

    @property
    def is_full(self) -> bool:
        """Whether nobody more may be admitted."""
        return self._closed or self._greeted + len(self._ready) >= GUESTS_MAX

    def admit(self, link: WireLink, peer: str, host: str) -> None:
        """Somebody has connected: wait for the hello. Only where not `is_full`."""
        self._greeted += 1
        self._nursery.start_soon(self._greet, link, peer, host, name=f"greet {link.name}")

    def refuse(self, reason: RefusalReason, peer: str, host: str, detail: str) -> None:
        """Say that somebody was sent away."""
        self._on_refusal(Refusal(reason, self._name, peer, host, detail))

    async def accept(self) -> AcceptedLink:
        """See `Listener.accept`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while not self._ready:
            if self._closed:
                raise LinkClosedError(f"the listener {self._name} was closed by this end")
            await self._came.park()
            waited = True
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return self._ready.popleft()

    def close(self) -> list[AcceptedLink]:
        """Accept nobody any more; the links of those who waited, for the caller to close."""
        self._closed = True
        left = list(self._ready)
        self._ready.clear()
        self._came.unpark_all()
        return left

    async def _greet(self, link: WireLink, peer: str, host: str) -> None:
        try:
            if not await self._has_come(link, peer, host) or self._closed:
                await link.aclose()
                return
        finally:
            self._greeted -= 1
        self._ready.append(AcceptedLink(link, peer, link.peer_purpose))
        self._came.unpark()

    async def _has_come(self, link: WireLink, peer: str, host: str) -> bool:
        try:
            with trio.fail_after(GREETING_S_MAX):
                await link.wait_open()
        except trio.TooSlowError:
            self.refuse(RefusalReason.SILENT, peer, host, f"no hello came within {GREETING_S_MAX} s")
            return False
        except FrameError as error:
            self.refuse(RefusalReason.GREETING, peer, host, str(error))
            return False
        except TransportError:
            return False  # it left by itself
        return True
