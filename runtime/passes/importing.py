"""From a program's graph (plain data) to a torch.fx graph that passes can rewrite.

Owns the resolution of operator names. Placeholders come in this order: ``step``, ``layers`` (the KV layers by ordinal),
the graph's inputs, its weight slots. Every node carries ``meta["shape"]`` with "T" and "N" for dynamic sizes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..interface import EngineError
from ..program import ATTEND, EXPERT_LINEAR, Argument, Dim, Graph, ListArg, Node, Ref
from ..recipes import AnyRecipe, Slot

_SHAPING = frozenset({"aten.view.default", "aten.reshape.default", "aten.expand.default"})
_DYNAMIC_SIZES = {"T": "tokens", "N": "samples"}
_CONSTANTS = {"memory_format": torch, "dtype": torch}


@dataclass(slots=True)
class Draft:
    """A graph under construction. ``recipes`` says for each weight placeholder how to make its tensor at load time.

    ``flat`` says that the hidden state comes and goes as [T, W] (see `flat`).
    """

    graph: torch.fx.Graph
    step: torch.fx.Node
    layers: torch.fx.Node
    inputs: tuple[torch.fx.Node, ...]
    recipes: dict[torch.fx.Node, AnyRecipe]
    added: int = 0
    flat: bool = False

    def add_weight(self, recipe: AnyRecipe, shape: tuple[int, ...] | None = None) -> torch.fx.Node:
        """A placeholder for a weight that ``recipe`` makes; ``shape`` where a pass needs to know it."""
        last = next(node for node in reversed(self.graph.nodes) if node.op == "placeholder")
        with self.graph.inserting_after(last):
            created = self.graph.placeholder(f"derived_{self.added}")
        self.added += 1
        self.recipes[created] = recipe
        created.meta["shape"] = shape
        return created

    def calls(self, target: Any) -> list[torch.fx.Node]:
        """All calls of ``target``, in order of execution."""
        return [node for node in self.graph.nodes if node.op == "call_function" and node.target is target]

    def drop_dead(self) -> None:
        """Remove what nobody reads, weights included; the step and the inputs stay."""
        for node in reversed(list(self.graph.nodes)):
            if not node.users and (node.op == "call_function" or node in self.recipes):
                self.recipes.pop(node, None)
                self.graph.erase_node(node)


def attend_marker(*_args: Any) -> Any:
    """Stands for ``flexpipe::attend`` until the attention pass replaces it."""
    raise NotImplementedError("flexpipe::attend was not lowered")


def expert_linear_marker(*_args: Any) -> Any:
    """Stands for ``flexpipe::expert_linear`` until the linear pass replaces it."""
    raise NotImplementedError("flexpipe::expert_linear was not lowered")


def import_graph(source: Graph, shapes: Mapping[str, tuple[Dim, ...]]) -> Draft:
    """The fx graph of ``source``, whose inputs have ``shapes`` where they are known.

    Raises `EngineError` where it names an operator that this torch does not have.
    """
    graph = torch.fx.Graph()
    step, layers = graph.placeholder("step"), graph.placeholder("layers")
    inputs = {name: _placeholder(graph, name, shapes.get(name)) for name in source.inputs}
    weights = {name: _placeholder(graph, name) for name in source.weights}
    draft = Draft(graph, step, layers, tuple(inputs.values()), {weights[name]: Slot(name) for name in weights})
    values: dict[str, Any] = {**inputs, **weights}
    for node in source.nodes:
        values[node.name] = _import_node(draft, node, values)
    graph.output(tuple(values[name] for name in source.outputs))
    return draft


def resolve(target: str) -> Any:
    """The callable that an operator's name stands for."""
    if target == ATTEND:
        return attend_marker
    if target == EXPERT_LINEAR:
        return expert_linear_marker
    family, _, name = target.partition(".")
    if family == "operator":
        return getattr(operator, name)
    packet, _, overload = name.partition(".")
    try:
        return getattr(getattr(getattr(torch.ops, family), packet), overload)
    except AttributeError as error:
        raise EngineError(
            f"The program calls {target}, which this torch does not have; capture the model again"
        ) from error


def _placeholder(graph: torch.fx.Graph, name: str, shape: tuple[Dim, ...] | None = None) -> torch.fx.Node:
    node = graph.placeholder(name.replace(".", "_"))
    node.meta["shape"] = shape
    return node


def _import_node(draft: Draft, node: Node, values: dict[str, Any]) -> torch.fx.Node:
    args = tuple(_argument(draft, argument, values) for argument in node.args)
    kwargs = {key: _argument(draft, argument, values) for key, argument in node.kwargs.items()}
    target = resolve(node.target)
    if node.target in _SHAPING and node.shape is not None:
        sizes = _static_sizes(node.shape)
        if sizes is not None and node.target != "aten.expand.default":
            target, args, kwargs = torch.Tensor.reshape, (args[0], sizes), {}
    created = draft.graph.call_function(target, args, kwargs)
    created.meta["shape"] = node.shape
    return created


def _static_sizes(shape: tuple[Dim, ...]) -> tuple[int, ...] | None:
    """Sizes for a reshape that needs no look at the step: -1 for the dynamic one, where there is only one."""
    if sum(isinstance(size, str) for size in shape) > 1:
        return None
    return tuple(-1 if isinstance(size, str) else size for size in shape)


def _argument(draft: Draft, argument: Argument, values: dict[str, Any]) -> Any:
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, ListArg):
        return [_argument(draft, item, values) for item in argument.items]
    value, kind = argument.value, argument.kind
    if kind == "dim":
        return draft.graph.call_function(getattr, (draft.step, _DYNAMIC_SIZES[str(value)]))
    if kind == "device":
        return draft.graph.call_function(getattr, (draft.step, "device"))
    if kind == "float":
        return float(str(value))
    if kind in _CONSTANTS:
        return getattr(torch, str(value))
    return value
