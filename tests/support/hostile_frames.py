"""Frames that a hostile or broken peer could send, from one seed: what fuzzers of sockets draw from."""

import random
import struct

from flexpipe.transport.frames import PARTS_MAX, SEPARATE_BYTES_MIN, FrameKind, Hello, encode_frame, encode_hello

HEADER = struct.Struct("<2sBBIQQ")


class HostileFrames:
    """Draws frames; ``recorded`` are valid ones of other conversations, for replays."""

    def __init__(self, seed):
        self.luck = random.Random(seed)
        self.recorded = []

    def hello(self, purpose="node", session=None):
        """A valid first frame."""
        session = self.luck.getrandbits(64) if session is None else session
        return flat(encode_frame(FrameKind.HELLO, 0, 0, [encode_hello(Hello(session, 64, 1 << 20, 0.25, purpose))]))

    def message(self, sequence, *parts):
        """A valid message."""
        return flat(encode_frame(FrameKind.MESSAGE, sequence, 0, parts))

    def conversation(self, frames):
        """``frames`` frames of one connection; half of the conversations begin well."""
        luck = self.luck
        said = [self.hello(luck.choice(["node", "x", "", "worker:0:3"]))] if luck.random() < 0.5 else []
        sequence = 0
        while len(said) < frames:
            if luck.random() < 0.3:
                sequence += 1
                said.append(self.message(sequence, luck.randbytes(luck.choice([0, 3, 100]))))
            else:
                said.append(self.frame(said))
        if len(self.recorded) < 100:
            self.recorded.extend(said)
        return said

    def frame(self, said=()):
        """One frame that is wrong in one way, or valid at a wrong time."""
        return self.luck.choice(
            [self.random, self.truncated, self.replayed, self.huge, self.flipped, self.crowd, self.untimely]
        )(said)

    def random(self, _said=()):
        """Bytes without sense."""
        return [self.luck.randbytes(self.luck.choice([0, 1, 5, 24, 60, 5000])) for _ in range(self.luck.randint(1, 4))]

    def truncated(self, _said=()):
        """A valid frame, cut off."""
        frame = self.message(1, b"x" * self.luck.choice([5, SEPARATE_BYTES_MIN]))
        if len(frame) > 1 and self.luck.random() < 0.5:
            return frame[:1]
        return [frame[0][: self.luck.randrange(len(frame[0]))]]

    def replayed(self, said=()):
        """What this or another conversation has said before."""
        return self.luck.choice(list(said) or self.recorded or [self.hello()])

    def huge(self, _said=()):
        """A small frame that announces the moon."""
        lie = self.luck.choice([2**31, 2**40, 2**63, 2**64 - 1])
        if self.luck.random() < 0.3:
            return [HEADER.pack(b"FP", 1, 2, self.luck.choice([PARTS_MAX + 1, 2**32 - 1]), 1, 0)]
        count = self.luck.randint(1, PARTS_MAX)
        return [HEADER.pack(b"FP", 1, 2, count, 1, 0) + struct.pack(f"<{count}Q", *[lie] * count)]

    def flipped(self, _said=()):
        """A valid frame with one bit changed."""
        frame = [bytearray(segment) for segment in self.luck.choice([self.hello(), self.message(1, b"abc", b"defg")])]
        place = self.luck.randrange(len(frame[0]))
        frame[0][place] ^= 1 << self.luck.randrange(8)
        return [bytes(segment) for segment in frame]

    def crowd(self, _said=()):
        """More segments than any frame has."""
        return [self.luck.randbytes(3)] * self.luck.choice([65, 129, 1000])

    def untimely(self, _said=()):
        """A valid frame whose counts belong to another time."""
        kind = self.luck.choice(list(FrameKind)[1:])
        parts = [b"late"] if kind is FrameKind.MESSAGE else []
        return flat(encode_frame(kind, self.luck.choice([0, 7, 2**64 - 1]), self.luck.choice([1, 9, 2**63]), parts))


def flat(segments):
    """Segments as bytes."""
    return [bytes(segment) for segment in segments]
