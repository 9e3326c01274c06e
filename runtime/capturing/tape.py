"""A model as a flat tape of pure tensor operations, each knowing which module it came from.

Owns the value between recording and cutting, and the reading of references out of arguments. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..program import Argument, ListArg, Node, Ref, WeightSpec

STEP_INPUTS = ("token_ids", "positions", "sample_tokens")
"""What every step brings to every stage: int64 [1, T], [1, T] and [N]."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One operation. ``scope`` is the path of the module that ran it; ``many`` says that its result is a tuple."""

    node: Node
    scope: str
    many: bool = False


@dataclass(slots=True)
class Tape:
    """Operations in order of execution. Weights and constants appear in arguments under their checkpoint names."""

    entries: list[Entry] = field(default_factory=list)
    weights: dict[str, WeightSpec] = field(default_factory=dict)
    output: str = ""


def references(argument: Argument) -> list[str]:
    """The names that ``argument`` refers to, in order."""
    if isinstance(argument, Ref):
        return [argument.name]
    if isinstance(argument, ListArg):
        return [name for item in argument.items for name in references(item)]
    return []


def node_references(node: Node) -> list[str]:
    """The names that ``node`` reads, in order, with repeats."""
    return [name for argument in (*node.args, *node.kwargs.values()) for name in references(argument)]
