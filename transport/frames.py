"""The envelope every link puts around a message: what a wire carries, to the byte. Pure: bytes in, values out.

One frame is one wire message of one or more *segments*. Segment 0 is the envelope:

    magic "FP" | version u8 | kind u8 | parts u32 | sequence u64 | consumed u64 | part sizes u64 ... | small parts

all little-endian; each small part starts at a multiple of 8 bytes from the start of the envelope. A part of
`SEPARATE_BYTES_MIN` or more follows as a segment of its own, untouched, so that it need not be copied. ``sequence`` counts
the sender's messages (control frames repeat the last one), ``consumed`` is how many of the peer's messages the sender has
taken out of its queue, which is the credit. The numbers are checked against the real sizes before any of them is used.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from .interface import PURPOSE_BYTES_MAX, Buffer, FrameError

FRAME_VERSION = 1
SEPARATE_BYTES_MIN = 32 * 1024
"""Below this a copy into the envelope is cheaper than one more ZeroMQ frame at both ends (about 2 us)."""
PARTS_MAX = 64
PART_ALIGNMENT_BYTES = 8

_MAGIC = b"FP"
_HEADER = struct.Struct("<2sBBIQQ")
_HELLO = struct.Struct("<QIQd")
_SIZES = tuple(struct.Struct(f"<{count}Q") for count in range(PARTS_MAX + 1))
ENVELOPE_BYTES_MAX = _HEADER.size + PARTS_MAX * (8 + SEPARATE_BYTES_MIN)


class FrameKind(IntEnum):
    """What a frame is for."""

    HELLO = 1
    MESSAGE = 2
    CREDIT = 3
    HEARTBEAT = 4
    GOODBYE = 5


_KINDS = {int(kind): kind for kind in FrameKind}


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame; ``parts`` are views into the segments it came in."""

    kind: FrameKind
    sequence: int
    consumed: int
    parts: list[memoryview]


@dataclass(frozen=True, slots=True)
class Hello:
    """The one part of a HELLO frame: who this end is, what bounds it brings, and what it tells a listener that it wants."""

    session: int
    credit_messages: int
    message_bytes_max: int
    heartbeat_interval_s: float
    purpose: str = ""


def encode_frame(kind: FrameKind, sequence: int, consumed: int, parts: Sequence[Buffer] = ()) -> list[Buffer]:
    """The segments of one frame. Large parts are referred to, not copied. At most `PARTS_MAX` parts."""
    assert len(parts) <= PARTS_MAX, "the sender measures a message before it encodes it"
    header = _HEADER.pack(_MAGIC, FRAME_VERSION, kind, len(parts), sequence, consumed)
    if not parts:
        return [header]
    views = [part if isinstance(part, bytes) else memoryview(part).cast("B") for part in parts]
    sizes = [len(view) for view in views]
    pieces: list[Buffer] = [header, _SIZES[len(sizes)].pack(*sizes)]
    separate: list[Buffer] = []
    for view, size in zip(views, sizes, strict=True):
        if size >= SEPARATE_BYTES_MIN:
            separate.append(view)
        else:
            pieces.append(view)
            pieces.append(bytes(-size % PART_ALIGNMENT_BYTES))
    return [b"".join(pieces), *separate]


def decode_frame(segments: Sequence[memoryview], message_bytes_max: int) -> Frame:
    """Read one frame whose parts are at most ``message_bytes_max`` bytes together. Raises `FrameError`."""
    if not segments:
        raise FrameError("the frame has no segments")
    envelope = segments[0]
    if len(envelope) < _HEADER.size:
        raise FrameError(f"the envelope is {len(envelope)} bytes long, its header alone needs {_HEADER.size}")
    magic, version, kind, count, sequence, consumed = _HEADER.unpack_from(envelope)
    if magic != _MAGIC:
        raise FrameError(f"the envelope starts with {magic!r}, not {_MAGIC!r}: the peer is not one of ours")
    if version != FRAME_VERSION:
        raise FrameError(
            f"the peer speaks frame version {version}, this end {FRAME_VERSION}: run the same release on both"
        )
    if kind not in _KINDS:
        raise FrameError(f"frame kind {kind} is unknown")
    if count > PARTS_MAX:
        raise FrameError(f"the envelope announces {count} parts, the limit is {PARTS_MAX}")
    return Frame(
        _KINDS[kind], sequence, consumed, _parts(segments, count, message_bytes_max) if count else _no_parts(segments)
    )


def _no_parts(segments: Sequence[memoryview]) -> list[memoryview]:
    if len(segments) > 1 or len(segments[0]) != _HEADER.size:
        raise FrameError("the envelope announces no parts, yet bytes follow its header")
    return []


def _parts(segments: Sequence[memoryview], count: int, message_bytes_max: int) -> list[memoryview]:
    envelope = segments[0]
    offset = _HEADER.size + 8 * count
    if len(envelope) < offset:
        raise FrameError(
            f"the envelope is {len(envelope)} bytes long, its table of {count} part sizes ends at {offset}"
        )
    sizes = _SIZES[count].unpack_from(envelope, _HEADER.size)
    if sum(sizes) > message_bytes_max:
        raise FrameError(f"the message is {sum(sizes)} bytes long, the link's limit is {message_bytes_max}")
    parts = []
    separate = 1
    for size in sizes:
        if size >= SEPARATE_BYTES_MIN:
            if separate == len(segments):
                raise FrameError(f"a part of {size} bytes was announced and did not come")
            part = segments[separate]
            separate += 1
        else:
            part = envelope[offset : offset + size]
            offset += size + -size % PART_ALIGNMENT_BYTES
        if len(part) != size:
            raise FrameError(f"a part of {size} bytes was announced and {len(part)} came")
        parts.append(part)
    if separate != len(segments) or offset != len(envelope):
        raise FrameError("more bytes came than the envelope announces")
    return parts


def encode_hello(hello: Hello) -> bytes:
    """The part of a HELLO frame: the numbers, then the purpose to its end."""
    numbers = _HELLO.pack(hello.session, hello.credit_messages, hello.message_bytes_max, hello.heartbeat_interval_s)
    return numbers + hello.purpose.encode("ascii")


def is_purpose(text: str) -> bool:
    """Whether a hello may carry it: printable ASCII of bounded length."""
    return len(text) <= PURPOSE_BYTES_MAX and text.isascii() and text.isprintable()


def check_purpose(purpose: str, seal: bytes) -> None:
    """Raise `ValueError` where a link to a listener cannot be made with these: a fault of the caller."""
    if not is_purpose(purpose):
        raise ValueError(
            f"the purpose {purpose[:64]!r} is not printable ASCII of at most {PURPOSE_BYTES_MAX} characters"
        )
    if seal:
        raise ValueError("a seal is for a link of two ends; a listener knows its peers by their keys")


def decode_hello(frame: Frame) -> Hello:
    """Read a HELLO frame's part. Raises `FrameError`."""
    if len(frame.parts) != 1 or not _HELLO.size <= len(frame.parts[0]) <= _HELLO.size + PURPOSE_BYTES_MAX:
        raise FrameError("the hello frame does not have the size of a hello")
    part = frame.parts[0]
    purpose = bytes(part[_HELLO.size :]).decode("latin-1")
    if not is_purpose(purpose):
        raise FrameError("the hello frame brings a purpose that is not printable ASCII")
    session, credit_messages, message_bytes_max, heartbeat_interval_s = _HELLO.unpack_from(part)
    hello = Hello(session, credit_messages, message_bytes_max, heartbeat_interval_s, purpose)
    if not (hello.credit_messages > 0 and hello.message_bytes_max > 0 and hello.heartbeat_interval_s > 0):
        raise FrameError(f"the hello frame brings impossible limits: {hello}")
    return hello
