"""One gateway's requests at the leader: a task for each, and one that sends what they made.

Owns the streams and calls of one link; all of them end with it. It must never know of other gateways.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
import trio

from ...transport.interface import FrameError, Link, TransportError
from ..decision_journal import DecisionJournal
from ..event_log import EventLog
from ..generation import FailureKind, GenerationFailedError, GenerationRequest, TokenSource
from ..refactor import (
    BusyRefusedError,
    Refactorer,
    RefactorFailed,
    RefactorRefusedError,
    RefactorRequest,
    SameShapeRefusedError,
)
from .node_status import NodeControl
from .nodes_machine import NodeError
from .status_board import StatusBoard
from .token_messages import (
    FROM_GATEWAY,
    SENTENCE_CHARACTERS_MAX,
    Accepted,
    AskDecisions,
    AskDrain,
    AskNodes,
    AskRefactor,
    Cancel,
    DecisionsTold,
    DrainTold,
    FromGateway,
    NodesTold,
    RefactorRefused,
    RefactorTold,
    Refused,
    StatusPush,
    StopWatching,
    StreamFailed,
    Submit,
    check_refactor,
    payload_of,
    submitted,
)
from .token_outbox import TokenOutbox

RETRY_AFTER_S = 1.0
"""As the scheduler says of its queue: it moves within a second."""
BROKE = "the leader failed to handle this request; its log has the cause"


@dataclass(frozen=True, slots=True)
class LeaderServices:
    """What a leader has for gateways. ``decisions`` None: nobody decides anything. Token ids are below ``vocabulary_size``.

    ``nodes`` None: the leader is a server of one host.
    """

    source: TokenSource
    refactorer: Refactorer
    decisions: DecisionJournal | None
    vocabulary_size: int
    nodes: NodeControl | None = None


@dataclass(frozen=True, slots=True)
class ConversationLimits:
    """Bounds of one gateway: requests, and refactorings that it watches, at once."""

    streams_max: int = 2048
    calls_max: int = 32


class GatewayConversation:
    """See the module. ``check_queue`` raises `GenerationFailedError` where this gateway has its share of the queue."""

    def __init__(
        self,
        gateway: str,
        link: Link,
        services: LeaderServices,
        board: StatusBoard,
        check_queue: Callable[[GatewayConversation], None],
        limits: ConversationLimits,
        log: EventLog,
    ) -> None:
        self.gateway = gateway
        self._link = link
        self._services = services
        self._board = board
        self._check_queue = check_queue
        self._limits = limits
        self._log = log
        self._outbox = TokenOutbox()
        self._last_number = -1
        self._streams: dict[int, trio.CancelScope] = {}
        self._waiting: set[int] = set()
        self._watched: dict[int, trio.CancelScope] = {}

    @property
    def streams(self) -> int:
        """Requests of this gateway that are here; after `run`, those that ended with the link."""
        return len(self._streams)

    @property
    def waiting(self) -> int:
        """Those of them that have no token yet."""
        return len(self._waiting)

    async def run(self) -> str:
        """Until the link ends; why it did. Then nothing of the gateway is left."""
        self._outbox.post(StatusPush(self._board.read(self._outbox.post_status)))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                sentence = await self._read(nursery)
                nursery.cancel_scope.cancel()
        finally:
            self._board.forget(self._outbox.post_status)
        return sentence

    # --- the link ---

    async def _write(self) -> None:
        """Send what gathers; a slow gateway makes only its own streams wait."""
        try:
            while True:
                await self._link.send([await self._outbox.take()])
        except TransportError:
            return  # the reader hears of it, too

    async def _read(self, nursery: trio.Nursery) -> str:
        try:
            while True:
                await self._outbox.room()  # whoever does not read is not read from
                self._handle(FROM_GATEWAY.decode(payload_of(await self._link.receive())), nursery)
        except TransportError as error:
            return str(error)

    def _handle(self, message: FromGateway, nursery: trio.Nursery) -> None:
        match message:
            case Submit(stream):
                self._use(stream)
                request, outputs = submitted(message, self._services.vocabulary_size)
                scope = self._streams[stream] = trio.CancelScope()
                nursery.start_soon(self._serve, stream, request, outputs, scope)
            case Cancel(number) | StopWatching(number):
                scopes = self._streams if isinstance(message, Cancel) else self._watched
                if number in scopes:
                    scopes[number].cancel()
            case AskRefactor(call, request):
                self._use(call)
                check_refactor(request)
                scope = self._watched[call] = trio.CancelScope()
                nursery.start_soon(self._refactor, call, request, scope)
            case AskDecisions(call, count):
                self._use(call)
                self._outbox.post(DecisionsTold(call, self._decisions(count)))
            case AskNodes(call):
                self._use(call)
                nodes = self._services.nodes.status() if self._services.nodes is not None else ()
                self._outbox.post(NodesTold(call, tuple(msgspec.json.encode(node) for node in nodes)))
            case AskDrain(call, node):
                self._use(call)
                self._outbox.post(DrainTold(call, self._drain(node)))
            case _:
                raise FrameError(f"{self.gateway} said {type(message).__name__} again")

    def _use(self, number: int) -> None:
        if number <= self._last_number:
            raise FrameError(f"{self.gateway} used number {number} after {self._last_number}")
        self._last_number = number

    # --- requests ---

    async def _serve(
        self, stream: int, request: GenerationRequest, outputs: tuple[int, ...] | None, scope: trio.CancelScope
    ) -> None:
        """Generate one stream; how it ends is said, unless nobody wants to know."""
        with scope:
            try:
                await self._generate(stream, request, outputs)
            except GenerationFailedError as failure:
                self._fail(stream, failure.kind, failure.sentence, failure.retry_after_s)
            except Exception as error:  # a bug of one request is not to take the others along
                self._broke(error)
                self._fail(stream, "cancelled", BROKE, None)
        self._waiting.discard(stream)
        del self._streams[stream]
        self._board.prompt()

    async def _generate(self, stream: int, request: GenerationRequest, outputs: tuple[int, ...] | None) -> None:
        if len(self._streams) > self._limits.streams_max:
            sentence = f"{self._limits.streams_max} requests of this gateway are under way, the limit"
            raise GenerationFailedError("overloaded", sentence, RETRY_AFTER_S)
        if outputs is None:
            self._check_queue(self)
        self._waiting.add(stream)
        outbox = self._outbox
        async with self._services.source.open(request, outputs) as events:
            self._board.prompt()
            outbox.post(Accepted(stream))
            async for event in events:
                self._waiting.discard(stream)
                outbox.add_token(stream, event)
                await outbox.room()

    def _fail(self, stream: int, kind: FailureKind, sentence: str, retry_after_s: float | None) -> None:
        self._board.prompt()  # what is true now is to be known when the failure is
        self._outbox.post(StreamFailed(stream, kind, sentence[:SENTENCE_CHARACTERS_MAX], retry_after_s))

    # --- control ---

    async def _refactor(self, call: int, request: RefactorRequest, scope: trio.CancelScope) -> None:
        """Have it carried out, and tell of it while somebody watches."""
        with scope:
            try:
                await self._tell_of_refactoring(call, request)
            except RefactorRefusedError as refusal:
                self._outbox.post(RefactorRefused(call, _kind(refusal), str(refusal)[:SENTENCE_CHARACTERS_MAX]))
            except Exception as error:  # as in `_serve`
                self._broke(error)
                self._outbox.post(RefactorTold(call, RefactorFailed("aborted", BROKE)))
        del self._watched[call]

    async def _tell_of_refactoring(self, call: int, request: RefactorRequest) -> None:
        if len(self._watched) > self._limits.calls_max:
            raise BusyRefusedError(f"{self._limits.calls_max} refactorings of this gateway are watched already")
        async with aclosing(self._services.refactorer.refactor(request)) as events:
            async for event in events:
                self._outbox.post(RefactorTold(call, event))
                await self._outbox.room()

    def _decisions(self, count: int) -> tuple[bytes, ...] | None:
        if self._services.decisions is None:
            return None
        return tuple(msgspec.json.encode(decision) for decision in self._services.decisions.last(count))

    def _drain(self, node: str) -> str:
        """Why it cannot be, "" where it has begun."""
        if self._services.nodes is None:
            return "the leader is a server of one host"
        try:
            self._services.nodes.drain(node)
        except NodeError as error:
            return str(error)[:SENTENCE_CHARACTERS_MAX]
        return ""

    def _broke(self, error: Exception) -> None:
        self._log.emit("gateway_request_broke", gateway=self.gateway, error="".join(traceback.format_exception(error)))


def _kind(refusal: RefactorRefusedError) -> Refused:
    match refusal:
        case BusyRefusedError():
            return "busy"
        case SameShapeRefusedError():
            return "same-shape"
    return "refused"
