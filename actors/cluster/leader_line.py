"""A gateway's line to whoever leads: carries out what `leader_line_machine` decides, and holds the session of the moment.

Who leads is the `LeaderSource`'s to know. What is asked of a leader is the session's.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from ...transport.interface import FrameError, Link, Transport, TransportError
from ..event_log import EventLog
from .leader_line_machine import (
    Attach,
    Call,
    Event,
    HangUp,
    Instruction,
    LeaderHeard,
    LeaderLineMachine,
    LineEnded,
    LineLimits,
    RefusalCame,
    RefuseTerm,
    SetTimer,
    TimerFired,
    WelcomeCame,
)
from .leader_session import LeaderSession
from .leader_source import LeaderAt, LeaderSource
from .token_messages import (
    FROM_GATEWAY,
    GATEWAY_LIMITS,
    GATEWAY_PURPOSE,
    TO_GATEWAY,
    GatewayHello,
    GatewayRefused,
    GatewayWelcome,
    payload_of,
)

DEFAULT_LINE_LIMITS = LineLimits()


@dataclass(frozen=True, slots=True)
class GatewayIdentity:
    """Node ``name``, which has the model whose digest is ``model``."""

    name: str
    model: str


@dataclass(slots=True)
class _Calling:
    """One call: how to break it off, and its session once there is one."""

    scope: trio.CancelScope
    session: LeaderSession | None = None


class LeaderLine:
    """See the module. ``run`` must be running."""

    def __init__(
        self,
        transport: Transport,
        leaders: LeaderSource,
        gateway: GatewayIdentity,
        log: EventLog,
        limits: LineLimits = DEFAULT_LINE_LIMITS,
    ) -> None:
        self.session: LeaderSession | None = None
        self.news = 0
        self._transport = transport
        self._leaders = leaders
        self._gateway = gateway
        self._log = log
        self._machine = LeaderLineMachine(limits)
        self._calls: dict[int, _Calling] = {}
        self._changed = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery | None = None

    @property
    def reason(self) -> str:
        """Why there is no session, in one sentence; "" where there is one."""
        return self._machine.reason

    async def changed(self, news: int) -> None:
        """Wait until ``self.news`` is not ``news`` any more: another session, none, or another status of this one."""
        while self.news == news:
            await self._changed.park()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a line to the leader, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                known: LeaderAt | None = None
                while True:
                    known = await self._leaders.next_leader(known)
                    self._handle(LeaderHeard(known))
        finally:
            self._detach("the gateway ends")

    # --- carrying out ---

    def _handle(self, event: Event) -> None:
        for instruction in self._machine.handle(event):
            self._perform(instruction)

    def _perform(self, instruction: Instruction) -> None:
        assert self._nursery is not None
        match instruction:
            case Call(call, leader, term):
                self._calls[call] = _Calling(trio.CancelScope())
                self._nursery.start_soon(self._call, call, leader, term)
            case HangUp(call, sentence):
                self._detach(sentence)
                self._calls[call].scope.cancel()
            case Attach(call):
                session = self.session = self._calls[call].session
                assert session is not None
                self._log.emit("leader_attached", leader=session.leader, term=session.term)
                self._tell()
            case RefuseTerm(address, term, highest_term):
                self._log.emit("leader_refused", address=address, term=term, highest_term=highest_term)
            case SetTimer(call, after_s):
                self._nursery.start_soon(self._time, call, after_s)

    def _detach(self, sentence: str) -> None:
        """End the session of the moment, if there is one."""
        session, self.session = self.session, None
        if session is not None:
            session.end(sentence)
            self._log.emit("leader_lost", leader=session.leader, term=session.term, sentence=sentence)
            self._tell()

    def _tell(self) -> None:
        self.news += 1
        self._changed.unpark_all()

    async def _time(self, call: int, after_s: float) -> None:
        await trio.sleep(after_s)
        self._handle(TimerFired(call))

    async def _call(self, call: int, leader: LeaderAt, term: int) -> None:
        """Call a leader, and talk to it until that ends."""
        with self._calls[call].scope:
            try:
                link = await self._transport.connect(
                    leader.address, name="the link to the leader", limits=GATEWAY_LIMITS, purpose=GATEWAY_PURPOSE
                )
            except TransportError as error:
                self._ended(call, str(error))
            else:
                await self._talk(call, link, term)
        del self._calls[call]

    async def _talk(self, call: int, link: Link, term: int) -> None:
        try:
            try:
                sentence = await self._converse(call, link, term)
            except TransportError as error:
                sentence = str(error)
            if sentence:
                self._ended(call, sentence)
        finally:
            await link.aclose()

    def _ended(self, call: int, sentence: str) -> None:
        """The link of ``call`` is lost; it may have been given up already."""
        if self.session is not None and self.session is self._calls[call].session:
            self._detach(sentence)
        self._handle(LineEnded(call, sentence))

    async def _converse(self, call: int, link: Link, term: int) -> str:
        """Until the link ends; why it did, "" where the leader refused. Raises `TransportError`."""
        await link.send([FROM_GATEWAY.encode(GatewayHello(self._gateway.name, self._gateway.model, term))])
        answer = await self._answer(link)
        if isinstance(answer, GatewayRefused):
            self._handle(RefusalCame(call, answer.sentence))
            return ""
        session = self._calls[call].session = LeaderSession(link, answer, self._tell)
        self._handle(WelcomeCame(call, answer.term))
        return await session.run()

    async def _answer(self, link: Link) -> GatewayWelcome | GatewayRefused:
        with trio.move_on_after(self._machine.limits.greet_s_max):
            answer = TO_GATEWAY.decode(payload_of(await link.receive()))
            if not isinstance(answer, GatewayWelcome | GatewayRefused):
                raise FrameError(f"the leader began with {type(answer).__name__}, not with a welcome")
            return answer
        raise FrameError(f"no answer to the hello came within {self._machine.limits.greet_s_max:g} s")
