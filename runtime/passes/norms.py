"""Recognises normalisations and activations that models spell out in elementary operators."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from .. import lowered
from .importing import Draft
from .matching import arguments, aten, call, either_order, is_call, shape_of

GELU_CUBIC = 0.044715
"""The coefficient of GELU's tanh approximation (Hendrycks and Gimpel, 2016)."""


def fuse_norms(draft: Draft) -> None:
    """RMSNorm and LayerNorm become one operator each; a norm of a transposed tensor is done before the transpose."""
    for node in draft.calls(aten.mul.Tensor):
        found = _rms_norm(draft, node)
        if found is not None:
            _replace(draft, node, lowered.rms_norm, *found)
    for node in draft.calls(aten.layer_norm.default):
        x, normalised, weight, bias, eps, *_ = (*arguments(node), None, None, None)
        if len(normalised) == 1:
            _replace(draft, node, lowered.layer_norm, x, weight, bias, 1e-5 if eps is None else eps)
    draft.drop_dead()


def fuse_gelu(draft: Draft) -> None:
    """The tanh approximation of GELU, spelled out by GPT-2 and Phi, becomes one operator."""
    for node in draft.calls(aten.mul.Tensor):
        for half, rest in either_order(node, aten.mul.Tensor):
            x = _scaled(half, 0.5)
            if x is not None and _is_tanh_part(rest, x):
                with draft.graph.inserting_before(node):
                    created = draft.graph.call_function(aten.gelu.default, (x,), {"approximate": "tanh"})
                created.meta["shape"] = node.meta["shape"]
                node.replace_all_uses_with(created)
                break
    draft.drop_dead()


def _rms_norm(draft: Draft, node: Node) -> tuple[Node, Node, float] | None:
    """``w * (x * rsqrt(mean(x**2, -1) + eps))`` as (x, w, eps)."""
    for weight, normalised in either_order(node, aten.mul.Tensor):
        if weight not in draft.recipes:
            continue
        for x, factor in either_order(normalised, aten.mul.Tensor):
            total = call(factor, aten.rsqrt.default)
            for mean, eps in either_order(total[0], aten.add.Tensor) if total else ():
                if _is_mean_square(mean, x) and isinstance(eps, float):
                    return x, weight, eps
    return None


def _is_mean_square(value: Any, x: Node) -> bool:
    mean = call(value, aten.mean.dim)
    if mean is None or list(mean[1]) != [-1] or mean[2:] != (True,):
        return False
    power = call(mean[0], aten.pow.Tensor_Scalar)
    return power == (x, 2) or call(mean[0], aten.mul.Tensor) == (x, x)


def _replace(draft: Draft, node: Node, target: Any, x: Node, *parameters: Any) -> None:
    transposed = call(x, aten.transpose.int)
    outside = transposed is not None and set(transposed[1:]) == {1, 2} and len(shape_of(x) or ()) == 4
    with draft.graph.inserting_before(node):
        if outside and transposed is not None:
            inner = draft.graph.call_function(target, (transposed[0], *parameters))
            inner.meta["shape"] = shape_of(transposed[0])
            created = draft.graph.call_function(aten.transpose.int, (inner, 1, 2))
        else:
            created = draft.graph.call_function(target, (x, *parameters))
    created.meta["shape"] = node.meta["shape"]
    node.replace_all_uses_with(created)


def _is_tanh_part(value: Any, x: Node) -> bool:
    """``tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)) + 1``."""
    for tanh, one in either_order(value, aten.add.Tensor):
        inner = call(tanh, aten.tanh.default)
        if inner is None or one != 1.0:
            continue
        total = _scaled(inner[0], math.sqrt(2 / math.pi))
        for first, second in either_order(total, aten.add.Tensor):
            cube = _scaled(second, GELU_CUBIC)
            if first is x and is_call(cube, aten.pow.Tensor_Scalar) and cube.args == (x, 3.0):
                return True
    return False


def _scaled(value: Any, factor: float) -> Any:
    """X where ``value`` is ``x * factor``, else None."""
    for x, number in either_order(value, aten.mul.Tensor):
        if isinstance(number, float) and math.isclose(number, factor, rel_tol=1e-6) and not isinstance(x, torch.Tensor):
            return x
    return None
