"""A gateway's talk with one leader over one link: its streams and calls there, and what the leader says is true.

Whatever is under way when the link ends, ends with it, each by one error: who asks may turn to the next leader. It must never know
of other leaders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import trio

from ...transport.interface import FrameError, Link, TransportError
from ..generation import GenerationFailedError, GenerationRequest, PipelineStatus, TokenEvent
from ..refactor import (
    BusyRefusedError,
    RefactorEvent,
    RefactorFailed,
    RefactorRefusedError,
    RefactorRequest,
    SameShapeRefusedError,
)
from ..refactor_feed import Undertaking
from .stream_mailbox import StreamMailbox
from .token_messages import (
    FROM_GATEWAY,
    TO_GATEWAY,
    Accepted,
    AskDecisions,
    AskDrain,
    AskNodes,
    AskRefactor,
    Cancel,
    DecisionsTold,
    DrainTold,
    FromGateway,
    GatewayWelcome,
    NodesTold,
    RefactorRefused,
    RefactorTold,
    Refused,
    StatusPush,
    StopWatching,
    StreamFailed,
    ToGateway,
    Tokens,
    payload_of,
    submit_message,
)

RETRY_AFTER_S = 2.0
"""What a client may be told to wait for the next leader."""
STREAMS_MAX = 2048
"""Requests of one gateway at once; more are refused here already. Each has at most two messages waiting to be sent."""
_REFUSALS: dict[Refused, type[RefactorRefusedError]] = {
    "refused": RefactorRefusedError,
    "busy": BusyRefusedError,
    "same-shape": SameShapeRefusedError,
}


class LeaderLostError(GenerationFailedError):
    """The leader of a stream is gone, or is none any more. Another one may go on with it."""

    def __init__(self, sentence: str) -> None:
        super().__init__("stage_lost", sentence, RETRY_AFTER_S)


class _Question:
    """A question whose answer is waited for."""

    def __init__(self) -> None:
        self.answer: tuple[bytes, ...] | None = None
        self.failure: LeaderLostError | None = None
        self.settled = trio.Event()

    def settle(self, answer: tuple[bytes, ...] | None, failure: LeaderLostError | None = None) -> None:
        self.answer = answer
        self.failure = failure
        self.settled.set()


class LeaderSession:
    """See the module. Use it while ``run`` is running; ``end`` it in any case. ``news`` is called when the status has changed."""

    def __init__(self, link: Link, welcome: GatewayWelcome, news: Callable[[], None]) -> None:
        self.leader = welcome.leader
        self.term = welcome.term
        self.status: PipelineStatus = welcome.status
        self._link = link
        self._news = news
        self._last_number = 0
        self._streams: dict[int, StreamMailbox] = {}
        self._undertakings: dict[int, Undertaking] = {}
        self._questions: dict[int, _Question] = {}
        self._outgoing: deque[bytes] = deque()
        self._posted = trio.lowlevel.ParkingLot()
        self._lost: LeaderLostError | None = None

    # --- its life ---

    async def run(self) -> str:
        """Read and write until the link ends; why it did."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            sentence = await self._read()
            nursery.cancel_scope.cancel()
        return sentence

    def end(self, sentence: str) -> None:
        """The link is lost, or not to be used any more: everything under way ends. Idempotent."""
        if self._lost is not None:
            return
        lost = self._lost = LeaderLostError(f"{self.leader}, which led in term {self.term}, was lost: {sentence}")
        for mailbox in self._streams.values():
            mailbox.fail(lost)
        for undertaking in self._undertakings.values():
            if undertaking.feed.final is None:
                undertaking.feed.tell(RefactorFailed("lost", f"{lost.sentence}; ps shows what serves now"))
            undertaking.has_begun.set()
        for question in self._questions.values():
            question.settle(None, lost)

    # --- what may be asked ---

    @asynccontextmanager
    async def open(
        self, request: GenerationRequest, outputs: tuple[int, ...] | None
    ) -> AsyncIterator[AsyncIterator[TokenEvent]]:
        """See `TokenSource.open`. Raises `LeaderLostError` where the session ends, on entering or while tokens arrive."""
        if len(self._streams) >= STREAMS_MAX:
            sentence = f"{STREAMS_MAX} requests of this gateway are under way, the limit"
            raise GenerationFailedError("overloaded", sentence, RETRY_AFTER_S)
        stream = self._number()
        mailbox = StreamMailbox(len(outputs or ()))
        try:
            self._post(submit_message(stream, request, outputs))
        except FrameError as error:
            raise GenerationFailedError("too_long", str(error)) from error
        self._streams[stream] = mailbox
        try:
            await mailbox.accepted()
            yield mailbox
        finally:
            del self._streams[stream]
            if not mailbox.is_over:
                self._post(Cancel(stream))

    async def refactor(self, request: RefactorRequest) -> AsyncGenerator[RefactorEvent, None]:
        """See `Refactorer.refactor`; ends with `RefactorFailed` ("lost") where the session does."""
        call = self._number()
        undertaking = Undertaking()
        self._post(AskRefactor(call, request))
        self._undertakings[call] = undertaking
        try:
            async with aclosing(undertaking.events()) as events:
                async for event in events:
                    yield event
        finally:
            del self._undertakings[call]
            if undertaking.feed.final is None and self._lost is None:
                self._post(StopWatching(call))

    async def decisions(self, count: int) -> tuple[bytes, ...] | None:
        """The last decisions as JSON, the oldest first; None where nobody decides. Raises `LeaderLostError`."""
        call = self._number()
        return await self._asked(AskDecisions(call, count), call)

    async def nodes(self) -> tuple[bytes, ...]:
        """The nodes of the leader's cluster, as JSON. Raises `LeaderLostError`."""
        call = self._number()
        return await self._asked(AskNodes(call), call) or ()

    async def drain(self, node: str) -> str:
        """Have the leader move everything off ``node``; why it cannot, "" where it has begun. Raises `LeaderLostError`."""
        call = self._number()
        answer = await self._asked(AskDrain(call, node), call)
        return answer[0].decode() if answer else ""

    async def _asked(self, message: FromGateway, call: int) -> tuple[bytes, ...] | None:
        question = self._questions[call] = _Question()
        self._post(message)
        try:
            await question.settled.wait()
        finally:
            del self._questions[call]
        if question.failure is not None:
            raise question.failure
        return question.answer

    # --- the link ---

    def _number(self) -> int:
        if self._lost is not None:
            raise self._lost
        self._last_number += 1
        return self._last_number

    def _post(self, message: FromGateway) -> None:
        self._outgoing.append(FROM_GATEWAY.encode(message))
        self._posted.unpark()

    async def _write(self) -> None:
        try:
            while True:
                while not self._outgoing:
                    await self._posted.park()
                await self._link.send([self._outgoing.popleft()])
        except TransportError:
            return  # the reader hears of it, too

    async def _read(self) -> str:
        try:
            while True:
                self._take(TO_GATEWAY.decode(payload_of(await self._link.receive())))
        except TransportError as error:
            return str(error)

    def _take(self, message: ToGateway) -> None:
        match message:
            case Tokens(streams):
                for tokens in streams:
                    if (mailbox := self._mailbox(tokens.stream)) is not None:
                        mailbox.add(tokens)
            case Accepted() | StreamFailed():
                self._take_verdict(message)
            case StatusPush(status):
                self.status = status
                self._news()
            case RefactorTold() | RefactorRefused():
                self._take_refactoring(message)
            case DecisionsTold(call, answer) | NodesTold(call, answer):
                self._settle(call, answer)
            case DrainTold(call, sentence):
                self._settle(call, (sentence.encode(),) if sentence else ())
            case _:
                raise FrameError(f"{self.leader} said {type(message).__name__} where a gateway was welcomed already")

    def _settle(self, call: int, answer: tuple[bytes, ...] | None) -> None:
        if (question := self._questions.get(call)) is not None:
            question.settle(answer)

    def _mailbox(self, stream: int) -> StreamMailbox | None:
        """None of one that was left: what is told of it was under way. Raises `FrameError` of one that never was."""
        if stream > self._last_number:
            raise FrameError(f"{self.leader} told of stream {stream}, which was never asked for")
        return self._streams.get(stream)

    def _take_verdict(self, message: Accepted | StreamFailed) -> None:
        mailbox = self._mailbox(message.stream)
        if mailbox is None:
            return
        if isinstance(message, Accepted):
            mailbox.accept()
        else:
            mailbox.fail(GenerationFailedError(message.reason, message.sentence, message.retry_after_s))

    def _take_refactoring(self, message: RefactorTold | RefactorRefused) -> None:
        undertaking = self._undertakings.get(message.call)
        if undertaking is None:
            return  # it is not watched any more
        if isinstance(message, RefactorRefused):
            undertaking.refuse(_REFUSALS[message.reason](message.sentence))
        elif undertaking.feed.final is not None:
            raise FrameError(f"{self.leader} told more of refactoring {message.call} after its end")
        else:
            undertaking.feed.tell(message.event)
            undertaking.has_begun.set()
