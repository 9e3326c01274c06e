"""Carries out `handoff_machine` on one worker for one epoch: its page links, and the copying in and out of pages.

Before the cut a donor copies one run at a time, for a share of its time only, and rests in between, so that steps go first;
after it, at once. The engine copies in a thread of its own, and both ends keep it busy: the next runs wait for it already while
one is copied. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import numpy as np
import trio

from ..runtime.interface import EngineError
from ..transport.interface import TransportError
from .event_log import EventLog
from .handoff_events import (
    Across,
    Begin,
    CutCame,
    EndCame,
    EndSent,
    Event,
    Fail,
    GivenUp,
    Instruction,
    Progress,
    Refuse,
    RunCame,
    RunRefused,
    RunSent,
    SendEnd,
    SendRun,
    StepEnded,
    TransferBroke,
    Vote,
    Welcomed,
)
from .handoff_machine import HandoffLimits, HandoffMachine
from .layer_pages import LayerPages
from .link_place import Surroundings
from .messages import CopyTotals, Open, PageRun, PagesEnd, PagesWelcome
from .page_ledger import PageLedger
from .page_link import ArrivedRun, PageReceiver, PageSender

PROGRESS_INTERVAL_S = 0.1
"""Least time between two reports of progress."""
ARRIVALS_MAX = 3
"""Runs of one transfer that an acquirer puts in their places at once; more wait in the link."""


class PagePort(Protocol):
    """The part of an `EnginePort` that a handoff needs; see there."""

    async def gather_pages(self, pages: Sequence[LayerPages], out: memoryview) -> int:
        """Copy pages into ``out``; their checksum."""
        ...

    async def scatter_pages(self, pages: Sequence[LayerPages], data: memoryview, checksum: int) -> bool:
        """Put pages in their places where their checksum is right."""
        ...


class HandoffListener(Protocol):
    """Who is told how the handoff goes: the worker's stage actor."""

    async def handoff_voted(self, epoch: int) -> None:
        """Ready for the cut."""
        ...

    async def handoff_progressed(self, epoch: int, sent_bytes: int, remaining_bytes: int) -> None:
        """Some pages more were sent."""
        ...

    async def handoff_across(self, epoch: int, copied: CopyTotals) -> None:
        """All that is owed was sent, all that is due is here."""
        ...

    async def handoff_failed(self, epoch: int, sentence: str) -> None:
        """It cannot come to its end."""
        ...


class Handoff:
    """See the module. `open`, then `run` in a task of its own until cancelled, beside it `stepped` and `cut`; `close` at the end.

    ``listener`` is told from within these tasks. Nothing that a peer or the engine does wrong is raised: it fails the handoff.
    """

    def __init__(
        self,
        opened: Open,
        worker: int,
        engine: PagePort,
        ledger: PageLedger,
        listener: HandoffListener,
        log: EventLog,
        limits: HandoffLimits,
    ) -> None:
        self.machine = HandoffMachine(opened, worker, ledger, limits)
        self._opened = opened
        self._engine = engine
        self._listener = listener
        self._log = log
        self._limits = limits
        self._senders: dict[int, PageSender] = {}
        self._receivers: dict[int, PageReceiver] = {}
        self._hurry = trio.Event()
        self._gentle_turn = trio.Lock()
        self._progress_due_at = -float("inf")
        self._nursery: trio.Nursery | None = None

    async def open(self, around: Surroundings) -> None:
        """Bind what this worker takes, connect to what it gives. A place that cannot be used fails the handoff."""
        try:
            for place in (*self.machine.takes, *self.machine.gives):
                await self._watch(place, self._open_one, place, around)
        except BaseException:
            await self._close_links()
            raise

    async def run(self) -> None:
        """Hand over until cancelled, then close the links."""
        try:
            async with trio.open_nursery() as self._nursery:
                for place, sender in self._senders.items():
                    self._start(place, self._hear_acquirer, place, sender)
                for place, receiver in self._receivers.items():
                    self._start(place, self._take, place, receiver)
                await self._handle(Begin())
                await trio.sleep_forever()  # with every transfer over, too: its own cut may be still to come
        finally:
            self.close()
            await self._close_links()

    async def cut(self, live: bytes) -> None:
        """The last old step has run: send the rest, in haste."""
        self._hurry.set()
        await self._handle(CutCame(live))

    async def stepped(self) -> None:
        """A step ran; blocks may have become full."""
        await self._handle(StepEnded())

    def close(self) -> None:
        """Stop, and give the rings' memory up; the links close as `run` ends. Idempotent."""
        self.machine.handle(GivenUp())
        for sender in self._senders.values():
            sender.close()
        for receiver in self._receivers.values():
            receiver.close()

    async def _close_links(self) -> None:
        for sender in self._senders.values():
            await sender.aclose()
        for receiver in self._receivers.values():
            await receiver.aclose()

    # --- tasks ---

    def _start(self, place: int, task: Callable[..., Awaitable[None]], *args: object) -> None:
        assert self._nursery is not None, "nothing is sent before the handoff runs"
        self._nursery.start_soon(self._watch, place, task, *args)

    async def _watch(self, place: int, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run a task of one transfer. A lost or lying peer, or an engine that cannot copy, ends the transfer, not the worker."""
        try:
            await task(*args)
        except (TransportError, EngineError) as error:
            await self._handle(TransferBroke(place, f"{self._name(place)} broke: {error}"))

    async def _open_one(self, place: int, around: Surroundings) -> None:
        transfer, name = self._opened.transfers[place], self._name(place)
        if place in self.machine.takes:
            self._receivers[place] = await PageReceiver.bind(around, transfer.place, name=name)
        else:
            bytes_max = max(self._limits.run_bytes_max, self._limits.hurried_run_bytes_max, *transfer.page_bytes)
            self._senders[place] = await PageSender.connect(around, transfer.place, name=name, run_bytes_max=bytes_max)

    async def _send_end(self, job: SendEnd) -> None:
        await self._senders[job.transfer].send_end(self._opened.epoch)
        await self._handle(EndSent(job.transfer))

    async def _send_run(self, job: SendRun) -> None:
        if job.hurried:
            await self._send(job)
        else:
            await self._send_gently(job)
        await self._handle(RunSent(job.transfer))

    async def _send_gently(self, job: SendRun) -> None:
        """Send, then rest, unless the cut comes.

        All transfers of this worker in turn, and it takes its part of the share only, so that shares do not add up.
        """
        share_max = self._limits.copy_share_max / max(1, self._opened.donors)
        async with self._gentle_turn:
            began_s = trio.current_time()
            await self._send(job)
            busy_s = trio.current_time() - began_s
            with trio.move_on_after(busy_s * (1 / share_max - 1)):
                await self._hurry.wait()

    async def _send(self, job: SendRun) -> None:
        async def gather(out: memoryview) -> int:
            return await self._engine.gather_pages(job.pages, out)

        run = PageRun(self._opened.epoch, job.pages, checksum=0)
        await self._senders[job.transfer].send(run, gather)

    async def _hear_acquirer(self, place: int, sender: PageSender) -> None:
        while True:
            message = await sender.receive()
            if isinstance(message, PagesWelcome):
                await self._handle(Welcomed(place, message))
            else:
                await self._handle(RunRefused(place, message))

    async def _take(self, place: int, receiver: PageReceiver) -> None:
        arrivals = _Arrivals()
        await receiver.welcome(self._opened.epoch)
        while True:
            arrived = await receiver.receive()
            if isinstance(arrived, PagesEnd):
                await arrivals.wait_none()
                await self._handle(EndCame(place, arrived.epoch))
            else:
                await arrivals.add(arrived.run)
                self._start(place, self._put_run, place, arrived, arrivals)

    async def _put_run(self, place: int, arrived: ArrivedRun, arrivals: _Arrivals) -> None:
        try:
            fault = await self._put(place, arrived)
        finally:
            self._receivers[place].release(arrived.run)
        await self._handle(RunCame(place, arrived.run, fault))
        arrivals.remove(arrived.run)

    async def _put(self, place: int, arrived: ArrivedRun) -> str:
        """Put pages in their places; what is wrong with them, "" where they are."""
        run = arrived.run
        fault = self.machine.wrong_with(place, run, arrived.data.nbytes)
        if fault:
            return fault
        if not await self._engine.scatter_pages(run.pages, arrived.data, run.checksum):
            return f"its pages of layers {[part.layer for part in run.pages]} have a wrong checksum"
        return ""

    # --- carrying out ---

    async def _handle(self, event: Event) -> None:
        for instruction in self.machine.handle(event):
            await self._perform(instruction)

    async def _perform(self, instruction: Instruction) -> None:
        epoch = self._opened.epoch
        match instruction:
            case SendRun(transfer):
                self._start(transfer, self._send_run, instruction)
            case SendEnd(transfer):
                self._start(transfer, self._send_end, instruction)
            case Refuse(transfer, refusal):
                layers = [part.layer for part in refusal.pages]
                self._log.emit("pages_refused", epoch=epoch, layers=layers, sentence=refusal.sentence)
                await self._receivers[transfer].refuse(refusal)
            case Vote():
                await self._listener.handoff_voted(epoch)
            case Progress(sent_bytes, remaining_bytes):
                await self._progress(sent_bytes, remaining_bytes)
            case Across(copied):
                await self._listener.handoff_across(epoch, copied)
            case Fail(sentence):
                await self._listener.handoff_failed(epoch, sentence)

    async def _progress(self, sent_bytes: int, remaining_bytes: int) -> None:
        if trio.current_time() >= self._progress_due_at:
            self._progress_due_at = trio.current_time() + PROGRESS_INTERVAL_S
            await self._listener.handoff_progressed(self._opened.epoch, sent_bytes, remaining_bytes)

    def _name(self, place: int) -> str:
        transfer = self._opened.transfers[place]
        return f"the transfer of pages from worker {transfer.donor} to worker {transfer.acquirer}"


class _Arrivals:
    """Runs of one transfer that are being put in their places: a few, and never two with the same page, as order would matter."""

    def __init__(self) -> None:
        self._runs: list[PageRun] = []
        self._fewer = trio.Event()

    async def add(self, run: PageRun) -> None:
        """Let ``run`` be one of them, when it may."""
        while len(self._runs) >= ARRIVALS_MAX or any(_share_pages(run, other) for other in self._runs):
            await self._fewer.wait()
        self._runs.append(run)

    def remove(self, run: PageRun) -> None:
        """Its pages are in their places, or will not be."""
        self._runs.remove(run)
        self._fewer.set()
        self._fewer = trio.Event()

    async def wait_none(self) -> None:
        """Until all are."""
        while self._runs:
            await self._fewer.wait()


def _share_pages(one: PageRun, other: PageRun) -> bool:
    others = {part.layer: part.block_numbers for part in other.pages}
    return any(np.isin(part.block_numbers, others.get(part.layer, ())).any() for part in one.pages)
