"""The machine under the kernels, as numba sees it: memory at an address, atomics, and calls through an address.

Owns numba intrinsics that become one or two instructions each. Addresses are plain integers; nothing checks them.
"""

# ruff: noqa: ARG001 - numba looks at the parameters of an intrinsic; its body makes code from values given later
from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from .compiler import intrinsic

FLOAT_BYTES = 4
WORD_BYTES = 8

_POINTER = ir.PointerType()
_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_NOTHING = ir.FunctionType(ir.VoidType(), [])

_X86 = platform.machine() in {"x86_64", "AMD64"}
_ARM = platform.machine() in {"aarch64", "arm64"}


def function_of(module: ir.Module, kind: ir.FunctionType, name: str) -> ir.Function:
    """The module's function of that name, declared if it is not there yet."""
    known = module.globals.get(name)
    return ir.Function(module, kind, name) if known is None else known


def pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """An address as an LLVM pointer."""
    return builder.inttoptr(address, _POINTER)


def _loader(numba_type: types.Type, llvm_type: ir.Type, align: int) -> Any:
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
            return builder.load(pointer(builder, args[0]), typ=llvm_type, align=align)

        return numba_type(types.int64), codegen

    return intrinsic(load)


def _storer(numba_type: types.Type, align: int) -> Any:
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
            builder.store(args[1], pointer(builder, args[0]), align=align)
            return _context.get_dummy_value()

        return types.void(types.int64, numba_type), codegen

    return intrinsic(store)


load_float: Callable[[int], Any] = _loader(types.float32, ir.FloatType(), FLOAT_BYTES)
load_int32: Callable[[int], int] = _loader(types.int32, ir.IntType(32), 4)
load_word: Callable[[int], int] = _loader(types.int64, _I64, WORD_BYTES)
store_float = _storer(types.float32, FLOAT_BYTES)
store_word = _storer(types.int64, WORD_BYTES)


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """Read a word, ordered after what its writer did before writing it."""

    def codegen(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        return builder.load_atomic(pointer(builder, args[0]), "seq_cst", WORD_BYTES, typ=_I64)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typingctx: Any, address: Any, value: Any) -> Any:
    """Write a word after everything written before it is visible."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        builder.atomic_rmw("xchg", pointer(builder, args[0]), args[1], "seq_cst")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to a word; gives what it held before."""

    def codegen(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        return builder.atomic_rmw("add", pointer(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the core that this is a spin loop (a few tens of cycles)."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, _args: Any) -> ir.Value:
        if _X86:
            builder.call(
                builder.module.declare_intrinsic("llvm.x86.sse2.pause", [], _NOTHING),
                [],
            )
        elif _ARM:
            hint = builder.module.declare_intrinsic("llvm.aarch64.hint", [], ir.FunctionType(ir.VoidType(), [_I32]))
            builder.call(hint, [ir.Constant(_I32, 1)])  # 1 is YIELD
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call_task(typingctx: Any, function: Any, arguments: Any, chunk: Any, thread: Any) -> Any:
    """Call a compiled task (`compiler.TASK`) through its address."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, _I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


def emit_prefetch(builder: ir.IRBuilder, place: ir.Value) -> None:
    """Ask for a cache line that will be read soon; never faults, so it may lie beyond the array."""
    kind = ir.FunctionType(ir.VoidType(), [_POINTER, _I32, _I32, _I32])
    function = function_of(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, _I32(0), _I32(3), _I32(1)])  # to read, into every level, data


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        emit_prefetch(builder, pointer(builder, args[0]))
        return context.get_dummy_value()

    return types.void(types.int64), codegen
