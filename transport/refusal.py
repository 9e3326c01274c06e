"""What a transport says when it lets somebody not in: one value each time, for its owner to log. It logs nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class RefusalReason(Enum):
    """Why."""

    KEY_UNKNOWN = "key_unknown"
    """It proved a key that no allowed node has, or none at all."""
    KEY_REVOKED = "key_revoked"
    """Its key was taken off the list while its link lived; the link has ended."""
    HANDSHAKE = "handshake"
    """What it said was no ZeroMQ, or not the handshake of this socket."""
    GREETING = "greeting"
    """Its first frame was no hello to a listener."""
    SILENT = "silent"
    """It connected and said nothing."""
    CROWDED = "crowded"
    """Too many wait to be accepted already."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal; nothing in it is secret.

    ``where`` is the name of the link or listener, ``peer`` the node that its key proves, "" where none does, ``host`` the address
    that it came from, "" where unknown, and ``detail`` a sentence.
    """

    reason: RefusalReason
    where: str
    peer: str
    host: str
    detail: str


OnRefusal = Callable[[Refusal], None]
"""Called in the transport's loop; must neither block nor raise."""


def ignore_refusal(_refusal: Refusal) -> None:
    """For a transport whose refusals nobody logs."""
