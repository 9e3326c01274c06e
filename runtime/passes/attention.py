"""Turns ``flexpipe::attend`` and the rotary arithmetic around it into one operator on token-major tensors."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from .. import lowered
from .importing import Draft, attend_marker
from .matching import arguments, aten, call, either_order, is_call, shape_of, through_views

SLICE_TO_END = 1 << 62
"""Slices whose end is beyond this reach to the end of their axis."""


def lower_attention(draft: Draft) -> None:
    """Replace each marker by `lowered.attend`, with the rotation inside where query and key share its tables."""
    for node in draft.calls(attend_marker):
        query, key, value, ordinal, scale, window, softcap, sinks = arguments(node)
        cos: Node | None = None
        sin: Node | None = None
        turned_query, turned_key = _rotation(query), _rotation(key)
        if turned_query is not None and turned_key is not None and turned_query[1:] == turned_key[1:]:
            (query, cos, sin), key = turned_query, turned_key[0]
        with draft.graph.inserting_before(node):
            layer = draft.graph.call_function(operator.getitem, (draft.layers, ordinal))
            operands = [_token_major(draft, heads) for heads in (query, key, value)]
            created = draft.graph.call_function(
                lowered.attend, (draft.step, layer, *operands, cos, sin, scale, window, softcap, sinks)
            )
            batch, tokens, heads, width = node.meta["shape"]
            created.meta["shape"] = (batch, tokens, heads * width)
            shaped = draft.graph.call_function(torch.Tensor.reshape, (created, (1, -1, heads, width)))
            shaped.meta["shape"] = node.meta["shape"]
        node.replace_all_uses_with(shaped)
    draft.drop_dead()


def _token_major(draft: Draft, heads: Node) -> Node:
    """``heads`` [1, H, T, D] as [1, T, H * D]; a transpose that is there already is undone instead."""
    transposed = call(heads, aten.transpose.int)
    shape = shape_of(heads)
    assert shape is not None
    if transposed is not None and set(transposed[1:]) == {1, 2}:
        tokens = transposed[0]
    else:
        tokens = draft.graph.call_function(aten.transpose.int, (heads, 1, 2))
        tokens.meta["shape"] = (shape[0], shape[2], shape[1], shape[3])
    width = shape[1] * shape[3]
    base = through_views(tokens)
    if shape_of(base) == (shape[0], shape[2], width):
        return base  # type: ignore[no-any-return]
    flat = draft.graph.call_function(torch.Tensor.reshape, (tokens, (1, -1, width)))
    flat.meta["shape"] = (shape[0], shape[2], width)
    return flat


def _rotation(value: Any) -> tuple[Node, Node, Node] | None:
    """(x, cos, sin) where ``value`` is x with its first axes rotated, all of them or the first r."""
    whole = _full_rotation(value)
    if whole is not None:
        return whole
    parts = call(value, aten.cat.default)
    if parts is None or parts[1:] not in {(-1,), (3,)} or len(parts[0]) != 2:
        return None
    rotated, rest = _full_rotation(parts[0][0]), _slice(parts[0][1])
    first = _slice(rotated[0]) if rotated is not None else None
    if rotated is None or rest is None or first is None:
        return None
    (x, start, end), (same, rest_start, rest_end) = first, rest
    if x is same and start == 0 and end == rest_start and rest_end > SLICE_TO_END:
        return x, rotated[1], rotated[2]
    return None


def _full_rotation(value: Any) -> tuple[Node, Node, Node] | None:
    """``x * cos + cat(-x[half:], x[:half]) * sin`` as (x, cos, sin)."""
    for straight, crossed in either_order(value, aten.add.Tensor):
        for turned, sin in either_order(crossed, aten.mul.Tensor):
            x = _quarter_turn(turned)
            if x is None:
                continue
            for same, cos in either_order(straight, aten.mul.Tensor):
                if same is x and shape_of(cos) is not None and shape_of(cos) == shape_of(sin):
                    return x, cos, sin
    return None


def _quarter_turn(value: Any) -> Node | None:
    """X where ``value`` is ``cat(-x[half:], x[:half])`` along the last axis, else None."""
    parts = call(value, aten.cat.default)
    if (
        parts is None
        or parts[1:] not in {(-1,), (3,)}
        or len(parts[0]) != 2
        or not is_call(parts[0][0], aten.neg.default)
    ):
        return None
    high, low = _slice(parts[0][0].args[0]), _slice(parts[0][1])
    if high is None or low is None or high[0] is not low[0]:
        return None
    shape = shape_of(high[0])
    half = shape[-1] // 2 if shape else None
    return high[0] if high[1] == half and high[2] > SLICE_TO_END and low[1:] == (0, half) else None


def _slice(value: Any) -> tuple[Node, int, int] | None:
    """(x, start, end) where ``value`` is a slice of x along the last of four axes."""
    args = call(value, aten.slice.Tensor)
    if args is None or len(args) != 4 or args[1] not in {3, -1}:
        return None
    x, _, start, end = args
    return x, start, end
