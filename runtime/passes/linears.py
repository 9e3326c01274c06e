"""Linear layers: neighbours merged, gates and residuals taken in, weights packed for the backend."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from .. import lowered
from ..recipes import Computed, PackedExperts, PackedGated, PackedLinear, Recipe, Slot, Stacked
from .importing import Draft, expert_linear_marker
from .matching import arguments, aten, call, either_order, is_call, only_user, shape_of, through_views

CHAIN_MAX = 6
"""Unary operators followed from a linear layer on the way to its attention: reshape, norm, transpose, rotation's slices."""

_UNARY = (torch.Tensor.reshape, aten.transpose.int, lowered.rms_norm)
_ACTIVATIONS = {"relu": aten.relu.default, "silu": aten.silu.default}


def merge_siblings(draft: Draft) -> None:
    """Linear layers of the same input that feed the same attention become one layer, whose output is split."""
    groups: dict[tuple[Node, Node], list[Node]] = defaultdict(list)
    for node in draft.calls(aten.linear.default):
        attention = _attention_fed_by(node)
        if attention is not None and _plain_parameters(draft, node) is not None:
            groups[arguments(node)[0], attention].append(node)
    for members in groups.values():
        if len(members) > 1 and len({_bias(member) is None for member in members}) == 1:
            _merge(draft, members)
    draft.drop_dead()


def fuse_gates(draft: Draft) -> None:
    """``activation(a) * b`` becomes one operator where both are linear layers of one input, or halves of one tensor."""
    for node in draft.calls(aten.mul.Tensor):
        for activated, other in either_order(node, aten.mul.Tensor):
            name = activation_of(activated)
            replacement = _gated(draft, node, activated.args[0], other, name) if name else None
            if replacement is not None:
                replacement.meta["shape"] = node.meta["shape"]
                node.replace_all_uses_with(replacement)
                break
    draft.drop_dead()


def pack_linears(draft: Draft) -> None:
    """Give every linear layer its weight in the backend's form, with the activation that follows it."""
    for node in draft.calls(aten.linear.default):
        parameters = _plain_parameters(draft, node)
        if parameters is None:
            continue
        name = _take_activation(node)
        node.target, node.args = lowered.linear, (_flattened(node), draft.add_weight(PackedLinear(*parameters, name)))
    for node in draft.calls(expert_linear_marker):
        hidden, weight, bias, experts, transposed = arguments(node)
        recipes = draft.recipes[weight], None if bias is None else draft.recipes[bias]
        packed = draft.add_weight(PackedExperts(*recipes, transposed))  # type: ignore[arg-type]
        node.target, node.args = lowered.expert_linear, (hidden, packed, experts)
    draft.drop_dead()


def fuse_residuals(draft: Draft) -> None:
    """``residual + linear(x)`` becomes `lowered.linear_add`."""
    for node in draft.calls(aten.add.Tensor):
        for residual, addend in either_order(node, aten.add.Tensor):
            layer = through_views(addend)
            if not (is_call(layer, lowered.linear) and _used_once_along(addend, layer)):
                continue
            if not _same_elements(draft, residual, addend, node):
                continue
            with draft.graph.inserting_before(node):
                created = draft.graph.call_function(lowered.linear_add, (*layer.args, residual))
            created.meta["shape"] = node.meta["shape"]
            node.replace_all_uses_with(created)
            break
    draft.drop_dead()


def activation_of(value: Any) -> str | None:
    """The name of the activation that ``value`` calls, of those that backends know."""
    if is_call(value, aten.gelu.default):
        return "gelu_tanh" if value.kwargs.get("approximate") == "tanh" else "gelu"
    return next((name for name, target in _ACTIVATIONS.items() if is_call(value, target)), None)


def _take_activation(linear: Node) -> str:
    """Remove the activation that alone reads ``linear``, directly or through one reshape, and give its name."""
    before, user = linear, only_user(linear)
    if user is not None and is_call(user, torch.Tensor.reshape):
        before, user = user, only_user(user)
    name = activation_of(user)
    if user is None or name is None:
        return "none"
    user.replace_all_uses_with(before)
    return name


def _attention_fed_by(linear: Node) -> Node | None:
    """The attention that ``linear`` alone leads to through unary operators."""
    source, node = linear, only_user(linear)
    for _ in range(CHAIN_MAX):
        if node is None or is_call(node, lowered.attend):
            return node
        if not is_call(node, *_UNARY) or node.args[0] is not source:
            return None
        source, node = node, only_user(node)
    return None


def _merge(draft: Draft, members: Sequence[Node]) -> None:
    """One linear layer in the place of the first of ``members``, and its parts in theirs."""
    parameters = [_plain_parameters(draft, member) for member in members]
    weight = draft.add_weight(Stacked([each[0] for each in parameters if each is not None]))
    biases = [each[1] for each in parameters if each is not None and each[1] is not None]
    bias = draft.add_weight(Stacked(biases)) if biases else None
    widths = [int((shape_of(member) or (0,))[-1]) for member in members]
    with draft.graph.inserting_before(members[0]):
        merged = draft.graph.call_function(aten.linear.default, (members[0].args[0], weight, bias))
        merged.meta["shape"] = (*members[0].meta["shape"][:-1], sum(widths))
        parts = draft.graph.call_function(torch.Tensor.split_with_sizes, (merged, widths, -1))
        for index, member in enumerate(members):
            part = draft.graph.call_function(operator.getitem, (parts, index))
            part.meta["shape"] = member.meta["shape"]
            member.replace_all_uses_with(part)


def _gated(draft: Draft, product: Node, gate: Any, up: Any, activation: str) -> Node | None:
    """The operator for ``activation(gate) * up``, placed before ``product``."""
    if is_call(gate, aten.linear.default) and is_call(up, aten.linear.default) and gate.args[0] is up.args[0]:
        first, second = _plain_parameters(draft, gate), _plain_parameters(draft, up)
        if first is None or second is None or len(gate.users) != 1 or len(up.users) != 1:
            return None
        packed = draft.add_weight(PackedGated(first[0], second[0], first[1], second[1], activation))
        with draft.graph.inserting_before(product):
            return draft.graph.call_function(lowered.linear, (gate.args[0], packed))
    whole = _halves(gate, up)
    if whole is None:
        return None
    with draft.graph.inserting_before(product):
        return draft.graph.call_function(lowered.gated, (whole, activation))


def _bias(linear: Node) -> Any:
    return linear.args[2] if len(linear.args) > 2 else None


def _plain_parameters(draft: Draft, linear: Node) -> tuple[Recipe, Recipe | None] | None:
    """The recipes of weight and bias where both are weights of the atom, else None."""
    weight, bias = draft.recipes.get(linear.args[1]), draft.recipes.get(_bias(linear))  # type: ignore[arg-type]
    if not isinstance(weight, Slot | Computed | Stacked) or (bias is None) != (_bias(linear) is None):
        return None
    return (weight, bias) if bias is None or isinstance(bias, Slot | Computed | Stacked) else None


def _halves(first: Any, second: Any) -> Node | None:
    """The tensor of which ``first`` and ``second`` are the two halves along the last axis."""
    one, two = call(first, operator.getitem), call(second, operator.getitem)
    if one is None or two is None or one[0] is not two[0] or (one[1], two[1]) != (0, 1):
        return None
    split = call(one[0], aten.chunk.default)
    return split[0] if split is not None and split[1:] == (2, -1) else None


def _flattened(node: Node) -> Any:
    """A linear layer's input without reshapes that only join leading axes, where the result is reshaped anyway."""
    source = node.args[0]
    if not all(is_call(user, torch.Tensor.reshape) for user in node.users):
        return source
    base, shape = through_views(source), shape_of(source)
    under = shape_of(base)
    if shape is None or under is None or under[-1] != shape[-1]:
        return source
    node.meta["shape"] = (*under[:-1], node.meta["shape"][-1])
    return base


def _used_once_along(value: Node, end: Node) -> bool:
    """Whether nobody else reads ``value`` or what lies under its reshapes down to ``end``."""
    while len(value.users) == 1:
        if value is end:
            return True
        value = value.args[0]  # type: ignore[assignment]
    return False


def _same_elements(draft: Draft, residual: Any, addend: Node, total: Node) -> bool:
    """Whether the sum broadcasts nothing: the residual has a token's worth of elements for each token."""
    if not isinstance(residual, Node) or residual in draft.recipes or shape_of(addend) != shape_of(total):
        return False
    return residual in draft.inputs or shape_of(residual) == shape_of(total)
