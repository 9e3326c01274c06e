"""The micro-kernel: a few rows times one or two panels of 16 columns, all sums in registers.

Owns the LLVM code of the innermost loop of both matrix products and attention. Knows nothing of what the numbers mean.

Every output is ``c + a[0] * b[0] + a[1] * b[1] + ...``, one fused multiply-add after the other in ascending k. How many
rows or columns share a call changes which sums run side by side, never the order inside one: **results are
batch-invariant bit for bit**, by construction.

Register blocking: with 32 vector registers of 512 bits (AVX-512) a tile is up to 12 x 32; with 16 of 256 bits (AVX2) up to
6 x 16, or 3 x 32; the panels are the same for both.
"""

# ruff: noqa: ARG001 - numba looks at the parameters of an intrinsic; its body makes code from values given later
from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types

from .compiler import intrinsic
from .lanes import LANES_BYTES, VECTOR, broadcast, fused_multiply_add
from .machine import FLOAT_BYTES, function_of, pointer

_BYTE = ir.IntType(8)
_I64 = ir.IntType(64)
_FLOAT = ir.FloatType()

WIDE_REGISTERS = bool(binding.get_host_cpu_features().get("avx512f", False))
"""Whether 16 floats fit one register, of which there are 32."""

ROWS_MAX = 12 if WIDE_REGISTERS else 6
"""Most rows of one tile."""

PAIR_COLUMNS = 32
"""Columns of a pair of panels."""

_ACCUMULATORS = 24 if WIDE_REGISTERS else 6  # vectors of 16 floats that stay in registers


def _offset(builder: ir.IRBuilder, base: ir.Value, byte_count: ir.Value | int) -> ir.Value:
    amount = _I64(byte_count) if isinstance(byte_count, int) else byte_count
    return builder.gep(base, [amount], source_etype=_BYTE)


class _Operands:
    """Where a tile's numbers lie: rows of A and panels of B, advanced together along k."""

    def __init__(self, builder: ir.IRBuilder, rows: int, panels: int, row_bytes: ir.Value | None, args: Any) -> None:
        a, b, panel_bytes, self.b_step = args
        self.builder, self.rows, self.panels = builder, rows, panels
        self.a_step = FLOAT_BYTES if row_bytes is not None else rows * FLOAT_BYTES
        if row_bytes is not None:
            self.a_starts = [_offset(builder, a, builder.mul(row_bytes, _I64(row))) for row in range(rows)]
        else:
            self.a_starts = [a]
        self.b_starts = [_offset(builder, b, builder.mul(panel_bytes, _I64(panel))) for panel in range(panels)]

    @property
    def starts(self) -> list[ir.Value]:
        return [*self.a_starts, *self.b_starts]

    def multiply_add(self, cursors: list[ir.Value], sums: list[ir.Value], k: int) -> list[ir.Value]:
        """One step of k, ``k`` steps beyond the cursors."""
        builder = self.builder
        a, b = cursors[: len(self.a_starts)], cursors[len(self.a_starts) :]
        steps = builder.mul(self.b_step, _I64(k))
        columns = [builder.load(_offset(builder, panel, steps), typ=VECTOR, align=FLOAT_BYTES) for panel in b]
        new = list(sums)
        for row in range(self.rows):
            if len(a) == self.rows:
                place = _offset(builder, a[row], k * FLOAT_BYTES)
            else:
                place = _offset(builder, a[0], (k * self.rows + row) * FLOAT_BYTES)
            value = broadcast(builder, builder.load(place, typ=_FLOAT, align=FLOAT_BYTES))
            for panel in range(self.panels):
                index = row * self.panels + panel
                new[index] = fused_multiply_add(builder, value, columns[panel], new[index])
        return new

    def advance(self, cursors: list[ir.Value], k: int) -> list[ir.Value]:
        """The cursors ``k`` steps on."""
        ahead = [_offset(self.builder, cursor, self.a_step * k) for cursor in cursors[: len(self.a_starts)]]
        b_steps = self.builder.mul(self.b_step, _I64(k))
        return ahead + [_offset(self.builder, cursor, b_steps) for cursor in cursors[len(self.a_starts) :]]


def _emit_loop(
    operands: _Operands, count: ir.Value, unroll: int, cursors: list[ir.Value], sums: list[ir.Value]
) -> tuple[list[ir.Value], list[ir.Value]]:
    """``count`` turns of ``unroll`` steps each; gives the cursors and sums after them."""
    builder = operands.builder
    before = builder.block
    loop, after = builder.append_basic_block("k.loop"), builder.append_basic_block("k.done")
    builder.cbranch(builder.icmp_signed(">", count, _I64(0)), loop, after)

    builder.position_at_end(loop)
    turn = builder.phi(_I64)
    carried = [builder.phi(value.type) for value in cursors + sums]
    inner_cursors, inner_sums = list(carried[: len(cursors)]), list(carried[len(cursors) :])
    for step in range(unroll):
        inner_sums = operands.multiply_add(inner_cursors, inner_sums, step)
    next_values = operands.advance(inner_cursors, unroll) + inner_sums
    next_turn = builder.add(turn, _I64(1))
    end = builder.block
    builder.cbranch(builder.icmp_signed("<", next_turn, count), loop, after)
    turn.add_incoming(_I64(0), before)
    turn.add_incoming(next_turn, end)
    for phi, first, following in zip(carried, cursors + sums, next_values, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(following, end)

    builder.position_at_end(after)
    results = []
    for first, following in zip(cursors + sums, next_values, strict=True):
        phi = builder.phi(first.type)
        phi.add_incoming(first, before)
        phi.add_incoming(following, end)
        results.append(phi)
    return results[: len(cursors)], results[len(cursors) :]


def _emit_block(
    builder: ir.IRBuilder, rows: int, panels: int, row_bytes: ir.Value | None, args: Any, c: Any, k: ir.Value
) -> None:
    """The code for one register block. ``c`` is (address, row bytes, whether to start from zero)."""
    c_start, c_row_bytes, fresh = c
    operands = _Operands(builder, rows, panels, row_bytes, args)
    places = [
        _offset(builder, _offset(builder, c_start, builder.mul(c_row_bytes, _I64(row))), panel * LANES_BYTES)
        for row in range(rows)
        for panel in range(panels)
    ]
    zero = ir.Constant(VECTOR, [0.0] * 16)
    sums = [builder.select(fresh, zero, builder.load(p, typ=VECTOR, align=FLOAT_BYTES)) for p in places]
    unroll = 4 if rows * panels <= 12 else 2
    turns, rest = builder.sdiv(k, _I64(unroll)), builder.srem(k, _I64(unroll))
    cursors, sums = _emit_loop(operands, turns, unroll, operands.starts, sums)
    _, sums = _emit_loop(operands, rest, 1, cursors, sums)
    for place, value in zip(places, sums, strict=True):
        builder.store(value, place, align=FLOAT_BYTES)


def _emit_tile(module: ir.Module, name: str, *, panels: int, packed: bool) -> ir.Function:
    """A function of ten integers, as `multiply_packed` and `multiply` describe them; one block of code per row count."""
    function = function_of(module, ir.FunctionType(ir.VoidType(), [_I64] * 10), name)
    if function.blocks:
        return function
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    rows_value, a, a_row_bytes, b, panel_bytes, b_row_bytes, c, c_row_bytes, k, fresh = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    a_start, b_start, c_start = (pointer(builder, address) for address in (a, b, c))
    is_fresh = builder.icmp_signed("!=", fresh, _I64(0))
    end = function.append_basic_block("end")
    switch = builder.switch(rows_value, end)
    for rows in range(1, ROWS_MAX + 1):
        builder.position_at_end(function.append_basic_block(f"rows{rows}"))
        switch.add_case(_I64(rows), builder.block)
        together = panels if rows * panels <= _ACCUMULATORS else 1
        for first in range(0, panels, together):
            b_first = _offset(builder, b_start, builder.mul(panel_bytes, _I64(first)))
            row_bytes, b_step = (None, _I64(LANES_BYTES)) if packed else (a_row_bytes, b_row_bytes)
            c_first = (_offset(builder, c_start, first * LANES_BYTES), c_row_bytes, is_fresh)
            _emit_block(builder, rows, together, row_bytes, (a_start, b_first, panel_bytes, b_step), c_first, k)
        builder.branch(end)
    builder.position_at_end(end)
    builder.ret_void()
    return function


_SEVEN = (types.int64,) * 7
_NINE = (types.int64,) * 9


@intrinsic
def multiply_packed(
    typingctx: Any,
    rows: Any,
    a: Any,
    b: Any,
    panel_bytes: Any,
    c: Any,
    c_row_bytes: Any,
    k: Any,
) -> Any:
    """C [rows, 32] = A [rows, k] times two panels of B [k, 16] that lie ``panel_bytes`` apart.

    ``rows`` is 1 to `ROWS_MAX`; ``a`` is packed, [k][rows]; rows of C are ``c_row_bytes`` apart.
    """

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        function = _emit_tile(builder.module, "flexpipe_tile_packed", panels=2, packed=True)
        count, a_, b_, panel, c_, c_row, steps = args
        builder.call(function, [count, a_, _I64(0), b_, panel, _I64(0), c_, c_row, steps, _I64(1)])
        return context.get_dummy_value()

    return types.void(*_SEVEN), codegen


@intrinsic
def multiply(
    typingctx: Any, rows: Any, a: Any, a_row_bytes: Any, b: Any, b_row_bytes: Any,
    c: Any, c_row_bytes: Any, k: Any, fresh: Any,
) -> Any:  # fmt: skip
    """C [rows, 16] = A [rows, k] B [k, 16], or += where ``fresh`` is 0. Rows of each lie their ``_row_bytes`` apart."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        function = _emit_tile(builder.module, "flexpipe_tile_strided", panels=1, packed=False)
        count, a_, a_row, b_, b_row, c_, c_row, steps, is_fresh = args
        builder.call(function, [count, a_, a_row, b_, _I64(0), b_row, c_, c_row, steps, is_fresh])
        return context.get_dummy_value()

    return types.void(*_NINE), codegen
