"""The KV pages of the layers that one worker holds. Knows no scheduler: which block belongs to whom is others' business.

A page is one layer's keys and values of one block of 16 tokens (`interface.BLOCK_TOKENS`). All pages of a layer lie in
one array, each page in one contiguous run of bytes, so that a page changes its home with a single copy. How keys and
values lie inside a page is the backend's business; stages that exchange pages must run the same backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from .device_memory import free_bytes
from .interface import EngineError, Int32Array, OutOfMemoryError
from .program import AttentionLayer


class KvLayer:
    """One layer's pages: ``pages`` is [blocks, page elements].

    The object stays when its pages are resized: lowered atoms hold on to it.
    """

    __slots__ = ("geometry", "page_elements", "pages")

    def __init__(self, geometry: AttentionLayer, page_elements: int) -> None:
        self.geometry = geometry
        self.page_elements = page_elements
        self.pages = torch.empty(0, page_elements)

    def resize(self, blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        """Hold at least ``blocks`` pages; those that exist keep their content, new ones are zero."""
        before = self.pages
        if blocks <= len(before):
            return
        pages = _zeros(blocks, self.page_elements, dtype, device)
        kept = min(blocks, len(before))
        pages[:kept] = before[:kept]
        self.pages = pages


class KvPages:
    """The pages of the layers that this worker holds. Block ids 0 .. ``blocks`` - 1 are valid in every one of them."""

    def __init__(
        self,
        attention: Iterable[AttentionLayer],
        page_elements: Callable[[AttentionLayer], int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layers: dict[int, KvLayer] = {}
        self.blocks = 0
        self._geometries = {geometry.layer: geometry for geometry in attention}
        self._page_elements = page_elements
        self._dtype = dtype
        self._device = device

    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block takes over all layers that are here."""
        return sum(layer.page_elements for layer in self.layers.values()) * self._dtype.itemsize

    def layer(self, layer: int) -> KvLayer:
        """The pages of ``layer``, none yet where it is new here."""
        if layer not in self.layers:
            geometry = self._geometries[layer]
            self.layers = self.layers | {layer: KvLayer(geometry, self._page_elements(geometry))}
        return self.layers[layer]

    def page_bytes(self, layer: int) -> int:
        """Bytes of one page of ``layer``."""
        return self._page_elements(self._geometries[layer]) * self._dtype.itemsize

    def reserve(self, blocks: int) -> None:
        """Have ``blocks`` pages at least in every layer, keeping content. Raises `OutOfMemoryError` before anything changed.

        Fewer than before free nothing: steps of the epoch before may still name the others, and pages go with their layer.
        """
        if blocks < 0:
            raise EngineError(f"A worker cannot hold {blocks} KV blocks; ask for 0 or more")
        lacking = (max(0, blocks - len(layer.pages)) * layer.page_elements for layer in self.layers.values())
        needed = sum(lacking) * self._dtype.itemsize
        free = free_bytes(self._device)
        if needed > free:
            raise OutOfMemoryError(
                f"{blocks} KV blocks of {self.bytes_per_block} bytes need {needed} bytes more, {self._device} has {free} free; "
                "ask for fewer blocks or give the stage fewer layers"
            )
        for layer in self.layers.values():
            layer.resize(blocks, self._dtype, self._device)
        self.blocks = max(self.blocks, blocks)

    def drop(self, keep: Iterable[int]) -> int:
        """Let go of the pages of every layer that is not in ``keep``; the bytes that were reserved for them."""
        kept = set(keep)
        gone = [layer for number, layer in self.layers.items() if number not in kept]
        self.layers = {number: layer for number, layer in self.layers.items() if number in kept}
        return sum(layer.pages.nbytes for layer in gone)

    def gather(self, layer: int, blocks: Int32Array, out: memoryview) -> None:
        """Copy pages into ``out``, one after another. Without the GIL, so that a step goes on beside it."""
        rows = self._rows(layer, blocks, out)
        if isinstance(rows, np.ndarray):
            np.take(rows, blocks, axis=0, out=np.frombuffer(out, np.uint8).reshape(len(blocks), -1), mode="clip")
        else:
            found = rows[torch.from_numpy(blocks.astype(np.int64)).to(self._device)].cpu()
            out[:] = found.view(torch.uint8).numpy().data.cast("B")

    def scatter(self, layer: int, blocks: Int32Array, data: memoryview) -> None:
        """Put pages that lie in ``data`` one after another in the places of ``blocks``."""
        rows = self._rows(layer, blocks, data)
        pages = np.frombuffer(data, np.uint8).reshape(len(blocks), -1)
        if isinstance(rows, np.ndarray):
            rows[blocks] = pages
        else:
            values = torch.from_numpy(pages.copy()).view(self._dtype).to(self._device)
            rows[torch.from_numpy(blocks.astype(np.int64)).to(self._device)] = values

    def _rows(self, layer: int, blocks: Int32Array, data: memoryview) -> np.ndarray[Any, Any] | torch.Tensor:
        """The pages of a layer, a row each: bytes in host memory, elements elsewhere. Raises `EngineError`."""
        if layer not in self.layers:
            raise EngineError(f"This worker does not hold layer {layer}; it holds {sorted(self.layers)}")
        if len(blocks) == 0 or not 0 <= blocks.min() <= blocks.max() < self.blocks:
            raise EngineError(f"KV blocks {blocks.tolist()[:8]} are not all among the {self.blocks} reserved ones")
        if data.nbytes != len(blocks) * self.page_bytes(layer):
            raise EngineError(f"{len(blocks)} pages of {self.page_bytes(layer)} bytes do not fit {data.nbytes} bytes")
        pages = self.layers[layer].pages
        if self._device.type != "cpu":
            return pages
        rows: np.ndarray[Any, Any] = pages.view(torch.uint8).numpy()
        return rows


def _zeros(blocks: int, elements: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeroed pages. On the host they take physical memory only as they are first written: most of a pool is never used."""
    if device.type != "cpu":
        return torch.zeros(blocks, elements, dtype=dtype, device=device)
    from .kernels.memory import allocate

    size = blocks * elements * dtype.itemsize
    return torch.from_numpy(allocate(-(-size // 4))).view(torch.uint8)[:size].view(dtype).view(blocks, elements)
