"""Drops the leading axis of one from graphs where nothing looks at it: a view costs a microsecond, a layer had ten.

A graph is *flat* where its hidden state comes and goes as [T, W] instead of [1, T, W]. Graphs with operators that this
pass does not know stay as they were captured.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from .. import lowered
from .importing import Draft
from .matching import arguments, aten

_ROW_WISE = frozenset(
    {
        lowered.rms_norm,
        lowered.layer_norm,
        lowered.linear,
        lowered.linear_add,
        lowered.attend,
        aten.add.Tensor,
        aten.mul.Tensor,
        aten.gelu.default,
        aten.relu.default,
        aten.silu.default,
    }
)
"""Operators that treat each token's row alike, whatever axes lie before it."""


def flatten_tokens(draft: Draft) -> None:
    """Make the graph flat where all of its operators allow it."""
    calls = [node for node in draft.graph.nodes if node.op == "call_function"]
    hidden = [node for node in draft.inputs if _is_hidden(node)]
    if len(hidden) != 1 or not all(_allows(draft, node) for node in calls):
        return
    for node in draft.calls(torch.Tensor.reshape):
        source, sizes = arguments(node)
        node.args = (source, tuple(sizes[1:]) if sizes[0] == 1 else tuple(sizes))
    draft.flat = True


def _is_hidden(node: Node) -> bool:
    """Whether an input is more than a table for attention to rotate by."""
    return any(user.target is not lowered.attend for user in node.users)


def _allows(draft: Draft, node: Node) -> bool:
    target: Any = node.target
    if target is torch.Tensor.reshape:
        sizes = arguments(node)[1]
        return bool(isinstance(sizes, tuple) and sizes[:2] == (1, -1) and len(sizes) > 2)
    if target is torch.Tensor.split_with_sizes:
        return bool(arguments(node)[2] == -1)
    if target is aten.split.Tensor:
        return arguments(node)[2:] in {(-1,), (2,)} and _make_last(node)
    if target is operator.getitem:
        return not _picks_rows(draft, node)
    return bool(target in _ROW_WISE)


def _make_last(node: Node) -> bool:
    """Count the split axis of [1, T, W] from its end."""
    node.args = (*node.args[:2], -1)
    return True


def _picks_rows(draft: Draft, node: Node) -> bool:
    """Whether an index goes into a tensor instead of the layers or the parts of a split."""
    source = arguments(node)[0]
    return source is not draft.layers and source.target not in {torch.Tensor.split_with_sizes, aten.split.Tensor}
