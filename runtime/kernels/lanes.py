"""A vector of 16 floats as a numba type, so that kernels read like scalar code.

Owns the type `Lanes` and its operations; each becomes one or a few vector instructions on any CPU (LLVM splits 16 lanes
into what the machine has: one AVX-512 register, two AVX2, four NEON or SSE). Results do not depend on the width: `fma` is
fused wherever the machine has fused multiply-add, and sums over lanes go by one fixed tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from . import compiler
from .compiler import intrinsic
from .machine import FLOAT_BYTES, function_of, pointer

LANES = 16
LANES_BYTES = LANES * FLOAT_BYTES

FLOAT = ir.FloatType()
I32 = ir.IntType(32)
VECTOR = ir.VectorType(FLOAT, LANES)
INTEGERS = ir.VectorType(I32, LANES)
MASK = ir.VectorType(ir.IntType(1), LANES)


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes16xFloat32")


lanes = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, VECTOR)  # type: ignore[no-untyped-call]


def broadcast(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """One scalar in every lane."""
    vector = ir.VectorType(value.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(INTEGERS, [0] * LANES))


def call_llvm(builder: ir.IRBuilder, name: str, result: ir.Type, args: list[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic by its full name (llvmlite cannot spell the suffixes of vectors)."""
    kind = ir.FunctionType(result, [value.type for value in args])
    return builder.call(function_of(builder.module, kind, name), args)


def fused_multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """``a * b + c``, rounded once where the machine can (LLVM's fmuladd: the same choice for all code of a machine)."""
    return call_llvm(builder, "llvm.fmuladd.v16f32", VECTOR, [a, b, c])


Emit = Callable[[ir.IRBuilder, Any], ir.Value | None]


def _operation(result: Any, arguments: tuple[Any, ...], emit: Emit) -> Any:
    """A numba intrinsic of a fixed signature from a function that emits its instructions."""

    def codegen(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        value = emit(builder, args)
        return _context.get_dummy_value() if result is types.void else value

    signature = result(*arguments)
    match len(arguments):
        case 1:
            return intrinsic(lambda _typing, _a: (signature, codegen))
        case 2:
            return intrinsic(lambda _typing, _a, _b: (signature, codegen))
        case 6:
            return intrinsic(lambda _typing, _a, _b, _c, _d, _e, _f: (signature, codegen))
        case _:
            return intrinsic(lambda _typing, _a, _b, _c: (signature, codegen))


def _first_lanes(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """A mask of the lanes below ``count`` (int64)."""
    index = ir.Constant(INTEGERS, list(range(LANES)))
    limit = broadcast(builder, builder.trunc(count, I32))
    return builder.icmp_signed("<", index, limit)


def _load_first(b: ir.IRBuilder, args: Any) -> ir.Value:
    zeros = ir.Constant(VECTOR, [0.0] * LANES)
    operands = [
        pointer(b, args[0]),
        ir.Constant(I32, FLOAT_BYTES),
        _first_lanes(b, args[1]),
        zeros,
    ]
    return call_llvm(b, "llvm.masked.load.v16f32.p0", VECTOR, operands)


def _store_first(b: ir.IRBuilder, args: Any) -> ir.Value:
    operands = [
        args[1],
        pointer(b, args[0]),
        ir.Constant(I32, FLOAT_BYTES),
        _first_lanes(b, args[2]),
    ]
    return call_llvm(b, "llvm.masked.store.v16f32.p0", ir.VoidType(), operands)


def _keep_between(b: ir.IRBuilder, args: Any) -> ir.Value:
    kept = b.and_(_first_lanes(b, args[2]), b.not_(_first_lanes(b, args[1])))
    return b.select(kept, args[0], ir.Constant(VECTOR, [float("-inf")] * LANES))


def _reduce(combine: Emit) -> Emit:
    """Fold the lanes in halves: 16, 8, 4, 2, 1. The order is fixed, so sums have the same bits everywhere."""

    def emit(builder: ir.IRBuilder, args: Any) -> ir.Value:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            low, high = (
                builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, width), list(part)))
                for part in (range(width), range(width, 2 * width))
            )
            value = combine(builder, (low, high))
        return builder.extract_element(value, ir.Constant(I32, 0))

    return emit


def _larger(b: ir.IRBuilder, args: Any) -> ir.Value:
    return b.select(b.fcmp_ordered(">", args[0], args[1]), args[0], args[1])


def _two_to_the(b: ir.IRBuilder, args: Any) -> ir.Value:
    """2**n for whole n in [-126, 127], by writing the exponent's bits."""
    exponent = b.add(b.fptosi(args[0], INTEGERS), ir.Constant(INTEGERS, [127] * LANES))
    return b.bitcast(b.shl(exponent, ir.Constant(INTEGERS, [23] * LANES)), VECTOR)


def _zero_below(b: ir.IRBuilder, args: Any) -> ir.Value:
    return b.select(
        b.fcmp_ordered("<", args[1], args[2]),
        ir.Constant(VECTOR, [0.0] * LANES),
        args[0],
    )


def _store_transposed(b: ir.IRBuilder, args: Any) -> None:
    """Four rows of 16 to 16 rows of four, by transposing 4 x 4 blocks."""
    address, step, *rows = args
    start = pointer(b, address)

    def pick(low: ir.Value, high: ir.Value, *lanes_: int) -> ir.Value:
        return b.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, 4), list(lanes_)))

    for block in range(LANES // 4):
        r0, r1, r2, r3 = (pick(row, row, *range(4 * block, 4 * block + 4)) for row in rows)
        low01, high01, low23, high23 = (
            pick(p, q, *o) for p, q in ((r0, r1), (r2, r3)) for o in ((0, 4, 1, 5), (2, 6, 3, 7))
        )
        halves = ((low01, low23), (high01, high23))
        for index, column in enumerate(pick(p, q, *o) for p, q in halves for o in ((0, 1, 4, 5), (2, 3, 6, 7))):
            offset = b.mul(step, ir.Constant(step.type, 4 * block + index))
            b.store(column, b.gep(start, [offset], source_etype=ir.IntType(8)), align=FLOAT_BYTES)


load = _operation(
    lanes,
    (types.int64,),
    lambda b, a: b.load(pointer(b, a[0]), typ=VECTOR, align=FLOAT_BYTES),
)
store = _operation(
    types.void,
    (types.int64, lanes),
    lambda b, a: b.store(a[1], pointer(b, a[0]), align=FLOAT_BYTES),
)
store_transposed = _operation(  # (address, step, row 0 .. row 3): lane i of the four goes to address + i * step
    types.void, (types.int64, types.int64, lanes, lanes, lanes, lanes), _store_transposed
)
load_first = _operation(lanes, (types.int64, types.int64), _load_first)  # (address, count): lanes beyond count are 0
store_first = _operation(types.void, (types.int64, lanes, types.int64), _store_first)  # (address, value, count)
keep_first = _operation(  # (value, count): 0 in the other lanes
    lanes,
    (lanes, types.int64),
    lambda b, a: b.select(_first_lanes(b, a[1]), a[0], ir.Constant(VECTOR, [0.0] * LANES)),
)
splat = _operation(lanes, (types.float32,), lambda b, a: broadcast(b, a[0]))
fma = _operation(lanes, (lanes, lanes, lanes), lambda b, a: fused_multiply_add(b, *a))
add = _operation(lanes, (lanes, lanes), lambda b, a: b.fadd(*a))
sub = _operation(lanes, (lanes, lanes), lambda b, a: b.fsub(*a))
mul = _operation(lanes, (lanes, lanes), lambda b, a: b.fmul(*a))
div = _operation(lanes, (lanes, lanes), lambda b, a: b.fdiv(*a))
larger = _operation(lanes, (lanes, lanes), _larger)
nearest = _operation(lanes, (lanes,), lambda b, a: call_llvm(b, "llvm.rint.v16f32", VECTOR, list(a)))
two_to_the = _operation(lanes, (lanes,), _two_to_the)
zero_below = _operation(lanes, (lanes, lanes, lanes), _zero_below)  # (value, x, limit): value, but 0 where x < limit
keep_between = _operation(lanes, (lanes, types.int64, types.int64), _keep_between)  # -inf outside lanes [low, high)
sum_lanes = _operation(types.float32, (lanes,), _reduce(lambda b, a: b.fadd(*a)))
max_lanes = _operation(types.float32, (lanes,), _reduce(_larger))

_LOG2E = np.float32(1.44269504)
_LN2_HIGH = np.float32(-0.693145752)  # few bits, so that n * high is exact
_LN2_LOW = np.float32(-1.42860677e-6)
_EXP_FLOOR = np.float32(-87.0)  # e**-87 is 1.6e-38: below it the result is taken as 0
_EXP_CEILING = np.float32(88.0)
_C2, _C3, _C4, _C5, _C6 = (np.float32(c) for c in (0.5, 1 / 6, 1 / 24, 1 / 120, 1 / 720))
_ONE = np.float32(1.0)


@compiler.inlined
def exp(x: Any) -> Any:
    """e**x in every lane, relative error below 3e-7; 0 below -87, e**88 above 88.

    Cody and Waite's reduction to |r| <= ln(2)/2 and a polynomial of degree 6.
    """
    bounded = splat(_EXP_CEILING)
    bounded = sub(
        splat(np.float32(0.0)),
        larger(sub(splat(np.float32(0.0)), x), splat(-_EXP_CEILING)),
    )
    bounded = larger(bounded, splat(_EXP_FLOOR))
    n = nearest(mul(bounded, splat(_LOG2E)))
    r = fma(n, splat(_LN2_LOW), fma(n, splat(_LN2_HIGH), bounded))
    tail = fma(r, splat(_C6), splat(_C5))
    tail = fma(tail, r, splat(_C4))
    tail = fma(tail, r, splat(_C3))
    tail = fma(tail, r, splat(_C2))
    tail = fma(mul(tail, r), r, r)
    return zero_below(mul(add(tail, splat(_ONE)), two_to_the(n)), x, splat(_EXP_FLOOR))
