"""Moves work from every step to load time: expressions of weights alone, transposed weights, factors on linear layers."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..recipes import Computed, Slot, Stacked
from .importing import Draft
from .matching import arguments, aten, either_order, is_call, only_user


def fold_constants(draft: Draft) -> None:
    """Replace every call whose only tensors are weights by a weight (Gemma's ``1 + w``)."""
    for node in list(draft.graph.nodes):
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        if all(isinstance(draft.recipes.get(source), Slot | Computed | Stacked) for source in node.all_input_nodes):
            folded = draft.add_weight(_computed(draft, node), node.meta["shape"])
            node.replace_all_uses_with(folded)
    draft.drop_dead()


def addmm_to_linear(draft: Draft) -> None:
    """``addmm(bias, x, w)`` (GPT-2 stores its weights the other way round) becomes ``linear(x, w.T, bias)``."""
    for node in draft.calls(aten.addmm.default):
        bias, x, weight = arguments(node)
        recipe = draft.recipes.get(weight)
        if not isinstance(recipe, Slot | Computed | Stacked) or bias not in draft.recipes or node.kwargs:
            continue
        turned = draft.add_weight(Computed(aten.t.default, (recipe,), {}))
        with draft.graph.inserting_before(node):
            created = draft.graph.call_function(aten.linear.default, (x, turned, bias))
        created.meta["shape"] = node.meta["shape"]
        node.replace_all_uses_with(created)
    draft.drop_dead()


def scale_into_linear(draft: Draft) -> None:
    """``linear(x, w, b) * c`` becomes ``linear(x, w * c, b * c)`` (OPT scales its queries)."""
    for node in draft.calls(aten.mul.Tensor):
        for value, factor in either_order(node, aten.mul.Tensor):
            if not (is_call(value, aten.linear.default) and isinstance(factor, float) and only_user(value) is node):
                continue
            recipes = [draft.recipes.get(operand) for operand in value.args[1:]]
            if not all(isinstance(recipe, Slot | Computed | Stacked) for recipe in recipes):
                continue
            scaled = [draft.add_weight(Computed(aten.mul.Tensor, (recipe, factor), {})) for recipe in recipes]
            value.args = (value.args[0], *scaled)
            node.replace_all_uses_with(value)
            break
    draft.drop_dead()


def _computed(draft: Draft, node: Node) -> Computed:
    def recipe_or_value(argument: Any) -> Any:
        return draft.recipes[argument] if isinstance(argument, Node) else argument

    assert callable(node.target)
    return Computed(node.target, tuple(recipe_or_value(argument) for argument in node.args), dict(node.kwargs))
