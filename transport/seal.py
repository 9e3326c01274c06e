"""Frames that only the two ends of one link can read or make: AES-256-GCM under a secret that both were given.

Pure, but for the salt that it draws. Owns keys, nonces and what is refused; knows no wire and no protocol. Each end draws a *salt*
and says it in every header. Before it has heard the other end it can only say hello, under a key of its own salt (generation 0).
Every later frame is under a key of both salts, so a recorded link cannot be played to an end that lives now, even under the same
secret, and no key serves twice. Each direction has keys of its own, so a frame cannot be turned back to its sender. A key is
replaced by its own derivative (generation 2, 3, ...) long before AES-GCM's limits, and then forgotten. Derivations are HKDF-SHA256
(RFC 5869).

A sealed frame has the segments of the frame in it, in their order:

    magic "FS" | version u8 | 0 u8 | generation u32 | counter u64 | salt 16 bytes | first segment, sealed
    second segment, sealed; and so on

little-endian. The nonce is counter and segment number; what is authenticated beside a segment is the header, its number and how
many there are. Counters only ascend, so what comes twice or late is refused.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .interface import SEAL_BYTES, Buffer, FrameError

SEAL_VERSION = 1
SALT_BYTES = 16
TAG_BYTES = 16
REKEY_FRAMES = 1 << 24
"""A new key after so many frames: 16 million, with at most 128 segments each, is 2^31 uses of a key, within AES-GCM's 2^32."""
REKEY_BYTES = 1 << 36
"""A new key after 64 GiB; RFC 8446 section 5.5 stops a key of AES-GCM at 2^24.5 records of 16 KiB, 360 GiB."""
OPENING_BYTES_MAX = 512
"""A frame of generation 0 is a hello and nothing larger."""

_MAGIC = b"FS"
_HEADER = struct.Struct("<2sBBIQ16s")
_PLACE = struct.Struct("<II")
_NONCE = struct.Struct("<QI")
SEALED_BYTES_EXTRA = _HEADER.size + TAG_BYTES
"""How much longer a segment gets at most."""


def derive(secret: bytes, salt: bytes, what: str) -> bytes:
    """32 bytes that follow from ``secret`` for one use of it, and tell nothing about it."""
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=f"flexpipe seal {SEAL_VERSION} {what}".encode()).derive(
        secret
    )


class _Keys:
    """The keys of one direction, in their order."""

    def __init__(self, secret: bytes, direction: str, salt: bytes) -> None:
        self.generation = 0
        self._secret = secret
        self._direction = direction
        self._salt = salt
        self._key = derive(secret, salt, f"hello {direction}")
        self.cipher = AESGCM(self._key)

    def peek(self, other_salt: bytes) -> tuple[bytes, AESGCM]:
        """The key of the next generation; ``other_salt`` is that of the end which reads."""
        if self.generation == 0:
            key = derive(self._secret, self._salt + other_salt, f"talk {self._direction}")
        else:
            key = derive(self._key, b"", "next")
        return key, AESGCM(key)

    def step(self, following: tuple[bytes, AESGCM]) -> None:
        """Go on to what `peek` gave."""
        self._key, self.cipher = following
        self.generation += 1


class Seal:
    """One end of a sealed link. ``binds`` tells the two ends apart.

    ``secret`` has `SEAL_BYTES`. Raises `ValueError` where it has not.
    """

    def __init__(
        self, secret: bytes, *, binds: bool, rekey_frames: int = REKEY_FRAMES, rekey_bytes: int = REKEY_BYTES
    ) -> None:
        if len(secret) != SEAL_BYTES:
            raise ValueError(f"a seal has {SEAL_BYTES} bytes, this one {len(secret)}")
        self._secret = secret
        self._binds = binds
        self._rekey_frames, self._rekey_bytes = rekey_frames, rekey_bytes
        self._salt = secrets.token_bytes(SALT_BYTES)
        self._own = _Keys(secret, self._direction(sends=True), self._salt)
        self._theirs: _Keys | None = None
        self._their_salt = b""
        self._sent = self._sent_by_key = self._sent_bytes_by_key = 0
        self._opened = 0

    @property
    def generation(self) -> int:
        """Which key this end seals with."""
        return self._own.generation

    def seal(self, segments: Sequence[Buffer]) -> list[Buffer]:
        """The sealed frame. Each call uses up a counter, whether the frame is sent or not."""
        views = [memoryview(segment).cast("B") for segment in segments]
        self._go_on(sum(map(len, views)))
        self._sent += 1
        own = self._own
        header = _HEADER.pack(_MAGIC, SEAL_VERSION, 0, own.generation, self._sent, self._salt)
        sealed: list[Buffer] = [
            own.cipher.encrypt(_NONCE.pack(self._sent, index), view, header + _PLACE.pack(index, len(views)))
            for index, view in enumerate(views)
        ]
        sealed[0] = header + sealed[0]
        return sealed

    def open(self, segments: Sequence[memoryview]) -> list[memoryview]:
        """The segments of the frame that was sealed, writable. Raises `FrameError`, and has then changed nothing."""
        if not segments or len(segments[0]) < _HEADER.size:
            raise FrameError("the sealed frame is shorter than its header")
        header = bytes(segments[0][: _HEADER.size])
        magic, version, _, generation, counter, salt = _HEADER.unpack(header)
        if magic != _MAGIC or version != SEAL_VERSION:
            raise FrameError(
                f"the frame starts with {magic!r} version {version}, not {_MAGIC!r} version {SEAL_VERSION}: the peer does not seal"
            )
        self._check_order(generation, counter, salt)
        pieces = [segments[0][_HEADER.size :], *segments[1:]]
        if generation == 0 and (len(pieces) > 1 or len(pieces[0]) > OPENING_BYTES_MAX):
            raise FrameError("a frame before the salts were exchanged is no hello")
        theirs = self._theirs or _Keys(self._secret, self._direction(sends=False), salt)
        following = theirs.peek(self._salt) if generation > theirs.generation else None
        cipher = theirs.cipher if following is None else following[1]
        opened = [
            _open_piece(cipher, _NONCE.pack(counter, index), piece, header + _PLACE.pack(index, len(pieces)))
            for index, piece in enumerate(pieces)
        ]
        if following is not None:
            theirs.step(following)
        self._theirs, self._their_salt, self._opened = theirs, salt, counter
        return opened

    def _check_order(self, generation: int, counter: int, salt: bytes) -> None:
        if self._theirs is not None and salt != self._their_salt:
            raise FrameError("the sealed frame belongs to another link")
        current = self._theirs.generation if self._theirs is not None else 0
        if generation not in {current, current + 1}:
            raise FrameError(f"the sealed frame has key generation {generation} after {current}")
        if counter <= self._opened:
            raise FrameError(f"sealed frame {counter} came after {self._opened}: it was repeated or held back")

    def _go_on(self, size: int) -> None:
        """Take the next key where one is due; ``size`` bytes are to be sealed now."""
        own = self._own
        used_up = self._sent_by_key >= self._rekey_frames or self._sent_bytes_by_key + size > self._rekey_bytes
        if self._their_salt and (own.generation == 0 or (used_up and self._sent_by_key > 0)):
            own.step(own.peek(self._their_salt))
            self._sent_by_key = self._sent_bytes_by_key = 0
        self._sent_by_key += 1
        self._sent_bytes_by_key += size

    def _direction(self, *, sends: bool) -> str:
        return "from the binding end" if sends is self._binds else "from the connecting end"


def _open_piece(cipher: AESGCM, nonce: bytes, piece: memoryview, beside: bytes) -> memoryview:
    if len(piece) < TAG_BYTES:
        raise FrameError("a sealed segment is shorter than its tag")
    opened = bytearray(len(piece) - TAG_BYTES)
    try:
        cipher.decrypt_into(nonce, piece, beside, opened)
    except InvalidTag:
        raise FrameError("the frame was not sealed with this link's key, or was changed on its way") from None
    return memoryview(opened)
