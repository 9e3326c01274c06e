"""Hanging up on one TCP connection of a socket that libzmq owns, for which it has no call.

libzmq tells the descriptor number of a message's connection, but a number may mean another connection a moment later. So a
connection is known by both of its ends' addresses, and they are compared on a duplicate of the descriptor, which nothing can
exchange any more.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Connection:
    """One TCP connection: its descriptor, and its own and the peer's address as the system names them."""

    descriptor: int
    ends: tuple[object, object]

    @classmethod
    def at(cls, descriptor: int) -> Connection | None:
        """The connection of a descriptor; None where it is none of TCP, or gone."""
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
            if duplicate.family in {socket.AF_INET, socket.AF_INET6}:
                return cls(descriptor, (duplicate.getsockname(), duplicate.getpeername()))
        return None

    def hang_up(self) -> bool:
        """End it; whether there was something to end. Both sides' libzmq then see the end of a stream."""
        with suppress(OSError), socket.socket(fileno=os.dup(self.descriptor)) as duplicate:
            if (duplicate.getsockname(), duplicate.getpeername()) == self.ends:
                duplicate.shutdown(socket.SHUT_RDWR)
                return True
        return False
