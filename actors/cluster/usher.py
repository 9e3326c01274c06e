"""Who comes to a daemon's listener, and to whom each is led by what it says that it wants.

Owns the accepting of links. Knows no conversation: whoever leads one is a host, called with the link.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ...transport.interface import AcceptedLink, LinkClosedError, Listener, TransportError
from ..event_log import EventLog

Host = Callable[[AcceptedLink], Awaitable[None]]
"""Leads one conversation to its end; a `TransportError` is one."""
VISITORS_MAX = 4096
"""Links at a time; more are turned away."""


class RefusedVisitorError(TransportError):
    """Who came is not who they say, or is not expected; the sentence says which."""


class Usher:
    """See the module. ``run`` must be running."""

    def __init__(self, listener: Listener, log: EventLog) -> None:
        self._listener = listener
        self._log = log
        self._hosts: dict[str, Host] = {}
        self._under_way: dict[trio.CancelScope, str] = {}

    def lead(self, word: str, host: Host) -> None:
        """Lead those whose purpose is ``word``, or begins with it and a colon, to ``host``; later calls replace earlier ones."""
        self._hosts[word] = host

    def close(self, word: str) -> None:
        """Turn them away from now on, and end the conversations under way."""
        self._hosts.pop(word, None)
        for scope, purpose in self._under_way.items():
            if purpose == word:
                scope.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept until cancelled, or until the listener is closed."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                try:
                    visitor = await self._listener.accept()
                except LinkClosedError:
                    return
                nursery.start_soon(self._receive, visitor)

    async def _receive(self, visitor: AcceptedLink) -> None:
        word = visitor.purpose.partition(":")[0]
        host = self._hosts.get(word)
        if host is None or len(self._under_way) >= VISITORS_MAX:
            sentence = "too many links" if host is not None else "nothing here is for that purpose"
            self._log.emit("link_refused", peer=visitor.peer, purpose=visitor.purpose, sentence=sentence)
            await visitor.link.aclose()
            return
        scope = trio.CancelScope()
        self._under_way[scope] = word
        try:
            with scope:
                await host(visitor)
        except RefusedVisitorError as error:
            self._log.emit("link_refused", peer=visitor.peer, purpose=visitor.purpose, sentence=str(error))
        except TransportError as error:
            self._log.emit("link_ended", peer=visitor.peer, purpose=visitor.purpose, sentence=str(error))
        finally:
            del self._under_way[scope]
            await visitor.link.aclose()
