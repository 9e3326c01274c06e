"""Where a token's keys and values lie, and how a step's attention is cut into tiles.

Owns the page layout and the plan that all layers of a step share. Knows no kernel.

**Page layout.** One layer's pages are float32 ``[blocks, floats_per_page]``; a page is ONE contiguous run of bytes, so it
moves with one memcpy. Inside a page: keys of every KV head, transposed, ``[KVH][D][BLOCK_TOKENS]`` (16 scores are one
vector: no sum across lanes, no tail for any D), then values, ``[KVH][BLOCK_TOKENS][Dv rounded up to 16]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .arrays import KernelInputError
from .lanes import LANES
from .machine import FLOAT_BYTES
from .tile import ROWS_MAX

BLOCK_TOKENS = 16
"""Tokens of one page; equals `runtime.interface.BLOCK_TOKENS` and the number of lanes."""

_TILE_ROWS = 2 * ROWS_MAX
"""Query heads x tokens that go through a KV head's pages together (more if the heads alone are more)."""


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Sizes of one layer's pages: ``key_size`` is D, ``value_size`` Dv, in floats."""

    kv_heads: int
    key_size: int
    value_size: int

    @property
    def value_stride(self) -> int:
        """Floats from one token's values to the next: Dv rounded up to whole vectors."""
        return -(-self.value_size // LANES) * LANES

    @property
    def floats_per_page(self) -> int:
        """Floats of a page; `bytes_per_page` in bytes."""
        return self.kv_heads * BLOCK_TOKENS * (self.key_size + self.value_stride)

    @property
    def bytes_per_page(self) -> int:
        """Bytes of a page."""
        return self.floats_per_page * FLOAT_BYTES


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """A step's work cut into tiles, shared by all its layers that have the same number of query heads a KV head."""

    tokens: int
    group: int
    tile_tokens: int  # of the largest tile
    tiles: npt.NDArray[np.int32] = field(repr=False)  # [n, 3]: first token, tokens, row
    positions: npt.NDArray[np.int32] = field(repr=False)
    block_tables: npt.NDArray[np.int32] = field(repr=False)
    one_tile_a_row: bool = False
    addresses: tuple[int, int, int] = (0, 0, 0)  # of the three arrays


def plan_attention(
    positions: npt.NDArray[np.int32],
    row_starts: npt.NDArray[np.int32],
    block_tables: npt.NDArray[np.int32],
    group: int,
) -> AttentionPlan:
    """Cut a ragged batch (see `RaggedBatch`) into tiles for layers with ``group`` query heads a KV head.

    Positions ascend by one within a row. Raises KernelInputError where a token has no block.
    """
    positions, row_starts, block_tables = (
        np.ascontiguousarray(array, np.int32) for array in (positions, row_starts, block_tables)
    )
    tile_tokens = max(1, _TILE_ROWS // group)
    counts = np.diff(row_starts)
    tiles_per_row = -(-counts // tile_tokens)
    rows = np.repeat(np.arange(len(counts)), tiles_per_row)
    index_in_row = np.arange(len(rows)) - np.repeat(np.cumsum(tiles_per_row) - tiles_per_row, tiles_per_row)
    first = row_starts[rows] + index_in_row * tile_tokens
    size = np.minimum(tile_tokens, row_starts[rows + 1] - first)
    last_block = positions[first + size - 1] // BLOCK_TOKENS
    if len(rows) and (last_block.max() >= block_tables.shape[1] or block_tables[rows, last_block].min() < 0):
        raise KernelInputError("a token lies beyond its row's block table: give every row blocks for all its positions")
    tiles = np.ascontiguousarray(np.stack([first, size, rows], axis=1), np.int32)
    return AttentionPlan(
        tokens=len(positions),
        group=group,
        tile_tokens=int(size.max(initial=1)),
        tiles=tiles,
        positions=positions,
        block_tables=block_tables,
        one_tile_a_row=bool((tiles_per_row <= 1).all()),
        addresses=(
            int(tiles.ctypes.data),
            int(positions.ctypes.data),
            int(block_tables.ctypes.data),
        ),
    )
