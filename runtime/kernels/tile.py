# ruff: noqa: ARG001 - numba looks at the parameters of an intrinsic; its body makes code from values given later
"""The micro-kernel: a few rows times a few vectors of 16 columns, all sums in registers.

Owns the LLVM code of the innermost loop of both matrix products and attention. Knows nothing of what the numbers mean.

Every output is ``c + (a[0] * b[0] + a[1] * b[1] + ...)``, one fused multiply-add after the other in ascending k, from zero. How
many rows or columns share a call changes which sums run side by side, never the order inside one: **results are
batch-invariant bit for bit**, by construction. Callers with a long k add up runs of it, which halves the rounding error.

Register blocking: with 32 vector registers of 512 bits (AVX-512) a block is up to 12 rows x 32 columns or 6 x 64; with 16
of 256 bits (AVX2) up to 6 x 16 or 3 x 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types

from .compiler import intrinsic
from .lanes import LANES, LANES_BYTES, VECTOR, broadcast, fused_multiply_add
from .machine import FLOAT_BYTES, emit_prefetch, function_of, pointer

_BYTE = ir.IntType(8)
_I64 = ir.IntType(64)
_FLOAT = ir.FloatType()

_config: Any = numba.config
_cpu_features = _config.CPU_FEATURES  # set (NUMBA_CPU_FEATURES) where code is made for another CPU than this one

WIDE_REGISTERS = "+avx512f" in (_cpu_features or binding.get_host_cpu_features().flatten()).split(",")
"""Whether 16 floats fit one register, of which there are 32."""

ROWS_MAX = 12 if WIDE_REGISTERS else 6
"""Most rows of one call."""

PAIR_COLUMNS = 2 * LANES
"""Columns of `multiply_packed`."""

WIDE_COLUMNS = 4 * LANES
"""Columns of `multiply_wide`."""

_ACCUMULATORS = 24 if WIDE_REGISTERS else 6  # vectors of 16 floats that stay in registers

PREFETCH_ROWS = 5 if WIDE_REGISTERS else 4
"""Below, loads alone keep memory busy, and prefetching cost up to a tenth."""


def _offset(builder: ir.IRBuilder, base: ir.Value, byte_count: ir.Value | int) -> ir.Value:
    amount = _I64(byte_count) if isinstance(byte_count, int) else byte_count
    return builder.gep(base, [amount], source_etype=_BYTE)


@dataclass(frozen=True, slots=True)
class _Block:
    """One register block: ``rows`` of A times ``vectors`` of B, advanced together along k.

    ``a_row_bytes`` is None where A is packed, [k][rows]. ``b_row_bytes`` leads from one k to the next.
    ``ahead`` is what to ask memory for meanwhile: (start, bytes a step of k).
    """

    builder: ir.IRBuilder
    rows: int
    vectors: int
    a_row_bytes: ir.Value | None
    b_row_bytes: ir.Value
    ahead: tuple[ir.Value, ir.Value] | None

    def starts(self, a: ir.Value, b: ir.Value) -> list[ir.Value]:
        """The pointers that move along k: one or every row of A, B, and what is asked for ahead."""
        rows = 1 if self.a_row_bytes is None else self.rows
        a_starts = [
            _offset(self.builder, a, self.builder.mul(self.a_row_bytes or _I64(0), _I64(row))) for row in range(rows)
        ]
        return [*a_starts, b] if self.ahead is None else [*a_starts, b, self.ahead[0]]

    def multiply_add(self, cursors: list[ir.Value], sums: list[ir.Value], k: int) -> list[ir.Value]:
        """The sums after step ``k`` beyond the cursors."""
        builder = self.builder
        b_place = 1 if self.a_row_bytes is None else self.rows
        b = _offset(builder, cursors[b_place], builder.mul(self.b_row_bytes, _I64(k)))
        places = [_offset(builder, b, vector * LANES_BYTES) for vector in range(self.vectors)]
        if self.ahead is not None:
            line = _offset(builder, cursors[-1], builder.mul(self.ahead[1], _I64(k)))
            for vector in range(self.vectors):
                emit_prefetch(builder, _offset(builder, line, vector * LANES_BYTES))
        columns = [builder.load(place, typ=VECTOR, align=FLOAT_BYTES) for place in places]
        new: list[ir.Value] = []
        for row in range(self.rows):
            packed = self.a_row_bytes is None
            place = (
                _offset(builder, cursors[0], (k * self.rows + row) * FLOAT_BYTES)
                if packed
                else _offset(builder, cursors[row], k * FLOAT_BYTES)
            )
            value = broadcast(builder, builder.load(place, typ=_FLOAT, align=FLOAT_BYTES))
            mine = sums[row * self.vectors : (row + 1) * self.vectors]
            new += [fused_multiply_add(builder, value, *pair) for pair in zip(columns, mine, strict=True)]
        return new

    def advance(self, cursors: list[ir.Value], k: int) -> list[ir.Value]:
        """The cursors ``k`` steps on."""
        builder = self.builder
        packed = self.a_row_bytes is None
        steps = [_I64(FLOAT_BYTES * self.rows)] if packed else [_I64(FLOAT_BYTES)] * self.rows
        steps.append(self.b_row_bytes)
        if self.ahead is not None:
            steps.append(self.ahead[1])
        return [_offset(builder, c, builder.mul(step, _I64(k))) for c, step in zip(cursors, steps, strict=True)]

    def loop(
        self,
        count: ir.Value,
        unroll: int,
        cursors: list[ir.Value],
        sums: list[ir.Value],
    ) -> tuple[list[ir.Value], list[ir.Value]]:
        """``count`` turns of ``unroll`` steps; gives the cursors and sums after them."""
        builder = self.builder
        before = builder.block
        body, after = (
            builder.append_basic_block("k.loop"),
            builder.append_basic_block("k.done"),
        )
        builder.cbranch(builder.icmp_signed(">", count, _I64(0)), body, after)
        builder.position_at_end(body)
        turn = builder.phi(_I64)
        carried = [builder.phi(value.type) for value in cursors + sums]
        inner_cursors, inner_sums = (
            list(carried[: len(cursors)]),
            list(carried[len(cursors) :]),
        )
        for step in range(unroll):
            inner_sums = self.multiply_add(inner_cursors, inner_sums, step)
        following = self.advance(inner_cursors, unroll) + inner_sums
        next_turn = builder.add(turn, _I64(1))
        builder.cbranch(builder.icmp_signed("<", next_turn, count), body, after)
        turn.add_incoming(_I64(0), before)
        turn.add_incoming(next_turn, body)
        builder.position_at_end(after)
        results = [builder.phi(value.type) for value in following]
        for first, inside, result, value in zip(cursors + sums, carried, results, following, strict=True):
            for phi in (inside, result):
                phi.add_incoming(first, before)
                phi.add_incoming(value, body)
        return results[: len(cursors)], results[len(cursors) :]

    def emit(
        self,
        a: ir.Value,
        b: ir.Value,
        c: ir.Value,
        c_row_bytes: ir.Value,
        k: ir.Value,
        fresh: ir.Value,
    ) -> None:
        """The whole block: run along k from zero, add C unless ``fresh``, write C."""
        builder = self.builder
        places = [
            _offset(
                builder,
                _offset(builder, c, builder.mul(c_row_bytes, _I64(row))),
                vector * LANES_BYTES,
            )
            for row in range(self.rows)
            for vector in range(self.vectors)
        ]
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        sums: list[ir.Value] = [zero] * len(places)
        unroll = 4 if self.rows * self.vectors <= 12 else 2
        cursors, sums = self.loop(builder.sdiv(k, _I64(unroll)), unroll, self.starts(a, b), sums)
        _, sums = self.loop(builder.srem(k, _I64(unroll)), 1, cursors, sums)
        for place, value in zip(places, sums, strict=True):
            before = builder.select(fresh, zero, builder.load(place, typ=VECTOR, align=FLOAT_BYTES))
            builder.store(builder.fadd(before, value), place, align=FLOAT_BYTES)


def _tile_function(module: ir.Module, vectors: int, *, packed: bool) -> ir.Function:
    """A function of (rows, a, a_row_bytes, b, b_row_bytes, c, c_row_bytes, k, fresh, ahead, ahead_step).

    It holds one block of code for each number of rows.
    """
    name = f"flexpipe_tile_{vectors}_{'packed' if packed else 'strided'}"
    function = function_of(module, ir.FunctionType(ir.VoidType(), [_I64] * 11), name)
    if function.blocks:
        return function
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    rows_value, a, a_row_bytes, b, b_row_bytes, c, c_row_bytes, k, fresh, ahead, ahead_step = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    a_start, b_start, c_start, ahead_start = (pointer(builder, address) for address in (a, b, c, ahead))
    is_fresh = builder.icmp_signed("!=", fresh, _I64(0))
    end = function.append_basic_block("end")
    switch = builder.switch(rows_value, end)
    for rows in range(1, ROWS_MAX + 1):
        builder.position_at_end(function.append_basic_block(f"rows{rows}"))
        switch.add_case(_I64(rows), builder.block)
        together = next(
            width for width in (4, 2, 1) if width <= vectors and (rows * width <= _ACCUMULATORS or width == 1)
        )
        for first in range(0, vectors, together):
            b_first, c_first, ahead_first = (
                _offset(builder, start, first * LANES_BYTES) for start in (b_start, c_start, ahead_start)
            )
            looks_ahead = not packed or rows >= PREFETCH_ROWS
            block = _Block(
                builder, rows, together, None if packed else a_row_bytes,
                _I64(vectors * LANES_BYTES) if packed else b_row_bytes, (ahead_first, ahead_step) if looks_ahead else None,
            )  # fmt: skip
            block.emit(a_start, b_first, c_first, c_row_bytes, k, is_fresh)
        builder.branch(end)
    builder.position_at_end(end)
    builder.ret_void()
    return function


@intrinsic
def multiply_packed(
    typingctx: Any,
    rows: Any,
    a: Any,
    b: Any,
    c: Any,
    c_row_bytes: Any,
    k: Any,
    fresh: Any,
    ahead: Any,
    ahead_step: Any,
) -> Any:
    """C [rows, 32] = A [rows, k] B [k, 32], or += where ``fresh`` is 0; A packed as [k][rows], B dense.

    Rows of C are ``c_row_bytes`` apart.

    ``rows`` is 1 to `ROWS_MAX`. From `PREFETCH_ROWS` rows on, memory is asked meanwhile for the two lines at ``ahead``, and
    with each further step of k for those ``ahead_step`` bytes on.
    """

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        count, a_, b_, c_, c_row, steps, fresh_, ahead_, step = args
        zero = _I64(0)
        function = _tile_function(builder.module, 2, packed=True)
        builder.call(function, [count, a_, zero, b_, zero, c_, c_row, steps, fresh_, ahead_, step])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), codegen


def _strided(vectors: int) -> Any:
    """The intrinsic C [rows, 16 x vectors] = A [rows, k] B [k, 16 x vectors], or += where ``fresh`` is 0.

    With every line of B memory is asked for the line ``ahead`` bytes on.
    """

    def multiply(
        typingctx: Any,
        rows: Any,
        a: Any,
        a_row_bytes: Any,
        b: Any,
        b_row_bytes: Any,
        c: Any,
        c_row_bytes: Any,
        k: Any,
        fresh: Any,
        ahead: Any,
    ) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
            *given, ahead_ = args
            lines_ahead = builder.add(args[3], ahead_)
            builder.call(_tile_function(builder.module, vectors, packed=False), [*given, lines_ahead, args[4]])
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), codegen

    return intrinsic(multiply)


multiply = _strided(1)  # 16 columns; rows of each matrix lie their _row_bytes apart
multiply_wide = _strided(4)  # 64 columns
