"""Hidden states from one stage to the next: a header message and a tensor, over one link.

Small tensors travel inside the message; where the two stages share a host, larger ones lie in a shared-memory ring and the
message is only the doorbell. The receiver reads in place and gives the slot back when the step that needed it has run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..runtime.interface import BufferView
from ..transport.interface import FrameError, Link
from .messages import ACTIVATION, Activation

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Element sizes of the dtypes that may cross a cut."""


@dataclass(frozen=True, slots=True)
class ArrivedActivation:
    """A received hidden state; ``hidden.data`` is valid until the next but one `ActivationLink.receive`."""

    header: Activation
    hidden: BufferView


class ActivationLink:
    """One end; one stage sends, the next receives."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def send(self, epoch: int, step: int, hidden: BufferView) -> None:
        """Send one step's hidden state. Waits while the receiver is too far behind; raises `PeerLostError`."""
        header = Activation(epoch, step, hidden.dtype, hidden.shape)
        await self._link.send([ACTIVATION.encode(header), hidden.data])

    async def receive(self) -> ArrivedActivation:
        """The next hidden state. Raises `PeerLostError`, or `FrameError` where shape, dtype and bytes disagree."""
        parts = await self._link.receive()
        if len(parts) != 2:
            raise FrameError(f"an activation has 2 parts, this message has {len(parts)}")
        header = ACTIVATION.decode(parts[0])
        expected = DTYPE_BYTES.get(header.dtype, 0) * math.prod(header.shape)
        if expected != parts[1].nbytes or expected == 0:
            raise FrameError(
                f"an activation of shape {header.shape} and dtype {header.dtype!r} cannot have {parts[1].nbytes} bytes"
            )
        return ArrivedActivation(header, BufferView(header.dtype, header.shape, parts[1]))

    async def aclose(self) -> None:
        """Close the link."""
        await self._link.aclose()
