"""Typed messages as MessagePack bytes, and back with nothing believed before it is checked.

Decoding has three steps: walk the structure without building anything (so a header that announces more than the bytes hold is
found out for free), build plain values under hard length limits, convert them to the one type they claim to be. The result:
garbage costs memory in proportion to its own size and ends in `FrameError`. Knows no particular message; the caller brings them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgpack
import msgspec

from .interface import FrameError

M = TypeVar("M")

# What the three decoders raise on bad input: ValueError is msgpack's base (and Unicode's), RecursionError comes from deep nesting.
_BAD_INPUT = (ValueError, msgspec.MsgspecError, RecursionError, OverflowError)


@dataclass(frozen=True, slots=True)
class CodecLimits:
    """Hard limits of one encoded message. ``message_bytes_max`` bounds the whole, the others each single value.

    The byte limits leave room for the largest `StepPlan`: block tables of 512 rows of 2,048 int32 are 4 MiB.
    """

    message_bytes_max: int = 16 * 1024 * 1024
    string_bytes_max: int = 1024 * 1024
    binary_bytes_max: int = 16 * 1024 * 1024
    array_items_max: int = 65_536
    map_items_max: int = 1024


class Codec(Generic[M]):
    """Encodes and decodes the messages of one union of msgspec structs (tag field "kind")."""

    def __init__(self, types: Any, limits: CodecLimits = CodecLimits()) -> None:
        self._limits = limits
        # msgspec keeps what it works out about a type only on struct classes: converting to a bare union would work it out again
        # each time (10.7 us instead of 1.1).
        self._holder: Any = msgspec.defstruct("Holder", [("message", types)], frozen=True)
        self._encoder = msgspec.msgpack.Encoder()
        self._walker = msgspec.msgpack.Decoder(msgspec.Raw)

    def encode(self, message: M) -> bytes:
        """MessagePack bytes of one message. Raises `FrameError` where they are over the limit."""
        data = self._encoder.encode(message)
        if len(data) > self._limits.message_bytes_max:
            raise FrameError(
                f"{_name(message)} is {len(data)} bytes long, the limit is {self._limits.message_bytes_max}"
            )
        return data

    def decode(self, data: bytes | memoryview) -> M:
        """The message in ``data``. Raises `FrameError`, and nothing else, whatever the bytes are."""
        limits = self._limits
        if len(data) > limits.message_bytes_max:
            raise FrameError(f"the message is {len(data)} bytes long, the limit is {limits.message_bytes_max}")
        try:
            self._walker.decode(data)
            plain = msgpack.unpackb(
                data,
                strict_map_key=True,
                max_str_len=limits.string_bytes_max,
                max_bin_len=limits.binary_bytes_max,
                max_array_len=limits.array_items_max,
                max_map_len=limits.map_items_max,
                max_ext_len=0,
            )
            message: M = msgspec.convert({"message": plain}, self._holder).message
        except _BAD_INPUT as error:
            raise FrameError(
                f"the message is not one of those expected here: {error or type(error).__name__}"
            ) from error
        return message


def _name(message: object) -> str:
    return type(message).__name__
