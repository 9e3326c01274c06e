"""The leader's side of its gateways: takes their requests to the source of tokens, and tokens, status and refactorings back.

Owns who may call, and how much. What one gateway says on its link is a `GatewayConversation`'s. A gateway that is slow holds up
nobody: what it does not read stays in the source, at most ``max_tokens`` of each stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from ...transport.interface import AcceptedLink, FrameError, TransportError
from ..event_log import EventLog
from ..generation import GenerationFailedError
from .fair_queue import may_wait
from .gateway_conversation import RETRY_AFTER_S, ConversationLimits, GatewayConversation, LeaderServices
from .status_board import StatusBoard
from .token_messages import (
    FROM_GATEWAY,
    TO_GATEWAY,
    VERSION_HIGHEST,
    VERSION_LOWEST,
    GatewayHello,
    GatewayRefused,
    GatewayWelcome,
    payload_of,
)


@dataclass(frozen=True, slots=True)
class TokenServerLimits:
    """Bounds. ``queue_requests_max`` is the source's queue, which the gateways share."""

    gateways_max: int = 256
    queue_requests_max: int = 256
    greet_s_max: float = 3.0
    each: ConversationLimits = field(default_factory=ConversationLimits)


@dataclass(frozen=True, slots=True)
class LeaderIdentity:
    """Who leads: node ``leader``, in ``term``; it serves the model whose digest is ``model``."""

    leader: str
    term: int
    model: str


class TokenServer:
    """See the module. ``host`` leads one gateway's conversation, while ``run`` is running; with it all of them end.

    ``higher_term`` is told of a term after this one: this leader is over.
    """

    def __init__(
        self,
        services: LeaderServices,
        leadership: LeaderIdentity,
        log: EventLog,
        *,
        higher_term: Callable[[int], None],
        limits: TokenServerLimits = TokenServerLimits(),
    ) -> None:
        self._services = services
        self._leadership = leadership
        self._log = log
        self._higher_term = higher_term
        self._limits = limits
        self._board = StatusBoard(services.source.status)
        self._conversations: list[GatewayConversation] = []
        self._scopes: set[trio.CancelScope] = set()
        self._is_over = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch the status for the gateways, until cancelled: this daemon leads no more."""
        try:
            task_status.started()
            await self._board.run()
        finally:
            self._is_over = True
            for scope in self._scopes:
                scope.cancel()

    @property
    def gateways(self) -> tuple[str, ...]:
        """The names of those that are here."""
        return tuple(conversation.gateway for conversation in self._conversations)

    async def host(self, visitor: AcceptedLink) -> None:
        """Talk to the gateway at the other end until its link ends, or this leader does; then nothing of it is left.

        The caller closes the link.
        """
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            if self._is_over:
                scope.cancel()
            try:
                hello = await self._greeted(visitor)
                if hello is not None:
                    await self._converse(hello.gateway, visitor)
            except TransportError as error:
                self._log.emit("link_ended", peer=visitor.peer, purpose=visitor.purpose, sentence=str(error))
            finally:
                self._scopes.discard(scope)

    async def _greeted(self, visitor: AcceptedLink) -> GatewayHello | None:
        """The hello of a gateway that was welcomed; None of one that was refused. Raises `TransportError`."""
        with trio.move_on_after(self._limits.greet_s_max):
            hello = FROM_GATEWAY.decode(payload_of(await visitor.link.receive()))
            if not isinstance(hello, GatewayHello):
                raise FrameError(f"a gateway began with {type(hello).__name__}, not with GatewayHello")
            answer = self._answer(hello, visitor.peer)
            await visitor.link.send([TO_GATEWAY.encode(answer)])
            if isinstance(answer, GatewayWelcome):
                return hello
            self._log.emit("gateway_refused", gateway=hello.gateway, reason=answer.reason, sentence=answer.sentence)
            if answer.reason == "term":
                self._higher_term(hello.term)
            return None
        raise FrameError("a gateway said nothing in time")

    async def _converse(self, gateway: str, visitor: AcceptedLink) -> None:
        conversation = GatewayConversation(
            gateway, visitor.link, self._services, self._board, self._check_queue, self._limits.each, self._log
        )
        self._conversations.append(conversation)
        self._log.emit("gateway_came", gateway=gateway)
        sentence = "this daemon leads no more"
        try:
            sentence = await conversation.run()
        finally:
            self._conversations.remove(conversation)
            self._log.emit("gateway_left", gateway=gateway, streams=conversation.streams, sentence=sentence)

    def _check_queue(self, conversation: GatewayConversation) -> None:
        """Raise `GenerationFailedError` ("overloaded") where the gateway has its share of the queue already."""
        others = [each.waiting for each in self._conversations if each is not conversation]
        waiting = conversation.waiting
        if not may_wait(waiting, others, self._limits.queue_requests_max):
            sentence = f"{waiting} requests of this gateway are waiting already, its share; try again in a moment"
            raise GenerationFailedError("overloaded", sentence, RETRY_AFTER_S)

    def _answer(self, hello: GatewayHello, peer: str) -> GatewayWelcome | GatewayRefused:
        mine = self._leadership
        if peer and hello.gateway != peer:
            return GatewayRefused("name", f"the key of {peer} is not {hello.gateway}'s")
        if hello.term > mine.term:
            return GatewayRefused("term", f"term {hello.term} has begun; {mine.leader} led in term {mine.term}")
        version = min(hello.highest_version, VERSION_HIGHEST)
        if version < max(hello.lowest_version, VERSION_LOWEST):
            return GatewayRefused(
                "version",
                f"{hello.gateway} speaks versions {hello.lowest_version} to {hello.highest_version}, {mine.leader} speaks "
                f"{VERSION_LOWEST} to {VERSION_HIGHEST}; install builds that are closer",
            )
        if hello.model != mine.model:
            return GatewayRefused(
                "model", f"{hello.gateway} has another model than {mine.leader}; pull the same one there"
            )
        if len(self._conversations) >= self._limits.gateways_max:
            return GatewayRefused("full", f"{len(self._conversations)} gateways are here already, the limit")
        return GatewayWelcome(mine.leader, mine.term, version, self._services.source.status())
