"""The KV pages of the layers that one stage owns. Knows no scheduler: which block belongs to whom is others' business.

A page is one layer's keys and values of one block of 16 tokens (`interface.BLOCK_TOKENS`). All pages of a layer lie in
one array, each page in one contiguous run of bytes, so that a page changes its home with a single copy. How keys and
values lie inside a page is the backend's business; stages that exchange pages must run the same backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from .device_memory import free_bytes
from .interface import EngineError, OutOfMemoryError
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
        """Hold ``blocks`` pages; those that exist before and after keep their content, new ones are zero."""
        before = self.pages
        pages = _zeros(blocks, self.page_elements, dtype, device)
        kept = min(blocks, len(before))
        pages[:kept] = before[:kept]
        self.pages = pages


class KvPages:
    """All pages of a stage. Block ids 0 .. ``blocks`` - 1 are valid in every layer."""

    def __init__(
        self,
        layers: Iterable[AttentionLayer],
        page_elements: Callable[[AttentionLayer], int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layers = {geometry.layer: KvLayer(geometry, page_elements(geometry)) for geometry in layers}
        self.blocks = 0
        self._dtype = dtype
        self._device = device

    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block takes over all layers of the stage."""
        return sum(layer.page_elements for layer in self.layers.values()) * self._dtype.itemsize

    def reserve(self, blocks: int) -> None:
        """Resize every layer to ``blocks`` pages, keeping content. Raises `OutOfMemoryError` before anything changed."""
        if blocks < 0:
            raise EngineError(f"A stage cannot hold {blocks} KV blocks; ask for 0 or more")
        needed = (blocks - self.blocks) * self.bytes_per_block
        free = free_bytes(self._device)
        if needed > free:
            raise OutOfMemoryError(
                f"{blocks} KV blocks of {self.bytes_per_block} bytes need {needed} bytes more, {self._device} has {free} free; "
                "ask for fewer blocks or give the stage fewer layers"
            )
        for layer in self.layers.values():
            layer.resize(blocks, self._dtype, self._device)
        self.blocks = blocks

    def page_view(self, layer: int, block: int) -> memoryview:
        """The bytes of one page, writable and without a copy; valid until the next `reserve`. Host memory only."""
        if layer not in self.layers:
            raise EngineError(f"This stage does not own layer {layer}; it owns {sorted(self.layers)}")
        if not 0 <= block < self.blocks:
            raise EngineError(f"KV block {block} is not among the {self.blocks} reserved ones")
        if self._device.type != "cpu":
            raise EngineError(f"The pages of a stage on {self._device} have no host memory to look at")
        view: memoryview = self.layers[layer].pages[block].view(torch.uint8).numpy().data
        return view


def _zeros(blocks: int, elements: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeroed pages. On the host they take physical memory only as they are first written: most of a pool is never used."""
    if device.type != "cpu":
        return torch.zeros(blocks, elements, dtype=dtype, device=device)
    from .kernels.memory import allocate

    size = blocks * elements * dtype.itemsize
    return torch.from_numpy(allocate(-(-size // 4))).view(torch.uint8)[:size].view(dtype).view(blocks, elements)
