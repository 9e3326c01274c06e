"""Small questions that all passes ask of torch.fx nodes. Knows operators' names, not what passes want with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten


def is_call(value: Any, *targets: Any) -> bool:
    """Whether ``value`` is a node that calls one of ``targets``."""
    return isinstance(value, Node) and value.op == "call_function" and value.target in targets


def call(value: Any, *targets: Any) -> tuple[Any, ...] | None:
    """The arguments of ``value`` where it calls one of ``targets`` (keywords left out), else None."""
    return tuple(value.args) if is_call(value, *targets) else None


def arguments(node: Node) -> tuple[Any, ...]:
    """A node's positional arguments, of whatever types they are."""
    return tuple(node.args)


def either_order(value: Any, target: Any) -> Iterator[tuple[Any, Any]]:
    """The two operands of a commutative call, in both orders; nothing where it is another call."""
    args = call(value, target)
    if args is not None and len(args) == 2 and not value.kwargs:
        yield args[0], args[1]
        yield args[1], args[0]


def shape_of(value: Any) -> tuple[Any, ...] | None:
    """A node's shape with "T" and "N" for dynamic sizes, None where unknown."""
    return value.meta.get("shape") if isinstance(value, Node) else None


def only_user(node: Node) -> Node | None:
    """The one node that reads ``node``; None where there are several, or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def through_views(value: Any) -> Any:
    """What lies under reshapes: the same elements in the same order."""
    while is_call(value, torch.Tensor.reshape):
        value = value.args[0]
    return value
