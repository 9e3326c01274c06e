"""The protocol of one end of a link, pure: frames, times and wire events in; frames to send and messages out.

Rules. Nothing is sent before the peer's HELLO except our own, which goes out whenever a connection opens, and again in answer to
the peer's (a frame may overtake the news of its connection). Messages are numbered from 1 in each direction, and every frame
says how many were sent before it, so a gap shows at once. Every frame also says how many of the peer's messages were consumed:
that is the credit, an absolute number that may be lost or repeated without harm, carried for free by whatever travels the other
way. A CREDIT frame goes alone only when half the window is owed. The first fault ends the link for good: it never resumes, for
nobody could say which messages a broken connection swallowed.

         AWAITING --HELLO--> UP --GOODBYE, silence, disconnect, garbage--> LOST;     any --close--> CLOSED

This file does not know what a wire is, nor which of the two ends it plays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import ClassVar

from .frames import PARTS_MAX, Frame, FrameKind, Hello, decode_frame, decode_hello, encode_frame, encode_hello
from .interface import (
    Buffer,
    FrameError,
    LinkClosedError,
    LinkLimits,
    LinkStatistics,
    PeerLostError,
    TransportError,
)
from .liveness import Liveness, LivenessAction

Segments = list[Buffer]


class LinkState(Enum):
    """Where one end of a link stands."""

    AWAITING = auto()
    UP = auto()
    LOST = auto()
    CLOSED = auto()


class LinkMachine:
    """One end's protocol state. Times are seconds on one monotonic clock.

    ``session`` is a random number that tells this end from any other that ever uses the same address. ``purpose`` is what this
    end tells a listener; ``listens`` says that this is the listener's end, whose peers must bring one, as no other peer may.
    """

    def __init__(
        self, name: str, limits: LinkLimits, session: int, now: float, *, purpose: str = "", listens: bool = False
    ) -> None:
        self._name = name
        self._limits = limits
        self._session = session
        self._purpose = purpose
        self._listens = listens
        self._state = LinkState.AWAITING
        self._failure: tuple[type[TransportError], str] | None = None
        self._liveness = Liveness(
            heartbeat_interval_s=limits.heartbeat_interval_s, silence_s_max=limits.silence_s_max, now=now
        )
        self._connections = 0
        self._peer: Hello | None = None
        self._window = 0
        self._message_bytes_max = limits.message_bytes_max
        self._inbox: deque[list[memoryview]] = deque()
        self._sent = self._sent_bytes = 0
        self._received = self._received_bytes = 0
        self._consumed = 0
        self._consumed_announced = 0
        self._consumed_by_peer = 0

    # --- what is so ---------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """For logs."""
        return self._name

    @property
    def is_open(self) -> bool:
        """Whether frames may still come and go."""
        return self._state is LinkState.AWAITING or self._state is LinkState.UP

    @property
    def state(self) -> LinkState:
        """Where this end stands."""
        return self._state

    @property
    def has_met_peer(self) -> bool:
        """Whether its hello has come."""
        return self._peer is not None

    @property
    def peer_purpose(self) -> str:
        """What the peer told a listener that it wants; "" until it has come."""
        return self._peer.purpose if self._peer else ""

    @property
    def has_message(self) -> bool:
        """Whether `take` would give one."""
        return bool(self._inbox)

    @property
    def credit_left(self) -> int:
        """How many messages may be sent now; 0 until the peer has come."""
        return self._consumed_by_peer + self._window - self._sent

    @property
    def next_tick_at(self) -> float:
        """When `tick` has to be called at the latest."""
        return self._liveness.next_tick_at

    def send_error(self) -> TransportError | None:
        """Why nothing can be sent any more: a fresh exception, or None. A peer that sent garbage is a lost peer here."""
        if self._failure is None:
            return None
        kind, sentence = self._failure
        return PeerLostError(sentence) if kind is FrameError else kind(sentence)

    def receive_error(self) -> TransportError | None:
        """Why nothing will be received any more: a fresh exception, or None. Messages that had arrived come first."""
        if self._failure is None:
            return None
        kind, sentence = self._failure
        return kind(sentence)

    def statistics(self) -> LinkStatistics:
        """Counters, as a snapshot."""
        return LinkStatistics(
            sent_messages=self._sent,
            sent_bytes=self._sent_bytes,
            received_messages=self._received,
            received_bytes=self._received_bytes,
            waiting_messages=len(self._inbox),
            credit_left=self.credit_left,
        )

    # --- our side's wishes --------------------------------------------------------------------------------------

    def measure(self, parts: Sequence[Buffer]) -> int:
        """The size of a message in bytes. Raises `FrameError` where it is over a limit, as far as the limits are known yet."""
        size = _bytes_of(parts)
        if size > self._message_bytes_max:
            raise FrameError(
                f"{self._name}: a message of {size} bytes is over the link's limit of {self._message_bytes_max}: "
                "cut it into smaller ones"
            )
        if len(parts) > PARTS_MAX:
            raise FrameError(
                f"{self._name}: a message of {len(parts)} parts is over the limit of {PARTS_MAX}: join some of them"
            )
        return size

    def encode_message(self, parts: Sequence[Buffer]) -> Segments:
        """The next message's frame. Changes nothing: the message counts once `message_sent` says that the wire took it."""
        return encode_frame(FrameKind.MESSAGE, self._sent + 1, self._consumed, parts)

    def message_sent(self, size: int, now: float) -> None:
        """The frame of `encode_message` is on the wire; ``size`` is what `measure` said."""
        assert self.credit_left > 0, "the driver sends only with credit"
        self._sent += 1
        self._sent_bytes += size
        self._consumed_announced = self._consumed
        self._liveness.sent(now)

    def take(self, now: float) -> tuple[list[memoryview], Segments | None]:
        """The oldest message that waits, and a CREDIT frame where one is due. Only where `has_message`."""
        message = self._inbox.popleft()
        self._consumed += 1
        owed = self._consumed - self._consumed_announced
        if self._state is LinkState.UP and 2 * owed >= self._window:
            return message, self._control(FrameKind.CREDIT, now)
        return message, None

    def close(self, now: float) -> Segments | None:
        """This side wants no more, nor what it has not taken. The GOODBYE to send, where there is a peer to hear it."""
        goodbye = self._control(FrameKind.GOODBYE, now) if self._state is LinkState.UP else None
        self._state = LinkState.CLOSED
        self._inbox.clear()
        self._failure = (LinkClosedError, f"{self._name} was closed by this end")
        return goodbye

    def sign_of_life(self, now: float) -> Segments | None:
        """A HEARTBEAT to send out of turn, where there is a peer: it shows whether the wire still leads to it."""
        return self._control(FrameKind.HEARTBEAT, now) if self._state is LinkState.UP else None

    def lose(self, sentence: str) -> None:
        """Take the peer for lost, whatever it says; ``sentence`` is why. Harmless after the end."""
        if self.is_open:
            self._lose(PeerLostError, sentence)

    # --- what the wire tells ------------------------------------------------------------------------------------

    def connected(self, now: float) -> Segments | None:
        """A connection opened: the HELLO to send over it."""
        self._connections += 1
        if self._connections > 1:
            self._lose(PeerLostError, "a second peer connected to the same address: a link joins exactly two ends")
        if self._state is LinkState.AWAITING:
            return self._hello(now)
        return None

    def disconnected(self) -> None:
        """A connection ended, and everything that came over it was handed in. Harmless while no peer has come."""
        self._connections -= 1
        if self._state is LinkState.UP:
            self._lose(PeerLostError, "the connection ended: the peer closed without a goodbye or died")

    def frame_received(self, segments: Sequence[memoryview], now: float) -> Segments | None:
        """One frame came; a frame to answer with, or None. Garbage loses the peer."""
        assert self.is_open, "frames after the end are the wire's to throw away"
        try:
            return self._move(decode_frame(segments, self._limits.message_bytes_max), now)
        except FrameError as error:
            self._lose(FrameError, str(error))
            return None

    def frame_refused(self, error: FrameError) -> None:
        """One frame came that the wire itself found to be garbage: it loses the peer."""
        self._lose(FrameError, str(error))

    def tick(self, now: float) -> Segments | None:
        """Time has passed, and everything that has arrived was handed in: a HEARTBEAT to send, or None."""
        if self._state is LinkState.AWAITING:
            # A peer that never came is not silent; its time starts when it comes.
            self._liveness.heard(now)
            self._liveness.sent(now)
        if self._state is not LinkState.UP:
            return None
        match self._liveness.tick(now):
            case LivenessAction.SEND_HEARTBEAT:
                return self._control(FrameKind.HEARTBEAT, now)
            case LivenessAction.DECLARE_LOST:
                silence_s = self._liveness.silence_s(now)
                self._lose(
                    PeerLostError, f"nothing was heard for {silence_s:.2f} s: the peer hangs or cannot be reached"
                )
        return None

    # --- the moves, and which frame makes which in what state -----------------------------------------------------

    def _move(self, frame: Frame, now: float) -> Segments | None:
        move = self._MOVES.get((self._state, frame.kind))
        if move is None:
            raise FrameError(f"a {frame.kind.name} frame came before the peer's HELLO")
        self._liveness.heard(now)
        return move(self, frame, now)

    def _peer_came(self, frame: Frame, now: float) -> Segments | None:
        hello = decode_hello(frame)
        if frame.sequence or frame.consumed:
            raise FrameError("the first HELLO claims earlier messages: it belongs to another conversation")
        if 2 * hello.heartbeat_interval_s > self._limits.silence_s_max:
            raise FrameError(
                f"the peer sends a heartbeat every {hello.heartbeat_interval_s} s, too rarely for this end's silence_s_max of "
                f"{self._limits.silence_s_max} s: give both ends the same limits"
            )
        if bool(hello.purpose) is not self._listens:
            raise FrameError(
                "the peer came without a purpose, and a listener must know one"
                if self._listens
                else f"the peer came to a listener, for {hello.purpose!r}, and this is an end for one peer"
            )
        self._peer = hello
        self._window = min(self._limits.credit_messages, hello.credit_messages)
        self._message_bytes_max = min(self._limits.message_bytes_max, hello.message_bytes_max)
        answer = self._hello(now)
        self._state = LinkState.UP
        return answer

    def _hello_again(self, frame: Frame, _now: float) -> None:
        if decode_hello(frame) != self._peer:
            self._lose(PeerLostError, "another process took the peer's address")

    def _message(self, frame: Frame, _now: float) -> None:
        self._check_counts(frame, self._received + 1)
        if self._received - self._consumed >= self._window:
            raise FrameError(f"the peer sent more than the {self._window} messages it has credit for")
        self._received += 1
        self._received_bytes += _bytes_of(frame.parts)
        self._inbox.append(frame.parts)

    def _news(self, frame: Frame, _now: float) -> None:
        if frame.parts:
            raise FrameError(f"a {frame.kind.name} frame has no parts, {len(frame.parts)} came")
        self._check_counts(frame, self._received)

    def _goodbye(self, frame: Frame, now: float) -> None:
        self._news(frame, now)
        self._lose(PeerLostError, "the peer closed the link")

    _MOVES: ClassVar[dict[tuple[LinkState, FrameKind], Callable[[LinkMachine, Frame, float], Segments | None]]] = {
        (LinkState.AWAITING, FrameKind.HELLO): _peer_came,
        (LinkState.UP, FrameKind.HELLO): _hello_again,
        (LinkState.UP, FrameKind.MESSAGE): _message,
        (LinkState.UP, FrameKind.CREDIT): _news,
        (LinkState.UP, FrameKind.HEARTBEAT): _news,
        (LinkState.UP, FrameKind.GOODBYE): _goodbye,
    }

    # --- helpers of the moves -----------------------------------------------------------------------------------

    def _check_counts(self, frame: Frame, sequence: int) -> None:
        if frame.sequence != sequence:
            raise FrameError(f"a {frame.kind.name} frame has sequence number {frame.sequence}, {sequence} was expected")
        if not self._consumed_by_peer <= frame.consumed <= self._sent:
            raise FrameError(
                f"the peer claims to have consumed {frame.consumed} messages after {self._consumed_by_peer}, {self._sent} were sent"
            )
        self._consumed_by_peer = frame.consumed

    def _hello(self, now: float) -> Segments:
        limits = self._limits
        hello = Hello(
            self._session,
            limits.credit_messages,
            limits.message_bytes_max,
            limits.heartbeat_interval_s,
            self._purpose,
        )
        self._liveness.sent(now)
        return encode_frame(FrameKind.HELLO, 0, 0, [encode_hello(hello)])

    def _control(self, kind: FrameKind, now: float) -> Segments:
        self._consumed_announced = self._consumed
        self._liveness.sent(now)
        return encode_frame(kind, self._sent, self._consumed)

    def _lose(self, kind: type[TransportError], sentence: str) -> None:
        self._state = LinkState.LOST
        self._failure = (kind, f"{self._name}: {sentence}")


def _bytes_of(parts: Sequence[Buffer]) -> int:
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)
