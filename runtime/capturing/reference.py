"""Runs a captured program one operator after another on one request: the readable judge of every faster path.

Owns the meaning of a program's operators, spelled in plain torch: dense attention over the whole sequence, no cache, no
batch of several requests, no speed.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch

from ..program import ATTEND, EXPERT_LINEAR, Argument, Atom, Graph, ListArg, Literal, Node, Program, Ref

_LITERALS: dict[str, Any] = {
    "float": float,
    "dtype": lambda name: getattr(torch, name),
    "memory_format": lambda name: getattr(torch, name),
    "device": lambda _: torch.device("cpu"),
}


def run_atoms(
    program: Program,
    first_atom: int,
    end_atom: int,
    weights: Mapping[str, torch.Tensor],
    step: Mapping[str, torch.Tensor],
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run atoms [first_atom, end_atom) on one whole request.

    ``weights`` by checkpoint name; ``step`` holds "token_ids" and "positions" int64 [1, T] and "sample_tokens" int64 [N];
    ``hidden`` [1, T, H] enters unless ``first_atom`` is 0. Returns the hidden state, or logits [1, N, vocabulary].
    """
    sizes = {"T": step["positions"].shape[1], "N": step["sample_tokens"].shape[0]}
    constants = {name: weights[name] for name in program.prelude_weights}
    given = dict(step) | dict(zip(program.prelude.outputs, _run(program.prelude, constants, step, sizes), strict=True))
    for atom in program.atoms[first_atom:end_atom]:
        given |= {} if hidden is None else {"hidden": hidden}
        (hidden,) = _run(program.graphs[atom.graph], _bound(atom, weights), given, sizes)
    assert hidden is not None
    return hidden


def constant_tensors(program: Program) -> dict[str, torch.Tensor]:
    """The weights that the program itself holds, by name."""
    return {
        name: torch.frombuffer(bytearray(spec.value), dtype=getattr(torch, spec.dtype)).reshape(spec.shape)
        for name, spec in program.weights.items()
        if spec.value is not None
    }


def _bound(atom: Atom, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weights[name] for name in atom.weights}


def _run(
    graph: Graph, weights: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> list[torch.Tensor]:
    values: dict[str, Any] = dict(given) | dict(zip(graph.weights, weights.values(), strict=True))
    for node in graph.nodes:
        args = [_value(argument, values, sizes) for argument in node.args]
        kwargs = {key: _value(argument, values, sizes) for key, argument in node.kwargs.items()}
        values[node.name] = _operator(node)(*args, **kwargs)
    return [values[name] for name in graph.outputs]


def _value(argument: Argument, values: Mapping[str, Any], sizes: Mapping[str, int]) -> Any:
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, ListArg):
        return [_value(item, values, sizes) for item in argument.items]
    assert isinstance(argument, Literal)
    if argument.kind == "dim":
        return sizes[str(argument.value)]
    return _LITERALS[argument.kind](argument.value) if argument.kind in _LITERALS else argument.value


def _operator(node: Node) -> Any:
    own = {ATTEND: _attend, EXPERT_LINEAR: _expert_linear}
    if node.target in own:
        return own[node.target]
    if node.target.startswith("operator."):
        return getattr(operator, node.target.removeprefix("operator."))
    return reduce(getattr, node.target.split("."), torch.ops)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    index = torch.arange(query.shape[2])
    distance = index[:, None] - index[None, :]
    unseen = (distance < 0) | (distance >= (window or len(index)))
    scores = scores.masked_fill(unseen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    shares = torch.softmax(scores, -1)[..., : len(index)]
    return (shares @ value).transpose(1, 2).contiguous()


def _expert_linear(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, experts: torch.Tensor, transposed: bool
) -> torch.Tensor:
    chosen = weight[experts] if transposed else weight[experts].transpose(-1, -2)
    result = (hidden.unsqueeze(-2) @ chosen).squeeze(-2)
    return result if bias is None else result + bias[experts]
