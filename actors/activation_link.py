"""Hidden states from one stage to the next: a header message and a tensor, over one link.

Small tensors travel inside the message. Between two stages of one host (an ipc link) larger ones lie in a shared-memory ring and
the message is only the doorbell (`bench/ring.py` measures the gain). The receiver computes from the slot in place and gives it
back when the step has run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from ..runtime.interface import BufferView
from ..transport.address import IpcAddress, parse_address
from ..transport.interface import FrameError, Link, Transport
from ..transport.ring import RingReader, RingWriter
from .messages import ACTIVATION, Activation

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Element sizes of the dtypes that may cross a cut."""
RING_BYTES_MIN = 1024 * 1024
"""Smaller tensors travel in the message: up to about here the doorbell costs more than the copy that it saves (`bench/ring.py`)."""
RING_SLOTS = 4
"""Steps whose tensors may lie in the ring at once; the sender waits for a free slot."""


@dataclass(frozen=True, slots=True)
class ArrivedActivation:
    """A received hidden state; where ``header.slot`` >= 0 its data lies in that slot until `ActivationReceiver.release`."""

    header: Activation
    hidden: BufferView


class ActivationSender:
    """The upstream stage's end. ``step_tokens_max`` bounds the tokens of one tensor, and so a ring slot."""

    def __init__(self, link: Link, ring_path: str | None, step_tokens_max: int) -> None:
        self._link = link
        self._ring_path = ring_path
        self._step_tokens_max = step_tokens_max
        self._ring: RingWriter | None = None

    @classmethod
    async def connect(cls, transport: Transport, address: str, *, name: str, step_tokens_max: int) -> ActivationSender:
        """Connect to the stage that binds ``address``."""
        return cls(await transport.connect(address, name=name), _ring_path(address), step_tokens_max)

    async def send(self, epoch: int, step: int, hidden: BufferView) -> None:
        """Send one step's hidden state, whose first but one dimension counts tokens.

        Waits while the receiver is too far behind. Raises `PeerLostError`.
        """
        header = Activation(epoch, step, hidden.dtype, hidden.shape)
        if self._ring_path is None or hidden.data.nbytes < RING_BYTES_MIN:
            await self._link.send([ACTIVATION.encode(header), hidden.data])
            return
        if self._ring is None:
            # Only now: the receiver listens for sure, since the scheduler sends no step before every stage serves.
            slot_bytes = hidden.data.nbytes // hidden.shape[-2] * self._step_tokens_max
            self._ring = RingWriter.connect(self._ring_path, slots=RING_SLOTS, slot_bytes=slot_bytes)
        slot = await self._ring.acquire()
        self._ring.write(slot, hidden.data)
        await self._link.send([ACTIVATION.encode(msgspec.structs.replace(header, slot=slot))])

    def close(self) -> None:
        """Give the ring's memory up; the link closes with its transport."""
        if self._ring is not None:
            self._ring.close()


class ActivationReceiver:
    """The downstream stage's end."""

    def __init__(self, link: Link, ring: RingReader | None) -> None:
        self._link = link
        self._ring = ring

    @classmethod
    async def bind(cls, transport: Transport, address: str, *, name: str) -> ActivationReceiver:
        """Bind ``address`` for the stage before this one."""
        path = _ring_path(address)
        ring = RingReader.listen(path) if path else None
        return cls(await transport.bind(address, name=name), ring)

    async def receive(self) -> ArrivedActivation:
        """The next hidden state. Raises `PeerLostError`, or `FrameError` where shape, dtype and bytes disagree."""
        header_part, *data = await self._link.receive()
        header = ACTIVATION.decode(header_part)
        expected = DTYPE_BYTES.get(header.dtype, 0) * math.prod(header.shape)
        if self._ring is not None and header.slot >= 0 and not data:
            data = [self._ring.view(header.slot, expected)]
        if len(data) != 1 or expected <= 0 or data[0].nbytes != expected:
            raise FrameError(
                f"an activation of shape {header.shape} and dtype {header.dtype!r} came with parts of "
                f"{[part.nbytes for part in data]} bytes"
            )
        return ArrivedActivation(header, BufferView(header.dtype, header.shape, data[0]))

    def release(self, slot: int) -> None:
        """The step whose tensor lay in ``slot`` has run."""
        if self._ring is not None:
            self._ring.release(slot)

    def close(self) -> None:
        """Give the ring's memory up; the link closes with its transport."""
        if self._ring is not None:
            self._ring.close()


def _ring_path(address: str) -> str | None:
    parsed = parse_address(address)
    return f"{parsed.path}.ring" if isinstance(parsed, IpcAddress) else None
