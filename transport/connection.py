"""Hanging up on one TCP connection of a socket that libzmq owns, for which it has no call.

libzmq tells the descriptor number of a message's connection, and by events which numbers are accepted and end. A number may mean
another connection a moment later, even before the end of the first is told. So a connection is known by both of its ends'
addresses, found only where the number can mean no other, and compared on a duplicate of the descriptor, which nothing can
exchange any more. Where there is doubt, nobody is hung up on.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Connection:
    """One TCP connection: its descriptor, how often the number had been accepted, and its own and the peer's address."""

    descriptor: int
    acceptance: int
    ends: tuple[object, object]


class Connections:
    """The connections that one socket accepted. ``catch_up`` hands in the events that have come so far."""

    def __init__(self, catch_up: Callable[[], None]) -> None:
        self._catch_up = catch_up
        self._accepted: Counter[int] = Counter()
        self._open: Counter[int] = Counter()

    def accepted(self, descriptor: int) -> None:
        """An event: a number got a connection."""
        self._accepted[descriptor] += 1
        self._open[descriptor] += 1

    def ended(self, descriptor: int) -> None:
        """An event: a number's connection has ended."""
        self._open[descriptor] -= 1

    def find(self, descriptor: int) -> Connection | None:
        """The connection that a message came over, which had not ended before it; None where that is not certain."""
        ends = _ends(descriptor)
        self._catch_up()
        if ends is None or self._open[descriptor] != 1:
            return None
        return Connection(descriptor, self._accepted[descriptor], ends)

    def hang_up(self, connection: Connection) -> bool:
        """End a connection; whether there was something to end. Both sides' libzmq then see the end of a stream."""
        self._catch_up()
        if self._accepted[connection.descriptor] != connection.acceptance:
            return False
        with suppress(OSError), socket.socket(fileno=os.dup(connection.descriptor)) as duplicate:
            if (duplicate.getsockname(), duplicate.getpeername()) == connection.ends:
                duplicate.shutdown(socket.SHUT_RDWR)
                return True
        return False


def _ends(descriptor: int) -> tuple[object, object] | None:
    """Both addresses of a TCP connection; None where it is none, or gone."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
        if duplicate.family in {socket.AF_INET, socket.AF_INET6}:
            return duplicate.getsockname(), duplicate.getpeername()
    return None
