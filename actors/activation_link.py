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
from ..transport.interface import FrameError
from .bulk_link import BulkReceiver, BulkSender
from .link_place import LinkPlace, Surroundings
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

    def __init__(self, bulk: BulkSender, step_tokens_max: int) -> None:
        self._bulk = bulk
        self._step_tokens_max = step_tokens_max

    @classmethod
    async def connect(
        cls, around: Surroundings, place: LinkPlace, *, name: str, step_tokens_max: int
    ) -> ActivationSender:
        """Connect to the stage that binds ``place``."""
        return cls(await BulkSender.connect(around, place, name=name, slots=RING_SLOTS), step_tokens_max)

    async def send(self, epoch: int, step: int, hidden: BufferView) -> None:
        """Send one step's hidden state, whose first but one dimension counts tokens.

        Waits while the receiver is too far behind. Raises `PeerLostError`.
        """
        header = Activation(epoch, step, hidden.dtype, hidden.shape)
        if not self._bulk.has_ring or hidden.data.nbytes < RING_BYTES_MIN:
            await self._bulk.link.send([ACTIVATION.encode(header), hidden.data])
            return
        size = hidden.data.nbytes
        slot = await self._bulk.take(size, size // hidden.shape[-2] * self._step_tokens_max)
        slot.data[:] = hidden.data.cast("B")
        await self._bulk.send(ACTIVATION.encode(msgspec.structs.replace(header, slot=slot.slot)), slot)

    def close(self) -> None:
        """Give the ring's memory up. Idempotent."""
        self._bulk.close()

    async def aclose(self) -> None:
        """Close the link, too. Idempotent."""
        self.close()
        await self._bulk.link.aclose()


class ActivationReceiver:
    """The downstream stage's end."""

    def __init__(self, bulk: BulkReceiver) -> None:
        self._bulk = bulk

    @classmethod
    async def bind(cls, around: Surroundings, place: LinkPlace, *, name: str) -> ActivationReceiver:
        """Bind ``place`` for the stage before this one."""
        return cls(await BulkReceiver.bind(around, place, name=name))

    async def receive(self) -> ArrivedActivation:
        """The next hidden state. Raises `PeerLostError`, or `FrameError` where shape, dtype and bytes disagree."""
        first, *parts = await self._bulk.link.receive()
        header = ACTIVATION.decode(first)
        expected = DTYPE_BYTES.get(header.dtype, 0) * math.prod(header.shape)
        if expected <= 0:
            raise FrameError(f"an activation has shape {header.shape} and dtype {header.dtype!r}")
        data = self._bulk.view(header.slot, expected, parts)
        return ArrivedActivation(header, BufferView(header.dtype, header.shape, data))

    def release(self, slot: int) -> None:
        """The step whose tensor lay in ``slot`` has run."""
        self._bulk.release(slot)

    def close(self) -> None:
        """Give the ring's memory up. Idempotent."""
        self._bulk.close()

    async def aclose(self) -> None:
        """Close the link, too. Idempotent."""
        self.close()
        await self._bulk.link.aclose()
