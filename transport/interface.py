"""What every transport offers: ordered, bounded links between two ends. It never knows what a model is.

A *link* joins exactly two ends, one of which binds and the other connects; each pair of actors has one link per purpose
(control, activations). A *listener* is for peers that nobody counted beforehand: each that connects to it gets a link of its own.
One task may send while another receives. Two implementations pass the same contract tests: ZeroMQ (`zmq_transport`) and
`memory` (in one process, with seeded faults, used by the simulator).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class TransportError(Exception):
    """Base of everything a link raises."""


class PeerLostError(TransportError):
    """The other end is gone: closed, dead, or silent for longer than the liveness limit."""


class LinkClosedError(TransportError):
    """This end was closed by its own side (`Link.aclose`, or the end of its transport)."""


class FrameError(TransportError):
    """A frame or message is not valid, or over its limit; the sentence says what was wrong with it."""


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds of one link. ``credit_messages`` is how many messages may be under way before `Link.send` waits.

    The two ends may differ: the smaller ``credit_messages`` and ``message_bytes_max`` hold for both directions. An end that has
    heard nothing for ``silence_s_max`` calls its peer lost, so it must be at least twice the peer's ``heartbeat_interval_s``.
    """

    credit_messages: int = 64
    message_bytes_max: int = 64 * 1024 * 1024
    heartbeat_interval_s: float = 0.25
    silence_s_max: float = 1.5


DEFAULT_LINK_LIMITS = LinkLimits()


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """Counters since the link was made."""

    sent_messages: int
    sent_bytes: int
    received_messages: int
    received_bytes: int
    waiting_messages: int
    credit_left: int


class Link(Protocol):
    """One end of a bounded, ordered, exactly-once-or-`PeerLostError` message stream."""

    @property
    def name(self) -> str:
        """For logs: which purpose and which peer."""
        ...

    async def send(self, parts: Sequence[Buffer]) -> None:
        """Send one message of several parts, whole or not at all. Waits while out of credit; a checkpoint.

        Also waits until the peer has come at all: nothing is ever queued towards nobody. Large parts are not copied, so a
        part must not be written to after it was sent. Raises `PeerLostError` once the peer is known to be gone,
        `FrameError` where the message is over its limit (nothing was sent, the link lives on), `LinkClosedError` after `aclose`.
        """
        ...

    async def receive(self) -> list[memoryview]:
        """The next message's parts, in order. A peer that has not come yet is waited for, not lost.

        Raises after the last message that arrived: `PeerLostError` where the peer closed, died or fell silent, `FrameError`
        where it sent garbage (it is lost then, too), `LinkClosedError` after `aclose`.
        """
        ...

    def statistics(self) -> LinkStatistics:
        """Counters, as a snapshot."""
        ...

    async def aclose(self) -> None:
        """Tell the peer, release everything. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class AcceptedLink:
    """A link that somebody made to a `Listener`.

    ``peer`` is the node whose key the other end proved to have, "" where there are no keys. ``purpose`` is what it says the link
    is for: nothing is proved by it.
    """

    link: Link
    peer: str
    purpose: str


PURPOSE_BYTES_MAX = 128
"""A purpose is a word or two of printable ASCII for whoever accepts: "node", "worker:0:3"."""
SEAL_BYTES = 32
"""The size of the secret that seals a link."""


class Listener(Protocol):
    """One address to which any number of peers connect, each with a `Link` of its own."""

    @property
    def address(self) -> str:
        """Where it listens."""
        ...

    async def accept(self) -> AcceptedLink:
        """The next link whose peer has said hello. Raises `LinkClosedError` after `aclose`."""
        ...

    async def aclose(self) -> None:
        """Accept nobody any more. Links that were accepted live on. Idempotent."""
        ...


class Transport(Protocol):
    """Makes links by address. An async context manager owns their background tasks."""

    async def bind(
        self, address: str, *, name: str, limits: LinkLimits = DEFAULT_LINK_LIMITS, seal: bytes = b""
    ) -> Link:
        """Be the binding end at ``address`` ("ipc:///run/dir/x", "tcp://127.0.0.1:7700"); returns before a peer came.

        With a ``seal``, a key of 32 bytes that the two ends share, every frame is encrypted and proved under it.
        """
        ...

    async def connect(
        self, address: str, *, name: str, limits: LinkLimits = DEFAULT_LINK_LIMITS, purpose: str = "", seal: bytes = b""
    ) -> Link:
        """Be the connecting end; returns before the other end exists.

        With a ``purpose`` the other end is a `Listener`, else one that binds, with the same ``seal``.
        """
        ...

    async def listen(self, address: str, *, name: str, limits: LinkLimits = DEFAULT_LINK_LIMITS) -> Listener:
        """Let any number of peers connect to ``address``, where ``limits`` hold for each link. They may have come before."""
        ...
