"""Writes an exported graph down as a flat tape of pure tensor operations.

Owns the translation from torch.fx: context-manager regions are inlined, in-place operators become pure ones, no-ops
and dead nodes go, symbolic sizes become "T" and "N". Knows nothing of cuts or atoms.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sympy import Symbol
from torch.export.graph_signature import InputKind

from ..program import Argument, Dim, ListArg, Literal, Node, Ref, WeightSpec
from .operators import CaptureError
from .skeleton import Skeleton
from .tape import STEP_INPUTS, Entry, Tape, node_references

CONSTANT_BYTES_MAX = 4 << 20
"""A constant goes into the program file; beyond this it is a table that a checkpoint should have held."""

_REGIONS = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast"})
_CHECKS = frozenset({"aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten._assert_async.msg"})
_CASTS = ("aten.to.", "aten._to_copy.", "aten.type_as.")
_SAME_VALUE = frozenset(
    {"aten.detach.default", "aten.alias.default", "aten.lift_fresh.default", "aten.lift_fresh_copy.default"}
)
_SAME_SHAPE = frozenset({"aten.view.default", "aten.reshape.default", "aten.expand.default", "aten.slice.Tensor"})
_SCALINGS = frozenset({"aten.mul.Tensor", "aten.div.Tensor"})
_VIEWS = frozenset(
    {"view", "reshape", "expand", "slice", "select", "transpose", "permute", "unsqueeze", "squeeze", "t"}
)
_MIXES_TOKENS = ("aten.conv", "aten.cumsum", "aten.cumprod", "aten.scaled_dot_product", "aten.roll", "aten.flip")
_DROPPED_OPTIONS = frozenset({"layout", "pin_memory", "non_blocking", "copy"})


def record(skeleton: Skeleton, exported: torch.export.ExportedProgram) -> Tape:
    """Flatten ``exported``. Raises `CaptureError` where it does what the tokens of one batch must not do to each other."""
    recorder = _Recorder(skeleton, exported)
    recorder.run()
    tape = recorder.tape
    _drop_dead(tape)
    _refuse_token_mixing(tape)
    return tape


class _Recorder:
    """Walks torch.fx graphs in order, keeping for each fx node the argument that stands for it."""

    def __init__(self, skeleton: Skeleton, exported: torch.export.ExportedProgram) -> None:
        self.tape = Tape()
        self._skeleton = skeleton
        self._exported = exported
        self._values: dict[Any, Any] = {}
        self._names: dict[str, int] = {}
        self._symbols: dict[Any, Any] = {}

    def run(self) -> None:
        graph = self._exported.graph_module.graph
        self._bind_inputs(graph)
        outcome = self._walk(self._exported.graph_module)
        self.tape.output = outcome[0].name

    def _bind_inputs(self, graph: Any) -> None:
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        step_inputs = iter(STEP_INPUTS)
        for node, spec in zip(placeholders, self._exported.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                name = next(step_inputs)
                self._values[node] = Ref(name)
                axis = 0 if name == "sample_tokens" else 1
                size = node.meta["val"].shape[axis]
                self._symbols[size.node.expr] = Symbol("N" if name == "sample_tokens" else "T")
            else:
                self._values[node] = Ref(self._weight(spec.kind, str(spec.target)))

    def _weight(self, kind: InputKind, target: str) -> str:
        name = target.removeprefix("model.")
        if kind is InputKind.CONSTANT_TENSOR:
            value = self._exported.constants[target]
            self._add_constant(name, value)
            return name
        if name in self._skeleton.constants:
            self._add_constant(name, self._skeleton.constants[name])
            return name
        tensor = self._exported.state_dict.get(target)
        if tensor is None:
            raise CaptureError(
                f"the constant {name} has no value: the model computes it from data that capture cannot see"
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.tape.weights[name] = WeightSpec(name, tuple(tensor.shape), dtype, tied_to=self._skeleton.tied.get(name))
        return name

    def _add_constant(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.is_meta:
            raise CaptureError(
                f"the constant {name} has no value: the model computes it from data that capture cannot see"
            )
        if tensor.nbytes > CONSTANT_BYTES_MAX:
            raise CaptureError(f"the constant {name} has {tensor.nbytes} bytes, more than {CONSTANT_BYTES_MAX}")
        flat = tensor.detach().contiguous().reshape(-1)
        raw = np.ascontiguousarray(flat.view(torch.uint8).numpy()) if flat.numel() else np.empty(0, np.uint8)
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.tape.weights[name] = WeightSpec(name, tuple(tensor.shape), dtype, value=raw.tobytes())

    def _walk(self, module: Any) -> list[Any]:
        for node in module.graph.nodes:
            if node.op == "output":
                outputs = node.args[0]
                return [self._argument(item) for item in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]
            if node.op == "call_function":
                self._call(module, node)
            elif node.op not in {"placeholder", "get_attr"}:
                raise CaptureError(f"the exported graph has a {node.op} node: not supported")
        raise CaptureError("the exported graph has no output")

    def _call(self, module: Any, node: Any) -> None:
        target = target_name(node.target)
        if target.removeprefix("higher_order.") in _REGIONS:
            self._inline(module, node)
        elif target.startswith("higher_order."):
            raise CaptureError(f"the model uses data-dependent control flow ({target}): not supported")
        elif target in _CHECKS or target.startswith("aten.sym_constrain_range"):
            return
        elif target == "aten.sym_size.int":
            self._values[node] = self._dimension(node.meta["val"])
        elif target == "operator.getitem" and isinstance(self._values[node.args[0]], list):
            self._values[node] = self._values[node.args[0]][node.args[1]]
        elif self._is_no_op(target, node):
            self._values[node] = self._argument(node.args[0])
        else:
            self._append(target, node)

    def _inline(self, module: Any, call: Any) -> None:
        position = next(
            i for i, item in enumerate(call.args) if isinstance(item, torch.fx.Node) and item.op == "get_attr"
        )
        region = getattr(module, call.args[position].target)
        inner = [node for node in region.graph.nodes if node.op == "placeholder"]
        for placeholder, argument in zip(inner, call.args[position + 1 :], strict=True):
            self._values[placeholder] = self._values[argument]
        self._values[call] = self._walk(region)

    def _is_no_op(self, target: str, node: Any) -> bool:
        source, result = _tensor_of(node.args[0]) if node.args else None, node.meta.get("val")
        if not isinstance(source, torch.Tensor) or not isinstance(result, torch.Tensor):
            return False
        if target in _SAME_VALUE or target in {"aten.dropout.default", "aten.feature_dropout.default"}:
            return True
        same_shape = [str(size) for size in source.shape] == [str(size) for size in result.shape]
        if target.startswith(_CASTS):
            return source.dtype == result.dtype
        if target in _SCALINGS:
            return node.args[1] == 1 and source.dtype == result.dtype
        return target in _SAME_SHAPE and same_shape

    def _append(self, target: str, node: Any) -> None:
        args = tuple(self._argument(item) for item in node.args)
        kwargs = {key: self._argument(item) for key, item in node.kwargs.items() if key not in _DROPPED_OPTIONS}
        if target.startswith(_CASTS):
            target, args, kwargs = "aten.to.dtype", (args[0], _literal(node.meta["val"].dtype)), {}
        family, operator, *overload = target.split(".")
        in_place = family == "aten" and operator.endswith("_") and not operator.startswith("_")
        if in_place:
            target = ".".join([family, operator.rstrip("_"), *overload])
        result = node.meta.get("val")
        many = isinstance(result, (list, tuple))
        name = self._fresh(operator.strip("_"))
        shape, dtype = self._describe(result[0] if many else result)
        scope = _scope(node)
        self.tape.entries.append(Entry(Node(name, target, args, kwargs, shape, dtype), scope, many))
        self._values[node] = Ref(name)
        if in_place:
            self._overwrite(node, Ref(name), target)

    def _overwrite(self, node: Any, result: Ref, target: str) -> None:
        """From here on, whoever reads the tensor that ``node`` changed in place reads ``result``."""
        changed = node.args[0]
        aliases = [item for item, value in self._values.items() if value == self._values[changed]]
        if changed.op != "call_function" or target_name(changed.target).split(".")[1] in _VIEWS:
            raise CaptureError(f"the model writes into part of a tensor in place ({target}): not supported")
        for alias in aliases:
            self._values[alias] = result

    def _fresh(self, stem: str) -> str:
        number = self._names.get(stem, 0)
        self._names[stem] = number + 1
        return f"{stem}_{number}"

    def _argument(self, item: Any) -> Argument:
        if isinstance(item, torch.fx.Node):
            value = self._values[item]
            if isinstance(value, list):
                raise CaptureError(f"{item.name} is used as a whole tuple: not supported")
            argument: Argument = value
            return argument
        if isinstance(item, (list, tuple)):
            return ListArg(tuple(self._argument(part) for part in item))
        return _literal(item)

    def _dimension(self, size: Any) -> Argument:
        if isinstance(size, int):
            return Literal(size)
        expression = size.node.expr.subs(self._symbols)
        if expression.is_Integer:
            return Literal(int(expression))
        if str(expression) not in {"T", "N"}:
            raise CaptureError(f"the model asks for a size of {expression}: only T tokens and N sampled rows are known")
        return Literal(str(expression), "dim")

    def _describe(self, value: Any) -> tuple[tuple[Dim, ...] | None, str | None]:
        if not isinstance(value, torch.Tensor):
            return None, None
        sizes = [size if isinstance(size, int) else size.node.expr.subs(self._symbols) for size in value.shape]
        shape: tuple[Dim, ...] = tuple(
            int(size) if not getattr(size, "free_symbols", None) else str(size) for size in sizes
        )
        return shape, str(value.dtype).removeprefix("torch.")


def target_name(target: Any) -> str:
    """A target as text: aten.linear.default, higher_order.wrap_with_set_grad_enabled, operator.getitem."""
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001 - the only name of this class
        return f"{target.namespace}.{target._opname}.{target._overloadname}"  # noqa: SLF001
    if isinstance(target, torch._ops.HigherOrderOperator):  # noqa: SLF001
        return f"higher_order.{target.__name__}"
    return f"{target.__module__.strip('_')}.{target.__name__}"


def _literal(item: Any) -> Literal:
    if isinstance(item, torch.dtype):
        return Literal(str(item).removeprefix("torch."), "dtype")
    if isinstance(item, torch.device):
        return Literal(None, "device")
    if isinstance(item, torch.memory_format):
        return Literal(str(item).removeprefix("torch."), "memory_format")
    if isinstance(item, float) and not math.isfinite(item):
        return Literal(str(item), "float")
    if item is None or isinstance(item, (bool, int, float, str)):
        return Literal(item)
    raise CaptureError(f"an operator has an argument of type {type(item).__name__}: not supported")


def _tensor_of(argument: Any) -> Any:
    return argument.meta.get("val") if isinstance(argument, torch.fx.Node) else None


def _scope(node: Any) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return str(path).removeprefix("L['self'].").removeprefix("model.")


def _drop_dead(tape: Tape) -> None:
    needed, kept = {tape.output}, []
    for entry in reversed(tape.entries):
        if entry.node.name in needed:
            needed.update(node_references(entry.node))
            kept.append(entry)
    tape.entries = kept[::-1]
    tape.weights = {name: spec for name, spec in tape.weights.items() if name in needed}


def _refuse_token_mixing(tape: Tape) -> None:
    """Only `flexpipe::attend` may carry information between tokens: neighbours in a batch are strangers."""
    for entry in tape.entries:
        target = entry.node.target
        counts_tokens = target.startswith("aten.arange") and any(
            isinstance(item, Literal) and item.kind == "dim" for item in entry.node.args
        )
        if counts_tokens or target.startswith(_MIXES_TOKENS):
            where = entry.scope or "the model"
            raise CaptureError(f"{where} lets tokens see each other outside attention ({target}): not supported")
