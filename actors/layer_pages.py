"""Which KV pages lie one after another in a run of bytes: for each of some layers, the pages of some blocks.

One run carries many layers, because a message and two changes of thread for each cost more than copying a layer's few pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from ..runtime.interface import Int32Array


class LayerPages(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Pages of ``blocks`` (int32, ascending) of one layer, ``page_bytes`` each; ``filled`` (uint8): the tokens of each block."""

    layer: int
    page_bytes: int
    blocks: bytes
    filled: bytes

    @property
    def block_numbers(self) -> Int32Array:
        """The whole int32 in ``blocks``: a peer may have sent any bytes."""
        return np.frombuffer(self.blocks[: len(self.blocks) // 4 * 4], np.int32)

    @property
    def size(self) -> int:
        """Bytes of these pages; 0 where a peer gave pages of less than nothing."""
        return max(0, self.page_bytes) * (len(self.blocks) // 4)


def size_of(pages: Iterable[LayerPages]) -> int:
    """Bytes of all of them."""
    return sum(part.size for part in pages)


def parts_of(pages: Iterable[LayerPages], data: memoryview) -> Iterator[tuple[LayerPages, memoryview]]:
    """Each layer's pages with its bytes in ``data``, whose length is `size_of` them."""
    begin = 0
    for part in pages:
        yield part, data[begin : begin + part.size]
        begin += part.size
