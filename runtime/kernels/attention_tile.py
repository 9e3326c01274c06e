"""One tile's attention: some neighbouring tokens of a row, through some KV heads, straight from the pages.

Owns the tasks of `attention.attend` and their arguments: nothing is gathered, padded or masked by a matrix. The order of
operations is described there.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from . import compiler
from .activations import tanh
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
from .paging import BLOCK_TOKENS
from .tile import ROWS_MAX, WIDE_COLUMNS, multiply, multiply_wide

_SPAN_BLOCKS = 8
_SPAN_TOKENS = _SPAN_BLOCKS * BLOCK_TOKENS
SPAN_BYTES = _SPAN_TOKENS * FLOAT_BYTES
"""One row's scores of a span of 128 positions."""

_WIDE_BYTES = WIDE_COLUMNS * FLOAT_BYTES

# Arguments of the tasks, as words (the two floats are kept as their bits).
(
    _Q, _Q_BYTES, _K, _K_BYTES, _V, _V_BYTES, _OUT, _OUT_BYTES, _PAGES, _TILES, _POSITIONS, _TABLES, _TABLE_BYTES,
    _KV_HEADS, _GROUP, _KEY_SIZE, _VALUE_SIZE, _WINDOW, _FLOATS, _WRITES, _SCRATCH, _SCRATCH_BYTES,
    _HEADS_PER_CHUNK,
) = range(23)  # fmt: skip

_MINUS_INFINITY = np.float32(-np.inf)
_ZERO = np.float32(0.0)


@compiler.inlined
def _argument(arguments: int, index: int) -> int:
    return load_word(arguments + 8 * index)


class _Tile(NamedTuple):
    """What a chunk works on, and where its thread keeps what. Rows are KV head x token x query head of the group."""

    arguments: int
    first: int  # token
    tokens: int
    row: int  # of the block tables
    first_head: int
    heads: int  # KV heads
    group: int
    key_size: int
    value_size: int
    value_bytes: int  # from one token's values to the next
    window: int
    positions: int  # address of the first token's position
    queries: int  # [rows][key_size]
    scores: int  # [rows][128]
    sums: int  # [rows][value_bytes]
    totals: int  # [rows][16]
    maxima: int  # [rows]


@compiler.inlined
def _tile_of(arguments: int, chunk: int, thread: int) -> _Tile:
    """The tile and KV heads of a chunk, with its thread's scratch memory divided."""
    heads = _argument(arguments, _HEADS_PER_CHUNK)
    head_groups = (_argument(arguments, _KV_HEADS) + heads - 1) // heads
    first_head = chunk % head_groups * heads
    heads = min(heads, _argument(arguments, _KV_HEADS) - first_head)
    entry = _argument(arguments, _TILES) + chunk // head_groups * 12
    first, count = int(load_int32(entry)), int(load_int32(entry + 4))
    value_bytes = (_argument(arguments, _VALUE_SIZE) + LANES - 1) // LANES * LANES_BYTES
    rows = heads * count * _argument(arguments, _GROUP)
    scores = _argument(arguments, _SCRATCH) + thread * _argument(arguments, _SCRATCH_BYTES)
    totals = scores + rows * SPAN_BYTES
    sums = totals + rows * LANES_BYTES
    maxima = sums + rows * value_bytes
    return _Tile(
        arguments, first, count, int(load_int32(entry + 8)), first_head, heads, _argument(arguments, _GROUP),
        _argument(arguments, _KEY_SIZE), _argument(arguments, _VALUE_SIZE), value_bytes, _argument(arguments, _WINDOW),
        _argument(arguments, _POSITIONS) + first * 4, maxima + rows * FLOAT_BYTES, scores, sums, totals, maxima,
    )  # fmt: skip


@compiler.inlined
def _position(tile: _Tile, token: int) -> int:
    return int(load_int32(tile.positions + token * 4))


@compiler.inlined
def _keys(tile: _Tile, block: int) -> int:
    """Address of the first head's keys in the page that holds a block of the tile's row."""
    arguments = tile.arguments
    table = _argument(arguments, _TABLES) + tile.row * _argument(arguments, _TABLE_BYTES)
    page_bytes = _argument(arguments, _KV_HEADS) * BLOCK_TOKENS * (tile.key_size * FLOAT_BYTES + tile.value_bytes)
    page = _argument(arguments, _PAGES) + load_int32(table + block * 4) * page_bytes
    return page + tile.first_head * tile.key_size * LANES_BYTES


@compiler.inlined
def _values(tile: _Tile, block: int) -> int:
    """Address of the first head's values in the page that holds a block of the tile's row."""
    keys_left = _argument(tile.arguments, _KV_HEADS) - tile.first_head
    return (
        _keys(tile, block) + keys_left * tile.key_size * LANES_BYTES + tile.first_head * BLOCK_TOKENS * tile.value_bytes
    )


@compiler.inlined
def _write_tokens(tile: _Tile) -> None:
    """Store keys and values of the tile's tokens in their pages."""
    arguments = tile.arguments
    for token in range(tile.tokens):
        block, slot = (
            _position(tile, token) // BLOCK_TOKENS,
            _position(tile, token) % BLOCK_TOKENS,
        )
        place = _keys(tile, block) + slot * FLOAT_BYTES
        key = _argument(arguments, _K) + (tile.first + token) * _argument(arguments, _K_BYTES)
        key += tile.first_head * tile.key_size * FLOAT_BYTES
        for index in range(tile.heads * tile.key_size):
            store_float(place + index * LANES_BYTES, load_float(key + index * FLOAT_BYTES))
        value = _argument(arguments, _V) + (tile.first + token) * _argument(arguments, _V_BYTES)
        value += tile.first_head * tile.value_size * FLOAT_BYTES
        for head in range(tile.heads):
            place = _values(tile, block) + (head * BLOCK_TOKENS + slot) * tile.value_bytes
            for index in range(tile.value_size):
                store_float(place + index * FLOAT_BYTES, load_float(value + index * FLOAT_BYTES))
            value += tile.value_size * FLOAT_BYTES


@compiler.task
def write_tile(arguments: int, chunk: int, thread: int) -> None:
    """Store one tile's keys and values in their pages."""
    _write_tokens(_tile_of(arguments, chunk, thread))


@compiler.inlined
def _scale_queries(tile: _Tile) -> None:
    """Copy the tile's queries, times the scale, to dense rows."""
    scale = load_float(tile.arguments + 8 * _FLOATS)
    token_floats = tile.group * tile.key_size
    target = tile.queries
    for head in range(tile.first_head, tile.first_head + tile.heads):
        for token in range(tile.first, tile.first + tile.tokens):
            source = _argument(tile.arguments, _Q) + token * _argument(tile.arguments, _Q_BYTES)
            source += head * token_floats * FLOAT_BYTES
            for index in range(token_floats):
                store_float(
                    target + index * FLOAT_BYTES,
                    load_float(source + index * FLOAT_BYTES) * scale,
                )
            target += token_floats * FLOAT_BYTES


@compiler.inlined
def _prefetch(address: int, size: int) -> None:
    for line in range(address, address + size, LANES_BYTES):
        prefetch(line)


@compiler.inlined
def _score_block(key_size: int, rows: int, queries: int, page: int, scores: int, ahead: int) -> None:
    """Scores of all rows of a tile against one page's 16 keys. The next page lies ``ahead`` bytes on."""
    for start in range(0, rows, ROWS_MAX):
        multiply(
            min(ROWS_MAX, rows - start), queries + start * key_size * FLOAT_BYTES, key_size * FLOAT_BYTES,
            page, LANES_BYTES, scores + start * SPAN_BYTES, SPAN_BYTES, key_size, 1, ahead,
        )  # fmt: skip


@compiler.inlined
def _weigh_values(
    rows: int,
    weights: int,
    values: int,
    value_bytes: int,
    k_count: int,
    sums: int,
    ahead: int,
) -> None:
    """Add ``k_count`` tokens' values, times their weights, to the sums of some rows."""
    for start in range(0, rows, ROWS_MAX):
        count, a, c = (
            min(ROWS_MAX, rows - start),
            weights + start * SPAN_BYTES,
            sums + start * value_bytes,
        )
        wide_bytes = value_bytes // _WIDE_BYTES * _WIDE_BYTES
        for column in range(0, wide_bytes, _WIDE_BYTES):
            b = values + column
            multiply_wide(count, a, SPAN_BYTES, b, value_bytes, c + column, value_bytes, k_count, 0, ahead)
        for column in range(wide_bytes, value_bytes, LANES_BYTES):
            b = values + column
            multiply(count, a, SPAN_BYTES, b, value_bytes, c + column, value_bytes, k_count, 0, ahead)


@compiler.inlined
def _soften_row(
    scores: int,
    low: int,
    high: int,
    softcap: Any,
    maximum: int,
    total: int,
    sums: int,
    width: int,
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
def _score_span(tile: _Tile, first_block: int, end_block: int, scores: int) -> None:
    """Scores of every row against the keys of some blocks, and a look ahead at the next page."""
    rows = tile.tokens * tile.group
    last_block = _position(tile, tile.tokens - 1) // BLOCK_TOKENS
    for block in range(first_block, end_block):
        keys = _keys(tile, block)
        ahead = _keys(tile, min(block + 1, last_block)) - keys
        for head in range(tile.heads):
            _score_block(
                tile.key_size, rows, tile.queries + head * rows * tile.key_size * FLOAT_BYTES,
                keys + head * tile.key_size * LANES_BYTES,
                scores + head * rows * SPAN_BYTES + (block - first_block) * LANES_BYTES, ahead,
            )  # fmt: skip


@compiler.inlined
def _soften_span(tile: _Tile, start: int, scores: int) -> None:
    """Scores of a span that begins at position ``start`` to weights, each row over what its token sees."""
    softcap = load_float(tile.arguments + 8 * _FLOATS + 4)
    for head in range(tile.heads):
        for token in range(tile.tokens):
            position = _position(tile, token)
            low, high = (
                max(0, position - tile.window + 1 - start),
                min(_SPAN_TOKENS, position + 1 - start),
            )
            if high > low:
                first_row = (head * tile.tokens + token) * tile.group
                for row in range(first_row, first_row + tile.group):
                    _soften_row(
                        scores + row * SPAN_BYTES, low, high, softcap, tile.maxima + row * FLOAT_BYTES,
                        tile.totals + row * LANES_BYTES, tile.sums + row * tile.value_bytes, tile.value_bytes,
                    )  # fmt: skip


@compiler.inlined
def _weigh_block(tile: _Tile, head: int, block: int, values: int, weights: int, ahead: int) -> None:
    """Add a head's values of a page: to all rows at once where all see all of it, else token by token what each sees."""
    start = block * BLOCK_TOKENS
    first_row = head * tile.tokens * tile.group
    sums = tile.sums + first_row * tile.value_bytes
    weights += first_row * SPAN_BYTES
    last = _position(tile, tile.tokens - 1)
    if start + BLOCK_TOKENS - 1 <= _position(tile, 0) and start > last - tile.window:
        _weigh_values(
            tile.tokens * tile.group,
            weights,
            values,
            tile.value_bytes,
            BLOCK_TOKENS,
            sums,
            ahead,
        )
        return
    for token in range(tile.tokens):
        position = _position(tile, token)
        low, high = (
            max(0, position - tile.window + 1 - start),
            min(BLOCK_TOKENS, position + 1 - start),
        )
        if high > low:
            _weigh_values(
                tile.group, weights + token * tile.group * SPAN_BYTES + low * FLOAT_BYTES,
                values + low * tile.value_bytes, tile.value_bytes, high - low,
                sums + token * tile.group * tile.value_bytes, ahead,
            )  # fmt: skip


@compiler.inlined
def _attend_span(tile: _Tile, span: int) -> None:
    """One span of 128 positions: scores, weights, weighted values."""
    first_block = max(
        span * _SPAN_BLOCKS,
        max(0, _position(tile, 0) - tile.window + 1) // BLOCK_TOKENS,
    )
    last_block = _position(tile, tile.tokens - 1) // BLOCK_TOKENS
    end_block = min((span + 1) * _SPAN_BLOCKS, last_block + 1)
    _score_span(
        tile,
        first_block,
        end_block,
        tile.scores + (first_block - span * _SPAN_BLOCKS) * LANES_BYTES,
    )
    head_bytes = BLOCK_TOKENS * tile.value_bytes
    _prefetch(_values(tile, first_block), tile.heads * head_bytes)
    _soften_span(tile, span * _SPAN_TOKENS, tile.scores)
    for block in range(first_block, end_block):
        values = _values(tile, block)
        ahead = _values(tile, min(block + 1, last_block)) - values
        weights = tile.scores + (block - span * _SPAN_BLOCKS) * LANES_BYTES
        for head in range(tile.heads):
            _weigh_block(tile, head, block, values + head * head_bytes, weights, ahead)


@compiler.inlined
def _finish_rows(tile: _Tile) -> None:
    """Divide the sums of weighted values by the sums of weights and store them."""
    rows_per_head = tile.tokens * tile.group
    for row in range(tile.heads * rows_per_head):
        token, member = row % rows_per_head // tile.group, row % tile.group
        out = _argument(tile.arguments, _OUT) + (tile.first + token) * _argument(tile.arguments, _OUT_BYTES)
        head = (tile.first_head + row // rows_per_head) * tile.group + member
        out += head * tile.value_size * FLOAT_BYTES
        total = splat(sum_lanes(load(tile.totals + row * LANES_BYTES)))
        for column in range(0, tile.value_size, LANES):
            result = div(load(tile.sums + row * tile.value_bytes + column * FLOAT_BYTES), total)
            store_first(out + column * FLOAT_BYTES, result, min(LANES, tile.value_size - column))


@compiler.task
def attend_tile(arguments: int, chunk: int, thread: int) -> None:
    """All of one tile's attention through some KV heads."""
    tile = _tile_of(arguments, chunk, thread)
    if _argument(arguments, _WRITES) != 0:
        _write_tokens(tile)
    _scale_queries(tile)
    for place in range(tile.totals, tile.maxima, LANES_BYTES):  # the totals and the sums
        store(place, splat(_ZERO))
    for row in range(tile.heads * tile.tokens * tile.group):
        store_float(tile.maxima + row * FLOAT_BYTES, _MINUS_INFINITY)
    first_span = max(0, _position(tile, 0) - tile.window + 1) // _SPAN_TOKENS
    for span in range(first_span, _position(tile, tile.tokens - 1) // _SPAN_TOKENS + 1):
        _attend_span(tile, span)
    _finish_rows(tile)


ARGUMENTS = struct.Struct("18q2f4q")
"""The words above; scale and softcap share one."""
