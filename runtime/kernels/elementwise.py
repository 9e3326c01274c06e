"""Row-wise operators between the matrix products: norms and rotary position embedding, in float32.

Only those that beat torch's own by measurement are here (a chain of five torch operators costs 15 to 40 us a call at 1 to 32
rows; these cost 2 to 5). Every row is computed alone in a fixed order, so results are batch-invariant.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from . import compiler
from .arrays import Array, KernelInputError, address_of, empty_beside, rows_of
from .lanes import (
    LANES,
    add,
    fma,
    keep_first,
    load,
    load_first,
    mul,
    splat,
    store,
    store_first,
    sub,
    sum_lanes,
)
from .machine import FLOAT_BYTES, load_float, load_word
from .threads import Workspace, pool

_FLOATS_PER_CHUNK = 1 << 14
"""Numbers a chunk goes through, about 2 us: less is not worth sharing."""

_ZERO = np.float32(0.0)


@compiler.inlined
def _part(address: int, start: int, size: int) -> Any:
    """Lanes ``start`` to ``start + 16`` of ``size`` floats; zero beyond the last."""
    if start + LANES <= size:
        return load(address + start * FLOAT_BYTES)
    return load_first(address + start * FLOAT_BYTES, size - start)


@compiler.inlined
def _put(address: int, start: int, size: int, value: Any) -> None:
    if start + LANES <= size:
        store(address + start * FLOAT_BYTES, value)
    else:
        store_first(address + start * FLOAT_BYTES, value, size - start)


# x, bytes between rows, out, bytes between rows, rows, groups in a row, size of a group, weight, bias, rows per chunk, eps
_NORM = struct.Struct("10qf")
_NORM_EPSILON = 80


@compiler.inlined
def _rms_norm_group(x: int, out: int, size: int, weight: int, epsilon: Any) -> None:
    squares = splat(_ZERO)
    for start in range(0, size, LANES):
        value = _part(x, start, size)
        squares = fma(value, value, squares)
    scale = splat(np.float32(1.0) / np.sqrt(sum_lanes(squares) / np.float32(size) + epsilon))
    for start in range(0, size, LANES):
        _put(
            out,
            start,
            size,
            mul(mul(_part(x, start, size), scale), _part(weight, start, size)),
        )


@compiler.inlined
def _layer_norm_group(x: int, out: int, size: int, weight: int, bias: int, epsilon: Any) -> None:
    total = splat(_ZERO)
    for start in range(0, size, LANES):
        total = add(total, _part(x, start, size))
    mean = splat(sum_lanes(total) / np.float32(size))
    squares = splat(_ZERO)
    for start in range(0, size, LANES):
        centred = sub(_part(x, start, size), mean)
        if start + LANES > size:  # lanes beyond the row are 0 - mean: put them back to 0
            centred = keep_first(centred, size - start)
        squares = fma(centred, centred, squares)
    scale = splat(np.float32(1.0) / np.sqrt(sum_lanes(squares) / np.float32(size) + epsilon))
    for start in range(0, size, LANES):
        value = mul(mul(sub(_part(x, start, size), mean), scale), _part(weight, start, size))
        if bias != 0:
            value = add(value, _part(bias, start, size))
        _put(out, start, size, value)


@compiler.task
def _norm_rows(arguments: int, chunk: int, _thread: int) -> None:
    rows_per_chunk, rows = load_word(arguments + 72), load_word(arguments + 32)
    groups, size, weight, bias = (
        load_word(arguments + 40), load_word(arguments + 48), load_word(arguments + 56), load_word(arguments + 64),
    )  # fmt: skip
    epsilon = load_float(arguments + _NORM_EPSILON)
    for row in range(chunk * rows_per_chunk, min(rows, (chunk + 1) * rows_per_chunk)):
        x = load_word(arguments) + row * load_word(arguments + 8)
        out = load_word(arguments + 16) + row * load_word(arguments + 24)
        for group in range(groups):
            place = group * size * FLOAT_BYTES
            if bias < 0:
                _rms_norm_group(x + place, out + place, size, weight, epsilon)
            else:
                _layer_norm_group(x + place, out + place, size, weight, bias, epsilon)


_NO_BIAS, _RMS = 0, -1


_norm_arguments = Workspace.of(_NORM.size)


def _norm(x: Array, weight: Array, bias: int, epsilon: float, out: Array | None) -> Array:
    shape = x.shape
    size = weight.shape[0]
    if shape[-1] != size:
        raise KernelInputError(f"a norm of {size} weights cannot take an array of shape {tuple(shape)}")
    groups = shape[1] if len(shape) == 3 and shape[0] > 1 else 1  # heads of a slice are apart by less than its tokens
    address, rows, row_bytes = rows_of(x, groups * size)
    if out is None:
        out = empty_beside(x, shape)
    out_address, _, out_row_bytes = rows_of(out, groups * size)
    rows_per_chunk = max(1, _FLOATS_PER_CHUNK // (groups * size))
    with pool.lock:
        _NORM.pack_into(
            _norm_arguments.memory, 0, address, row_bytes, out_address, out_row_bytes, rows, groups, size,
            address_of(weight), bias, rows_per_chunk, epsilon,
        )  # fmt: skip
        pool.run(_norm_rows, _norm_arguments.address, -(-rows // rows_per_chunk))
    return out


def rms_norm(x: Array, weight: Array, epsilon: float, out: Array | None = None) -> Array:
    """``x / sqrt(mean(x**2) + epsilon) * weight`` over groups of ``len(weight)`` in each row.

    x is [M, N], [1, M, N] or [T, H, D]; the weight has N (or D) numbers. ``out`` may be x itself.
    """
    return _norm(x, weight, _RMS, epsilon, out)


def layer_norm(
    x: Array,
    weight: Array,
    bias: Array | None,
    epsilon: float,
    out: Array | None = None,
) -> Array:
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias`` over groups of ``len(weight)`` in each row."""
    return _norm(x, weight, _NO_BIAS if bias is None else address_of(bias), epsilon, out)


# x, bytes between rows, heads, head size, the same of a second array, cos, its row bytes, sin, its row bytes, rotated size,
# tokens, tokens per chunk
_ROTARY = struct.Struct("15q")


@compiler.inlined
def _rotate_heads(x: int, heads: int, head_size: int, cos: int, sin: int, half: int) -> None:
    """Rotate (x[i], x[i + half]) of each head by the angle whose cosine and sine are given, in place."""
    far = half * FLOAT_BYTES
    for head in range(heads):
        place = x + head * head_size * FLOAT_BYTES
        for start in range(0, half, LANES):
            near_value, far_value = (
                _part(place, start, half),
                _part(place + far, start, half),
            )
            turned = sub(
                mul(near_value, _part(cos, start, half)),
                mul(far_value, _part(sin, start, half)),
            )
            far_turned = add(
                mul(far_value, _part(cos + far, start, half)),
                mul(near_value, _part(sin + far, start, half)),
            )
            _put(place, start, half, turned)
            _put(place + far, start, half, far_turned)


@compiler.task
def _rotary_tokens(arguments: int, chunk: int, _thread: int) -> None:
    cos_bytes, sin_bytes, rotated = (
        load_word(arguments + 72),
        load_word(arguments + 88),
        load_word(arguments + 96),
    )
    tokens, per_chunk = load_word(arguments + 104), load_word(arguments + 112)
    for token in range(chunk * per_chunk, min(tokens, (chunk + 1) * per_chunk)):
        cos, sin = (
            load_word(arguments + 64) + token * cos_bytes,
            load_word(arguments + 80) + token * sin_bytes,
        )
        for array in range(arguments, arguments + 64, 32):
            x = load_word(array) + token * load_word(array + 8)
            _rotate_heads(x, load_word(array + 16), load_word(array + 24), cos, sin, rotated // 2)


def rotate(q: Array, k: Array, cos: Array, sin: Array) -> None:
    """Rotary position embedding in place, halves paired as in GPT-NeoX and Llama (Su et al. 2021).

    Args:
        q: [T, H, D]; tokens may be apart (slices of one merged projection).
        k: [T, KVH, D], likewise.
        cos: [T, R] or [1, T, R] as transformers makes it (two equal halves); R <= D, the rest of a head stays.
        sin: likewise.
    """
    head_size = q.shape[-1]
    rows = tuple(rows_of(x, x.shape[-2] * head_size) for x in (q, k))
    rotate_rows(rows[0], q.shape[-2], rows[1], k.shape[-2], head_size, cos, sin)


Rows = tuple[int, int, int]
"""(address, rows, bytes between rows), as `arrays.rows_of` gives them."""

_rotary_arguments = Workspace.of(_ROTARY.size)


def rotate_rows(q: Rows, q_heads: int, k: Rows, k_heads: int, head_size: int, cos: Array, sin: Array) -> None:
    """As `rotate`, for arrays whose places are known. Raises KernelInputError where sizes do not fit."""
    rotated = cos.shape[-1]
    cos_address, tokens, cos_bytes = rows_of(cos, rotated)
    sin_address, sin_tokens, sin_bytes = rows_of(sin, rotated)
    if not tokens == sin_tokens == q[1] == k[1] or head_size < rotated or rotated % 2:
        raise KernelInputError(
            f"cannot rotate {q[1]} and {k[1]} tokens' heads of {head_size} by angles {tuple(cos.shape)}: pass [T, R <= D]"
        )
    per_chunk = max(1, _FLOATS_PER_CHUNK // (rotated * (q_heads + k_heads)))
    with pool.lock:
        _ROTARY.pack_into(
            _rotary_arguments.memory, 0, q[0], q[2], q_heads, head_size, k[0], k[2], k_heads, head_size,
            cos_address, cos_bytes, sin_address, sin_bytes, rotated, tokens, per_chunk,
        )  # fmt: skip
        pool.run(_rotary_tokens, _rotary_arguments.address, -(-tokens // per_chunk))
