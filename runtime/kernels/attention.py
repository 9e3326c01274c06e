"""Attention over KV pages, straight from the pages: nothing is gathered, padded or masked by a matrix.

Owns the page layout, the step's plan (`plan_attention`) and the kernel (`attend`). Knows no model.

**Page layout.** One layer's pages are float32 ``[blocks, floats_per_page]``; a page is ONE contiguous run of bytes, so it
moves with one memcpy. Inside a page, for each KV head in turn: keys transposed, ``[D][BLOCK_TOKENS]`` (16 scores are one
vector: no sum across lanes, no tail for any D), then values, ``[BLOCK_TOKENS][Dv rounded up to 16]``. `PageLayout` has
the numbers.

**Order of operations.** A token at position p reads positions ``max(0, p - window + 1) .. p`` in spans of 128 positions
that begin at multiples of 128; in each span scores, running maximum, exponentials and the weighted sum of values go in
ascending order of position (online softmax: Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022, Algorithm 1).
That order depends on p and the window alone, so a token's output has the same bits in a prefill chunk of any size, in a
decode step, beside any neighbours. Query heads that share a KV head, and neighbouring tokens of a row, share its loads.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import compiler
from .activations import tanh
from .arrays import Array, KernelInputError, empty_beside, rows_of
from .lanes import (
    LANES,
    LANES_BYTES,
    add,
    div,
    exp,
    keep_between,
    larger,
    load,
    max_lanes,
    mul,
    splat,
    store,
    store_first,
    sub,
    sum_lanes,
)
from .machine import FLOAT_BYTES, load_float, load_int32, load_word, prefetch, store_float
from .threads import pool
from .tile import ROWS_MAX, WIDE_COLUMNS, multiply, multiply_wide

BLOCK_TOKENS = 16
"""Tokens of one page; equals `runtime.interface.BLOCK_TOKENS` and the number of lanes."""

_SPAN_BLOCKS = 8
_SPAN_TOKENS = _SPAN_BLOCKS * BLOCK_TOKENS
_SPAN_BYTES = _SPAN_TOKENS * FLOAT_BYTES
_WIDE_BYTES = WIDE_COLUMNS * FLOAT_BYTES

_TILE_ROWS = 2 * ROWS_MAX
"""Query heads x tokens that go through a KV head's pages together (more if the heads alone are more)."""

NO_WINDOW = 1 << 40
"""A window that no context reaches."""


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
    def floats_per_head(self) -> int:
        """Floats of one KV head in a page."""
        return BLOCK_TOKENS * (self.key_size + self.value_stride)

    @property
    def floats_per_page(self) -> int:
        """Floats of a page; `bytes_per_page` in bytes."""
        return self.kv_heads * self.floats_per_head

    @property
    def bytes_per_page(self) -> int:
        """Bytes of a page."""
        return self.floats_per_page * FLOAT_BYTES


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """A step's work cut into tiles, shared by all its layers that have the same number of query heads a KV head."""

    tokens: int
    group: int
    tile_tokens: int
    tiles: npt.NDArray[np.int32] = field(repr=False)  # [n, 3]: first token, tokens, row
    positions: npt.NDArray[np.int32] = field(repr=False)
    block_tables: npt.NDArray[np.int32] = field(repr=False)
    one_tile_a_row: bool = False
    _addresses: tuple[int, int, int] = (0, 0, 0)


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
        tile_tokens=tile_tokens,
        tiles=tiles,
        positions=positions,
        block_tables=block_tables,
        one_tile_a_row=bool((tiles_per_row <= 1).all()),
        _addresses=(int(tiles.ctypes.data), int(positions.ctypes.data), int(block_tables.ctypes.data)),
    )


# Arguments of the tasks, as words (the two floats are kept as their bits).
(
    _Q, _Q_BYTES, _K, _K_BYTES, _V, _V_BYTES, _OUT, _OUT_BYTES, _PAGES, _TILES, _POSITIONS, _TABLES, _TABLE_BYTES,
    _KV_HEADS, _GROUP, _KEY_SIZE, _VALUE_SIZE, _WINDOW, _FLOATS, _WRITES, _SCRATCH, _SCRATCH_BYTES,
) = range(22)  # fmt: skip

_MINUS_INFINITY = np.float32(-np.inf)
_ZERO = np.float32(0.0)


@compiler.inlined
def _argument(arguments: int, index: int) -> int:
    return load_word(arguments + 8 * index)


@compiler.inlined
def _padded(size: int) -> int:
    return (size + LANES - 1) // LANES * LANES


@compiler.inlined
def _page(arguments: int, row: int, block: int, kv_head: int) -> int:
    """Address of a KV head's part of the page that holds a row's block."""
    table = _argument(arguments, _TABLES) + row * _argument(arguments, _TABLE_BYTES)
    head_floats = BLOCK_TOKENS * (_argument(arguments, _KEY_SIZE) + _padded(_argument(arguments, _VALUE_SIZE)))
    page = load_int32(table + block * 4) * _argument(arguments, _KV_HEADS) + kv_head
    return _argument(arguments, _PAGES) + page * head_floats * FLOAT_BYTES


@compiler.inlined
def _write_tokens(arguments: int, first: int, count: int, row: int, kv_head: int) -> None:
    """Store keys and values of a tile's tokens in their pages."""
    key_size, value_size = _argument(arguments, _KEY_SIZE), _argument(arguments, _VALUE_SIZE)
    for token in range(first, first + count):
        position = load_int32(_argument(arguments, _POSITIONS) + token * 4)
        page = _page(arguments, row, position // BLOCK_TOKENS, kv_head)
        slot = position % BLOCK_TOKENS
        key = _argument(arguments, _K) + token * _argument(arguments, _K_BYTES) + kv_head * key_size * FLOAT_BYTES
        for d in range(key_size):
            store_float(page + d * LANES_BYTES + slot * FLOAT_BYTES, load_float(key + d * FLOAT_BYTES))
        value = _argument(arguments, _V) + token * _argument(arguments, _V_BYTES) + kv_head * value_size * FLOAT_BYTES
        target = page + key_size * LANES_BYTES + slot * _padded(value_size) * FLOAT_BYTES
        for d in range(value_size):
            store_float(target + d * FLOAT_BYTES, load_float(value + d * FLOAT_BYTES))


@compiler.task
def _write_tile(arguments: int, chunk: int, _thread: int) -> None:
    tile = _argument(arguments, _TILES) + chunk // _argument(arguments, _KV_HEADS) * 12
    kv_head = chunk % _argument(arguments, _KV_HEADS)
    _write_tokens(arguments, load_int32(tile), load_int32(tile + 4), load_int32(tile + 8), kv_head)


@compiler.inlined
def _scale_queries(arguments: int, first: int, count: int, kv_head: int, target: int) -> None:
    """Copy a tile's queries, times the scale, to dense rows: row = token x group + head."""
    key_size, group = _argument(arguments, _KEY_SIZE), _argument(arguments, _GROUP)
    scale = load_float(arguments + 8 * _FLOATS)
    for token in range(count):
        source = _argument(arguments, _Q) + (first + token) * _argument(arguments, _Q_BYTES)
        source += kv_head * group * key_size * FLOAT_BYTES
        for d in range(group * key_size):
            value = load_float(source + d * FLOAT_BYTES) * scale
            store_float(target + (token * group * key_size + d) * FLOAT_BYTES, value)


@compiler.inlined
def _prefetch(address: int, size: int) -> None:
    for line in range(address, address + size, LANES_BYTES):
        prefetch(line)


@compiler.inlined
def _score_block(key_size: int, rows: int, queries: int, page: int, scores: int) -> None:
    """Scores of all rows of a tile against one page's 16 keys."""
    for start in range(0, rows, ROWS_MAX):
        multiply(
            min(ROWS_MAX, rows - start), queries + start * key_size * FLOAT_BYTES, key_size * FLOAT_BYTES,
            page, LANES_BYTES, scores + start * _SPAN_BYTES, _SPAN_BYTES, key_size, 1,
        )  # fmt: skip


@compiler.inlined
def _weigh_values(rows: int, weights: int, values: int, value_bytes: int, k_count: int, sums: int) -> None:
    """Add ``k_count`` tokens' values, times their weights, to the sums of some rows."""
    for start in range(0, rows, ROWS_MAX):
        count, a, c = min(ROWS_MAX, rows - start), weights + start * _SPAN_BYTES, sums + start * value_bytes
        wide_bytes = value_bytes // _WIDE_BYTES * _WIDE_BYTES
        for column in range(0, wide_bytes, _WIDE_BYTES):
            multiply_wide(count, a, _SPAN_BYTES, values + column, value_bytes, c + column, value_bytes, k_count, 0)
        for column in range(wide_bytes, value_bytes, LANES_BYTES):
            multiply(count, a, _SPAN_BYTES, values + column, value_bytes, c + column, value_bytes, k_count, 0)


@compiler.inlined
def _soften_row(
    scores: int, low: int, high: int, softcap: Any, maximum: int, total: int, sums: int, width: int
) -> None:
    """Turn a row's scores of one span, positions [low, high) in it, into weights, and rescale what was summed so far."""
    first, end = low // LANES, (high + LANES - 1) // LANES
    highest = splat(_MINUS_INFINITY)
    for block in range(first, end):
        place = scores + block * LANES_BYTES
        score = load(place)
        if softcap > _ZERO:
            score = mul(splat(softcap), tanh(div(score, splat(softcap))))
        score = keep_between(score, low - block * LANES, high - block * LANES)
        store(place, score)
        highest = larger(highest, score)
    before = load_float(maximum)
    now = max(before, max_lanes(highest))
    if now > before:
        shrink = exp(splat(before - now))
        store_float(maximum, now)
        store(total, mul(load(total), shrink))
        for column in range(0, width, LANES_BYTES):
            store(sums + column, mul(load(sums + column), shrink))
    weight_sum = load(total)
    for block in range(first, end):
        weight = exp(sub(load(scores + block * LANES_BYTES), splat(now)))
        store(scores + block * LANES_BYTES, weight)
        weight_sum = add(weight_sum, weight)
    store(total, weight_sum)


@compiler.inlined
def _weigh_block(arguments: int, first: int, count: int, block: int, values: int, weights: int, sums: int) -> None:
    """Add one page's values: to all rows at once where all see all of it, else token by token, each what it sees."""
    group, window = _argument(arguments, _GROUP), _argument(arguments, _WINDOW)
    value_bytes = _padded(_argument(arguments, _VALUE_SIZE)) * FLOAT_BYTES
    start = block * BLOCK_TOKENS
    positions = _argument(arguments, _POSITIONS) + first * 4
    if start + BLOCK_TOKENS - 1 <= load_int32(positions) and start > load_int32(positions + (count - 1) * 4) - window:
        _weigh_values(count * group, weights, values, value_bytes, BLOCK_TOKENS, sums)
        return
    for token in range(count):
        position = load_int32(positions + token * 4)
        low = max(0, position - window + 1 - start)
        high = min(BLOCK_TOKENS, position + 1 - start)
        if high > low:
            _weigh_values(
                group, weights + token * group * _SPAN_BYTES + low * FLOAT_BYTES, values + low * value_bytes, value_bytes,
                high - low, sums + token * group * value_bytes,
            )  # fmt: skip


@compiler.inlined
def _attend_span(arguments: int, first: int, count: int, row: int, kv_head: int, span: int, places: Any) -> None:
    """One span of 128 positions for one tile and KV head. ``places``: queries, scores, sums, totals, maxima."""
    queries, scores, sums, totals, maxima = places
    key_size, group = _argument(arguments, _KEY_SIZE), _argument(arguments, _GROUP)
    window = _argument(arguments, _WINDOW)
    width = _padded(_argument(arguments, _VALUE_SIZE)) * FLOAT_BYTES
    softcap = load_float(arguments + 8 * _FLOATS + 4)
    positions = _argument(arguments, _POSITIONS) + first * 4
    first_block = max(span * _SPAN_BLOCKS, max(0, load_int32(positions) - window + 1) // BLOCK_TOKENS)
    last_block = load_int32(positions + (count - 1) * 4) // BLOCK_TOKENS
    end_block = min((span + 1) * _SPAN_BLOCKS, last_block + 1)
    for block in range(first_block, end_block):
        page = _page(arguments, row, block, kv_head)
        if count == 1:  # a decode step reads each page once, from memory: fetch the next while this one is scored
            ahead = min(block + 1, last_block)
            _prefetch(_page(arguments, row, ahead, kv_head), BLOCK_TOKENS * (key_size * FLOAT_BYTES + width))
        _score_block(key_size, count * group, queries, page, scores + (block - span * _SPAN_BLOCKS) * LANES_BYTES)
    for token in range(count):
        position = load_int32(positions + token * 4)
        low = max(0, max(0, position - window + 1) - span * _SPAN_TOKENS)
        high = min(_SPAN_TOKENS, position + 1 - span * _SPAN_TOKENS)
        if high > low:
            for index in range(token * group, (token + 1) * group):
                _soften_row(
                    scores + index * _SPAN_BYTES, low, high, softcap, maxima + index * FLOAT_BYTES,
                    totals + index * LANES_BYTES, sums + index * width, width,
                )  # fmt: skip
    for block in range(first_block, end_block):
        values = _page(arguments, row, block, kv_head) + key_size * LANES_BYTES
        weights = scores + (block - span * _SPAN_BLOCKS) * LANES_BYTES
        _weigh_block(arguments, first, count, block, values, weights, sums)


@compiler.task
def _attend_tile(arguments: int, chunk: int, thread: int) -> None:
    """All of one tile's attention through one KV head."""
    tile = _argument(arguments, _TILES) + chunk // _argument(arguments, _KV_HEADS) * 12
    kv_head = chunk % _argument(arguments, _KV_HEADS)
    first, count, row = load_int32(tile), load_int32(tile + 4), load_int32(tile + 8)
    if _argument(arguments, _WRITES) != 0:
        _write_tokens(arguments, first, count, row, kv_head)
    group, value_size = _argument(arguments, _GROUP), _argument(arguments, _VALUE_SIZE)
    rows, width = count * group, _padded(value_size) * FLOAT_BYTES
    scores = _argument(arguments, _SCRATCH) + thread * _argument(arguments, _SCRATCH_BYTES)
    totals = scores + rows * _SPAN_BYTES
    sums = totals + rows * LANES_BYTES
    maxima = sums + rows * width
    queries = maxima + rows * FLOAT_BYTES
    _scale_queries(arguments, first, count, kv_head, queries)
    for place in range(totals, maxima, LANES_BYTES):
        store(place, splat(_ZERO))
    for index in range(rows):
        store_float(maxima + index * FLOAT_BYTES, _MINUS_INFINITY)
    positions = _argument(arguments, _POSITIONS) + first * 4
    first_span = max(0, load_int32(positions) - _argument(arguments, _WINDOW) + 1) // _SPAN_TOKENS
    end_span = load_int32(positions + (count - 1) * 4) // _SPAN_TOKENS + 1
    for span in range(first_span, end_span):
        _attend_span(arguments, first, count, row, kv_head, span, (queries, scores, sums, totals, maxima))
    for index in range(rows):
        out = _argument(arguments, _OUT) + (first + index // group) * _argument(arguments, _OUT_BYTES)
        out += (kv_head * group + index % group) * value_size * FLOAT_BYTES
        total = splat(sum_lanes(load(totals + index * LANES_BYTES)))
        for column in range(0, value_size, LANES):
            result = div(load(sums + index * width + column * FLOAT_BYTES), total)
            store_first(out + column * FLOAT_BYTES, result, min(LANES, value_size - column))


_ARGUMENTS = struct.Struct("18q2f3q")  # the words above; scale and softcap share one


def attend(
    q: Array,
    k: Array,
    v: Array,
    pages: Array,
    layout: PageLayout,
    plan: AttentionPlan,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
    out: Array | None = None,
) -> Array:
    """Write the step's keys and values into their pages, then attend: ``out`` [T, H, Dv].

    Args:
        q: [T, H, D]; tokens may be apart (slices of one merged projection), here and below.
        k: [T, KVH, D].
        v: [T, KVH, Dv].
        pages: [blocks, floats_per_page] of this layer, written in place.
        layout: the pages' sizes.
        plan: this step's, made for H / KVH query heads a KV head.
        scale: factor on q . k.
        window: positions a token sees, itself included; None for all.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 for none.
        out: where to write, [T, H, Dv]; a new array if not given.

    Raises KernelInputError where shapes do not fit the layout and the plan.
    """
    tokens, heads, value_size = plan.tokens, plan.group * layout.kv_heads, layout.value_size
    if tuple(q.shape) != (tokens, heads, layout.key_size) or tuple(k.shape[1:]) != (layout.kv_heads, layout.key_size):
        raise KernelInputError(f"q {tuple(q.shape)} and k {tuple(k.shape)} do not fit {layout} with {tokens} tokens")
    if out is None:
        out = empty_beside(q, (tokens, heads, value_size))
    rows = plan.tile_tokens * plan.group
    width = layout.value_stride * FLOAT_BYTES
    scratch_bytes = rows * (_SPAN_BYTES + LANES_BYTES + width + FLOAT_BYTES + layout.key_size * FLOAT_BYTES)
    scratch_bytes = -(-scratch_bytes // 128) * 128
    tiles, positions, tables = plan._addresses  # noqa: SLF001 - the plan is this module's
    chunks = len(plan.tiles) * layout.kv_heads
    with pool.lock:
        arguments = pool.workspace("attention arguments", _ARGUMENTS.size)
        _ARGUMENTS.pack_into(
            arguments.memory, 0,
            *_token_rows(q, tokens), *_token_rows(k, tokens), *_token_rows(v, tokens), *_token_rows(out, tokens),
            rows_of(pages)[0], tiles, positions, tables, plan.block_tables.strides[0], layout.kv_heads, plan.group,
            layout.key_size, value_size, NO_WINDOW if window is None else window, scale, softcap,
            plan.one_tile_a_row, pool.workspace("attention", scratch_bytes * pool.threads).address, scratch_bytes,
        )  # fmt: skip
        if not plan.one_tile_a_row:  # a tile reads what the tiles before it wrote
            pool.run(_write_tile, arguments.address, chunks)
        pool.run(_attend_tile, arguments.address, chunks)
    return out


def _token_rows(array: Array, tokens: int) -> tuple[int, int]:
    """(address, bytes between tokens) of an array of ``tokens`` rows."""
    address, rows, row_bytes = rows_of(array)
    if rows != tokens:
        raise KernelInputError(f"an array of {rows} tokens met a plan of {tokens}")
    return address, row_bytes
