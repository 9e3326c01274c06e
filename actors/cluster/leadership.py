"""Lets a daemon lead when it is its turn: carries out what `leadership_machine` decides, with a store and the daemon's own duties.

Owns the claim, its beat, and the task in which the duties run. What leading means is the composition root's: one coroutine, begun
with the claim, cancelled when this daemon steps down.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from ..event_log import EventLog
from .cluster_store import (
    AlreadyLedError,
    Candidate,
    Claim,
    ClusterStore,
    LeaderRecord,
    LeadershipLostError,
    StoreRefusedError,
    StoreUnavailableError,
)
from .leader_watch import LeaderWatch
from .leadership_events import (
    BeginDuties,
    ClaimRefused,
    ClaimWon,
    DutiesEnded,
    EndDuties,
    Entered,
    Event,
    Finish,
    Instruction,
    KeepAlive,
    Kept,
    Lapsed,
    LeaderSeen,
    MakeClaim,
    Overtaken,
    Reclaim,
    Resign,
    Resigned,
    SetTimer,
    StopAsked,
    StoreSilent,
    TermHeard,
    TimerFired,
    Unanswered,
)
from .leadership_machine import Deed, LeadershipMachine

UNANSWERED = (StoreUnavailableError, StoreRefusedError)
Duties = Callable[[Claim], Awaitable[None]]
"""All that a leader does, from taking over to its end. When it returns by itself, this daemon leads no more."""


class NotLeadingError(Exception):
    """Only a leader that reaches its store may do that; the sentence says what is the matter."""


class Leadership:
    """See the module. ``watch`` knows who leads, here or elsewhere, and runs with this."""

    def __init__(self, store: ClusterStore, candidate: Candidate, duties: Duties, log: EventLog) -> None:
        self.machine = LeadershipMachine(store.ttl_s)
        self.watch = LeaderWatch(store, log, self)
        self._store = store
        self._candidate = candidate
        self._duties = duties
        self._log = log
        self._claim: Claim | None = None
        self._duty_scope: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
        self._refusal: StoreRefusedError | None = None

    async def run(self) -> None:
        """Follow, and lead when it is this daemon's turn, until `stop` or the duties' own end.

        Raises `StoreRefusedError` where the store never answered otherwise: the settings are wrong. Later refusals are as silence.
        """
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._keep_watch, self._nursery.cancel_scope)
        if self._refusal is not None:
            raise self._refusal

    def check(self, deed: Deed) -> None:
        """Raise `NotLeadingError` unless this daemon may do that now."""
        if not self.machine.may(deed):
            machine = self.machine
            raise NotLeadingError(f"this daemon cannot {deed.value}: it is {machine.state.value} ({machine.sentence})")

    def heard(self, term: int, peer: str) -> None:
        """A peer knows of a leader in ``term``."""
        self._handle(TermHeard(term, peer))

    def stop(self, sentence: str) -> None:
        """End the duties, give the claim back, and let `run` return."""
        self._handle(StopAsked(sentence))

    # --- told by the watch ---

    def leader_seen(self, record: LeaderRecord | None) -> None:
        """See `WatchListener`."""
        self._handle(LeaderSeen(record))

    def store_silent(self, sentence: str) -> None:
        """See `WatchListener`."""
        self._handle(StoreSilent(sentence))

    # --- carrying out ---

    def _handle(self, event: Event) -> None:
        for instruction in self.machine.handle(event):
            self._perform(instruction)

    def _perform(self, instruction: Instruction) -> None:
        assert self._nursery is not None
        start = self._nursery.start_soon
        match instruction:
            case MakeClaim():
                start(self._make_claim)
            case KeepAlive():
                start(self._keep_alive)
            case Reclaim():
                start(self._reclaim)
            case Resign():
                start(self._resign)
            case BeginDuties():
                self._duty_scope = trio.CancelScope()
                start(self._do_duties, self._duty_scope)
            case EndDuties():
                assert self._duty_scope is not None
                self._duty_scope.cancel()
            case SetTimer():
                start(self._time, instruction)
            case Entered(state, term, sentence):
                self._log.emit("leadership_changed", state=state, term=term, sentence=sentence)
            case Finish():
                self._nursery.cancel_scope.cancel()

    async def _keep_watch(self, scope: trio.CancelScope) -> None:
        try:
            await self.watch.run()
        except StoreRefusedError as error:
            self._refusal = error
            scope.cancel()

    async def _make_claim(self) -> None:
        try:
            self._claim = await self._store.claim(self._candidate)
        except AlreadyLedError as error:
            self._handle(ClaimRefused(str(error)))
        except UNANSWERED as error:
            self._handle(Unanswered(str(error)))
        else:
            self._handle(ClaimWon(self._claim.record.term))

    async def _keep_alive(self) -> None:
        assert self._claim is not None
        try:
            await self._claim.keep_alive()
        except LeadershipLostError as error:
            self._handle(Lapsed(str(error)))
        except UNANSWERED as error:
            self._handle(Unanswered(str(error)))
        else:
            self._handle(Kept())

    async def _reclaim(self) -> None:
        assert self._claim is not None
        try:
            await self._claim.reclaim()
        except LeadershipLostError as error:
            self._handle(Overtaken(str(error)))
        except UNANSWERED as error:
            self._handle(Unanswered(str(error)))
        else:
            self._handle(Kept())

    async def _resign(self) -> None:
        assert self._claim is not None
        with suppress(*UNANSWERED):  # then it lapses
            await self._claim.resign()
        self._handle(Resigned())

    async def _do_duties(self, scope: trio.CancelScope) -> None:
        assert self._claim is not None
        with scope:
            await self._duties(self._claim)
        self._handle(DutiesEnded())

    async def _time(self, timer: SetTimer) -> None:
        await trio.sleep(timer.after_s)
        self._handle(TimerFired(timer.timer, timer.number))
