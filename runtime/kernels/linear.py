"""Linear layers with weights packed once: y = activation(x W^T + bias) + residual, in float32.

Owns the packed layout (panels of 32 output columns, [ceil(N/32)][K][32]) and the plan by which threads share the work.
Knows no layer by name.

Batch-invariant: an output's bits depend on its row of x and its column of W alone, not on how many rows there are, where
the row stands or how many threads run (see `tile`). The epilogue works row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from . import compiler
from .activations import ACTIVATIONS, IDENTITY, activate
from .arrays import Array, KernelInputError, empty_beside, rows_of
from .lanes import LANES, LANES_BYTES, add, load, load_first, mul, store, store_first, store_transposed
from .machine import FLOAT_BYTES, load_float, load_word, store_float, store_word
from .memory import Arena
from .threads import Workspace, pool, run_chunks
from .tile import PAIR_COLUMNS, ROWS_MAX, multiply_packed

_CHUNKS_PER_THREAD = 16
"""Pieces of work a thread may draw: enough that one late thread costs little, few enough that each streams long runs."""

_TILES_PER_CHUNK = 16
"""Row tiles one chunk goes through with one pair of panels: their rows of x stay in the second-level cache."""

_RUN = 128
"""Terms that are summed up before they join the total. One run over all of k has about twice the rounding error, enough to miss
2e-4 on SmolLM2's logits; adding the runs up costs 2 % of the arithmetic."""

_PANEL_ROW_BYTES = PAIR_COLUMNS * FLOAT_BYTES

_PREFETCH_BYTES = 8192
"""How far ahead weights are asked for where each is used once. From memory, 8 rows, Zen 4: 21 GB/s without, 25 with."""

_PANEL_AHEAD_BYTES_MAX = 256 << 10
"""A larger panel does not fit a second-level cache beside its successor."""

_SERIAL_WORK = 1 << 16
"""Multiply-adds below which sharing costs more than it saves (about 1 us)."""

_SCRATCH_BYTES = 12 * PAIR_COLUMNS * FLOAT_BYTES  # one tile's sums, a thread

# Arguments of the tasks, as words. Kept in the order in which `_run` takes them.
(
    _X, _ROWS, _X_ROW_BYTES, _K, _WEIGHT, _PAIRS, _N, _OUT, _OUT_ROW_BYTES, _BIAS, _RESIDUAL, _RESIDUAL_ROW_BYTES,
    _ACTIVATION, _GATED, _PACKED, _SCRATCH, _TILES, _PAIRS_PER_CHUNK, _COLUMN_CHUNKS,
) = range(19)  # fmt: skip
_ARGUMENT_BYTES = 19 * 8


@compiler.inlined
def _tile_first(arguments: int, tile: int) -> int:
    """First row of a tile; rows are dealt evenly, so tiles differ by at most one row."""
    rows, tiles = load_word(arguments + 8 * _ROWS), load_word(arguments + 8 * _TILES)
    return tile * (rows // tiles) + min(tile, rows % tiles)


@compiler.task
def _pack_tile(arguments: int, tile: int, _thread: int) -> None:
    """Copy one tile of x from rows to [k][row]."""
    k_count, row_bytes = (
        load_word(arguments + 8 * _K),
        load_word(arguments + 8 * _X_ROW_BYTES),
    )
    first = _tile_first(arguments, tile)
    rows = _tile_first(arguments, tile + 1) - first
    source = load_word(arguments + 8 * _X) + first * row_bytes
    target = load_word(arguments + 8 * _PACKED) + first * k_count * FLOAT_BYTES
    step = rows * FLOAT_BYTES
    for row in range(0, rows // 4 * 4, 4):  # four rows at a time, 16 columns at a time
        place = source + row * row_bytes
        for k in range(0, k_count // LANES * LANES, LANES):
            first_row = place + k * FLOAT_BYTES
            store_transposed(
                target + k * step + row * FLOAT_BYTES, step, load(first_row), load(first_row + row_bytes),
                load(first_row + 2 * row_bytes), load(first_row + 3 * row_bytes),
            )  # fmt: skip
    for row in range(rows):
        for k in range(k_count // LANES * LANES if row < rows // 4 * 4 else 0, k_count):
            store_float(target + k * step + row * FLOAT_BYTES, load_float(source + row * row_bytes + k * FLOAT_BYTES))


@compiler.inlined
def _finish(arguments: int, sums: int, column: int, row: int, kind: int) -> None:
    """Bias, activation, residual and store for up to 16 columns of one row, from ``column`` on."""
    count = min(LANES, load_word(arguments + 8 * _N) - column)
    if count <= 0:
        return
    value = load(sums)
    bias = load_word(arguments + 8 * _BIAS)
    if bias != 0:
        value = add(value, load(bias + column * FLOAT_BYTES))
    if kind != IDENTITY:
        value = activate(kind, value)
    _store_row(arguments, value, column, row, count)


@compiler.inlined
def _store_row(arguments: int, value: Any, column: int, row: int, count: int) -> None:
    residual = load_word(arguments + 8 * _RESIDUAL)
    if residual != 0:
        place = residual + row * load_word(arguments + 8 * _RESIDUAL_ROW_BYTES) + column * FLOAT_BYTES
        value = add(value, load_first(place, count))
    out = load_word(arguments + 8 * _OUT) + row * load_word(arguments + 8 * _OUT_ROW_BYTES) + column * FLOAT_BYTES
    if count == LANES:
        store(out, value)
    else:
        store_first(out, value, count)


@compiler.inlined
def _finish_gated(arguments: int, sums: int, pair: int, row: int, kind: int) -> None:
    """activation(gate) * up for 16 columns of one row: the panel's halves are one of each."""
    column = pair * LANES
    gate, up = load(sums), load(sums + LANES_BYTES)
    bias = load_word(arguments + 8 * _BIAS)
    if bias != 0:
        gate = add(gate, load(bias + pair * PAIR_COLUMNS * FLOAT_BYTES))
        up = add(up, load(bias + pair * PAIR_COLUMNS * FLOAT_BYTES + LANES_BYTES))
    value = mul(activate(kind, gate), up)
    _store_row(
        arguments,
        value,
        column,
        row,
        min(LANES, load_word(arguments + 8 * _N) - column),
    )


@compiler.task
def _multiply_chunk(arguments: int, chunk: int, thread: int) -> None:
    """Some pairs of panels times some tiles of rows."""
    k_count = load_word(arguments + 8 * _K)
    column_chunks, per_chunk = (
        load_word(arguments + 8 * _COLUMN_CHUNKS),
        load_word(arguments + 8 * _PAIRS_PER_CHUNK),
    )
    first_pair = (chunk % column_chunks) * per_chunk
    end_pair = min(first_pair + per_chunk, load_word(arguments + 8 * _PAIRS))
    first_tile = (chunk // column_chunks) * _TILES_PER_CHUNK
    end_tile = min(first_tile + _TILES_PER_CHUNK, load_word(arguments + 8 * _TILES))
    sums = load_word(arguments + 8 * _SCRATCH) + thread * _SCRATCH_BYTES
    packed, weight = (
        load_word(arguments + 8 * _PACKED),
        load_word(arguments + 8 * _WEIGHT),
    )
    kind, gated = (
        load_word(arguments + 8 * _ACTIVATION),
        load_word(arguments + 8 * _GATED),
    )
    panel_bytes, passes = k_count * _PANEL_ROW_BYTES, end_tile - first_tile
    next_panel_ahead = passes > 1 and panel_bytes <= _PANEL_AHEAD_BYTES_MAX
    for pair in range(first_pair, end_pair):
        panel = weight + pair * panel_bytes
        for tile in range(first_tile, end_tile):
            first = _tile_first(arguments, tile)
            rows = _tile_first(arguments, tile + 1) - first
            x = packed + first * k_count * FLOAT_BYTES
            if next_panel_ahead:  # the passes over this panel ask for one part each of the next
                ahead, step = (
                    panel + panel_bytes + (tile - first_tile) * panel_bytes // passes,
                    _PANEL_ROW_BYTES // passes,
                )
            else:
                ahead, step = panel + _PREFETCH_BYTES, _PANEL_ROW_BYTES
            for k in range(0, k_count, _RUN):
                multiply_packed(
                    rows, x + k * rows * FLOAT_BYTES, panel + k * _PANEL_ROW_BYTES, sums, _PANEL_ROW_BYTES,
                    min(_RUN, k_count - k), 1 if k == 0 else 0, ahead + k * step, step,
                )  # fmt: skip
            for index in range(rows):
                row_sums = sums + index * PAIR_COLUMNS * FLOAT_BYTES
                if gated:
                    _finish_gated(arguments, row_sums, pair, first + index, kind)
                else:
                    _finish(arguments, row_sums, pair * PAIR_COLUMNS, first + index, kind)
                    _finish(
                        arguments,
                        row_sums + LANES_BYTES,
                        pair * PAIR_COLUMNS + LANES,
                        first + index,
                        kind,
                    )


@compiler.entry(types.void(*[types.int64] * 20))
def _run(
    control: int, threads: int, pack_task: int, multiply_task: int, arguments: int, workspace: int,
    x: int, rows: int, x_row_bytes: int, k_count: int, weight: int, pairs: int, n: int, out: int, out_row_bytes: int,
    bias: int, residual: int, residual_row_bytes: int, activation: int, gated: int,
) -> None:  # fmt: skip
    """Plan one product, pack x and share the work. ``workspace``: scratch of every thread, then room for packed x."""
    tiles = (rows + ROWS_MAX - 1) // ROWS_MAX
    row_chunks = (tiles + _TILES_PER_CHUNK - 1) // _TILES_PER_CHUNK
    column_chunks = max(1, threads * _CHUNKS_PER_THREAD // row_chunks)
    if threads == 1 or rows * pairs * k_count * PAIR_COLUMNS < _SERIAL_WORK:
        column_chunks = 1
    pairs_per_chunk = (pairs + column_chunks - 1) // column_chunks
    column_chunks = (pairs + pairs_per_chunk - 1) // pairs_per_chunk
    packed = x if rows == 1 else workspace + threads * _SCRATCH_BYTES
    for index, value in enumerate(
        (x, rows, x_row_bytes, k_count, weight, pairs, n, out, out_row_bytes, bias, residual, residual_row_bytes,
         activation, gated, packed, workspace, tiles, pairs_per_chunk, column_chunks)
    ):  # fmt: skip
        store_word(arguments + 8 * index, value)
    if rows > 1:
        run_chunks(control, pack_task, arguments, tiles)
    run_chunks(control, multiply_task, arguments, column_chunks * row_chunks)


@compiler.entry(types.void(*[types.int64] * 7))
def _pack_weight(
    weight: int,
    row_bytes: int,
    n: int,
    k_count: int,
    out: int,
    first_half: int,
    half_step: int,
) -> None:
    """Rows of W, 16 at a time, to the halves ``first_half``, ``+ half_step``, ... of the panels in turn."""
    for first in range(0, n, LANES):
        half = first_half + first // LANES * half_step
        panel = out + (half // 2 * k_count * 2 + half % 2) * LANES_BYTES
        for lane in range(min(LANES, n - first)):
            row = weight + (first + lane) * row_bytes
            for k in range(k_count):
                value = load_float(row + k * FLOAT_BYTES)
                store_float(panel + k * PAIR_COLUMNS * FLOAT_BYTES + lane * FLOAT_BYTES, value)


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A linear layer ready to run. Made by `pack_linear` or `pack_gated`; call it with x [M, K] to get [M, N].

    ``nbytes`` is what the packed weight and bias hold in memory; the original weight may be dropped.
    """

    inputs: int
    outputs: int
    nbytes: int
    _pairs: int
    _weight: int
    _bias: int
    _activation: int
    _gated: bool
    _memory: tuple[npt.NDArray[np.float32], ...] = field(repr=False)

    def __call__(self, x: Array, out: Array | None = None, residual: Array | None = None) -> Array:
        """``activation(x W^T + bias) + residual``, into ``out`` where given (may be the residual itself, not x).

        x is [..., K] (or its last dimensions together are K), ``out`` and ``residual`` have as many rows of N; rows may be
        apart (slices of wider arrays). Without ``out`` the result is x's shape with N in place of K.
        Raises KernelInputError where shapes or dtypes do not fit.
        """
        outputs = self.outputs
        address, rows, row_bytes = rows_of(x, self.inputs)
        if out is None:
            shape = x.shape
            out = empty_beside(x, (*shape[:-1], outputs) if shape[-1] == self.inputs else (rows, outputs))
        out_address, out_rows, out_row_bytes = rows_of(out, outputs)
        extra, extra_rows, extra_row_bytes = (0, rows, 0) if residual is None else rows_of(residual, outputs)
        if out_rows != rows or extra_rows != rows:
            raise KernelInputError(
                f"x has {rows} rows, but out {out_rows} and the residual {extra_rows}: give all the same"
            )
        if rows == 0:
            return out
        with pool.lock:
            threads = pool.threads
            space = pool.workspace("linear", threads * _SCRATCH_BYTES + rows * self.inputs * FLOAT_BYTES)
            _run(
                pool.control, threads, _pack_tile, _multiply_chunk, _arguments.address, space.address,
                address, rows, row_bytes, self.inputs, self._weight, self._pairs, outputs,
                out_address, out_row_bytes, self._bias, extra, extra_row_bytes, self._activation, self._gated,
            )  # fmt: skip
        return out


def freeze(layer: PackedLinear) -> tuple[dict[str, int], list[npt.NDArray[np.float32]]]:
    """A packed layer as plain numbers and arrays, from which `thaw` makes it again; in another process, too."""
    facts = {name: int(getattr(layer, name)) for name in ("inputs", "outputs", "_pairs", "_activation", "_gated")}
    return facts, list(layer._memory)  # noqa: SLF001 - the other half of its class


def thaw(facts: dict[str, int], memory: list[npt.NDArray[np.float32]]) -> PackedLinear:
    """A packed layer over ``memory``, which begins on a cache line and is not copied."""
    weight, bias = memory
    return PackedLinear(
        inputs=facts["inputs"],
        outputs=facts["outputs"],
        nbytes=weight.nbytes + bias.nbytes,
        _pairs=facts["_pairs"],
        _weight=int(weight.ctypes.data),
        _bias=int(bias.ctypes.data) if bias.size else 0,
        _activation=facts["_activation"],
        _gated=bool(facts["_gated"]),
        _memory=(weight, bias),
    )


_arena = Arena()
_arguments = Workspace.of(_ARGUMENT_BYTES)


def _pack(parts: list[Array], biases: list[Array | None], activation: str) -> PackedLinear:
    """Pack one weight, or a gate and an up projection whose panels alternate."""
    if activation not in ACTIVATIONS:
        raise KernelInputError(f"unknown activation {activation!r}: use one of {', '.join(ACTIVATIONS)}")
    n, k_count = parts[0].shape
    if any(tuple(part.shape) != (n, k_count) for part in parts):
        raise KernelInputError("gate and up projections must have one shape")
    columns = PAIR_COLUMNS // len(parts)
    pairs = -(-n // columns)
    weight = _arena.take(pairs * PAIR_COLUMNS * k_count)
    bias = _arena.take(pairs * PAIR_COLUMNS if any(b is not None for b in biases) else 0)
    for index, (part, part_bias) in enumerate(zip(parts, biases, strict=True)):
        address, _, row_bytes = rows_of(part, k_count)
        _pack_weight(address, row_bytes, n, k_count, int(weight.ctypes.data), index, len(parts))
        if part_bias is not None:
            panels = bias.reshape(-1, len(parts), LANES)[:, index]
            panels[...] = np.pad(np.asarray(part_bias, np.float32), (0, panels.size - n)).reshape(panels.shape)
    return PackedLinear(
        inputs=k_count,
        outputs=n,
        nbytes=weight.nbytes + bias.nbytes,
        _pairs=pairs,
        _weight=int(weight.ctypes.data),
        _bias=int(bias.ctypes.data) if bias.size else 0,
        _activation=ACTIVATIONS[activation],
        _gated=len(parts) == 2,
        _memory=(weight, bias),
    )


def pack_linear(weight: Array, bias: Array | None = None, activation: str = "none") -> PackedLinear:
    """Pack W [N, K] and bias [N]. ``activation``, one of `ACTIVATIONS`, is applied after the bias."""
    return _pack([weight], [bias], activation)


def pack_gated(
    gate: Array,
    up: Array,
    activation: str = "silu",
    gate_bias: Array | None = None,
    up_bias: Array | None = None,
) -> PackedLinear:
    """Pack the two halves of a gated MLP, W_gate and W_up [N, K]: a call gives activation(x gate^T) * (x up^T) [M, N]."""
    return _pack([gate, up], [gate_bias, up_bias], activation)
