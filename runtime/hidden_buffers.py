"""Hidden states between torch and the bytes that cross to other processes."""

from __future__ import annotations

import numpy as np
import torch

from .interface import BufferView


def to_buffer(hidden: torch.Tensor) -> BufferView:
    """[T, W] as bytes in host memory, without a copy where it lies there already."""
    dtype = str(hidden.dtype).removeprefix("torch.")
    host = hidden.contiguous().cpu()
    return BufferView(dtype, tuple(host.shape), host.view(torch.uint8).numpy().data.cast("B"))


def from_buffer(buffer: BufferView, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """A copy as [1, tokens, W] in memory of our own: the sender's ring may be reused at once."""
    width = buffer.shape[1]
    hidden = torch.zeros(1, tokens, width, dtype=dtype)
    target = hidden.view(torch.uint8).numpy().reshape(-1)
    source = np.frombuffer(buffer.data, np.uint8)
    target[: len(source)] = source
    return hidden
