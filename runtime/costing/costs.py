"""What atoms cost, read off their graphs: arithmetic and memory traffic as functions of a step's load, and sizes.

Owns the accounting rules (below) and the roofline estimate. Knows no torch and measures nothing.

Rules. A linear layer of k in and n out costs 2kn floating-point operations a token and reads its weights once a step; a
mixture reads the experts that its tokens are expected to hit. Attention costs 2(key dim + value dim) per query head and
token pair, and reads each request's keys and values once a step. An embedding reads one row a token. Everything else is
elementwise and fuses into its neighbours: it costs its operations, and no traffic of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...policies.types import NS_PER_S, AtomCost
from ..program import ATTEND, EXPERT_LINEAR, Atom, AttentionLayer, Graph, Node, Program, Ref

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int8": 1, "bool": 1, "float64": 8}
"""Bytes per element, by torch's names."""

_VIEWS = frozenset({"view", "reshape", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze"}) | {
    "split", "split_with_sizes", "chunk", "unbind", "getitem", "t"
}  # fmt: skip
_BLOCKS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class StepLoad:
    """One step's work. ``requests`` rows bring ``tokens`` tokens in all; each row has ``context`` tokens, new ones included.

    ``sampled`` is how many rows want logits. `decode` and `prefill` make the two usual ones.
    """

    tokens: int
    requests: int
    context: int
    sampled: int

    def __post_init__(self) -> None:
        """Refuse a step that no scheduler would plan."""
        if not 1 <= self.requests <= self.tokens or self.context < 1 or not 0 <= self.sampled <= self.tokens:
            raise ValueError(f"{self} is no step: it needs requests <= tokens, a context, and sampled <= tokens")

    @classmethod
    def decode(cls, batch: int, context: int) -> StepLoad:
        """``batch`` requests that each draw one token after ``context`` tokens."""
        return cls(batch, batch, context, batch)

    @classmethod
    def prefill(cls, tokens: int) -> StepLoad:
        """One request's whole prompt."""
        return cls(tokens, 1, tokens, 1)

    def pairs(self, window: int | None) -> float:
        """How many (query, key) pairs attention scores: causal among the new tokens, all of the older ones, per window."""
        new = self.tokens / self.requests
        mean_seen = max(self.context - (new - 1) / 2, 1.0)
        return self.tokens * min(mean_seen, math.inf if window is None else window)


@dataclass(frozen=True, slots=True)
class Work:
    """``operations`` in FLOP; bytes moved from and to memory in one step: weights, KV pages, and activations."""

    operations: float = 0.0
    weight_traffic: float = 0.0
    kv_traffic: float = 0.0
    activation_traffic: float = 0.0

    @property
    def traffic(self) -> float:
        """All bytes moved."""
        return self.weight_traffic + self.kv_traffic + self.activation_traffic

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(
            self.operations + other.operations,
            self.weight_traffic + other.weight_traffic,
            self.kv_traffic + other.kv_traffic,
            self.activation_traffic + other.activation_traffic,
        )


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """What a device can do at best: ``operations_per_s`` in FLOP/s of matmuls, ``bytes_per_s`` of memory traffic.

    ``launch_s`` is the fixed cost of starting one atom's operators.
    """

    operations_per_s: float
    bytes_per_s: float
    launch_s: float = 0.0

    def seconds(self, work: Work) -> float:
        """The roofline: the longer of arithmetic and traffic."""
        return self.launch_s + max(work.operations / self.operations_per_s, work.traffic / self.bytes_per_s)


def atom_work(program: Program, atom: Atom, load: StepLoad, dtype: str = "float32") -> Work:
    """What one step of ``load`` costs ``atom`` when its weights, KV and activations are kept in ``dtype``."""
    graph = program.graphs[atom.graph]
    size = DTYPE_BYTES[dtype]
    shapes = _shapes(program, graph, atom)
    attention = _attention_of(program, atom)
    work = Work()
    for node in graph.nodes:
        work += _node_work(node, shapes, load, size, attention)
    return work


def weight_bytes(program: Program, atom: Atom, dtype: str = "float32") -> int:
    """Bytes of the weights that ``atom`` holds in ``dtype``; constants keep their own."""
    specs = [program.weights[name] for name in dict.fromkeys(atom.weights)]
    return sum(
        len(spec.value) if spec.value is not None else math.prod(spec.shape) * DTYPE_BYTES[dtype] for spec in specs
    )


def kv_bytes_per_token(program: Program, atom: Atom, dtype: str = "float32") -> int:
    """Bytes that ``atom`` keeps for each token of context; a window frees old blocks, so this is its upper bound."""
    layers = _attention_of(program, atom)
    return sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in layers.values()) * DTYPE_BYTES[dtype]


def activation_bytes(atom: Atom, load: StepLoad, dtype: str = "float32") -> int:
    """Bytes that cross the cut after ``atom`` in one step; 0 after the last."""
    elements = sum(_elements(shape, load) for shape, _ in atom.carries)
    return round(elements) * DTYPE_BYTES[dtype]


def blocks_of(atom: Atom) -> tuple[int, ...]:
    """The decoder layers that an atom's name speaks of: layers.3.mlp, layers.3, layers.3-4; none for embed and head."""
    found = _BLOCKS.match(atom.name)
    if found is None:
        return ()
    first = int(found[1])
    return tuple(range(first, int(found[2] or first) + 1))


def atom_costs(
    program: Program, load: StepLoad, seconds: Sequence[float], dtype: str = "float32"
) -> tuple[AtomCost, ...]:
    """The planner's view of all atoms under ``load``; ``seconds`` are their times, estimated or measured, in order."""
    return tuple(
        AtomCost(
            name=atom.name,
            compute_ns=round(time * NS_PER_S),
            weight_bytes=weight_bytes(program, atom, dtype),
            kv_bytes_per_token=kv_bytes_per_token(program, atom, dtype),
            activation_bytes=activation_bytes(atom, load, dtype),
            blocks=blocks_of(atom),
        )
        for atom, time in zip(program.atoms, seconds, strict=True)
    )


def estimated_seconds(program: Program, load: StepLoad, rates: DeviceRates, dtype: str = "float32") -> list[float]:
    """A roofline time for each atom, in order, where nothing has been measured. Equal atoms are costed once."""
    known: dict[int, float] = {}
    for atom in program.atoms:
        if atom.graph not in known:
            known[atom.graph] = rates.seconds(atom_work(program, atom, load, dtype))
    return [known[atom.graph] for atom in program.atoms]


Shape = tuple[int | str, ...]


def _node_work(
    node: Node, shapes: Mapping[str, Shape], load: StepLoad, size: int, attention: Mapping[int, AttentionLayer]
) -> Work:
    result = _elements(node.shape or (), load)
    if node.target == ATTEND:
        return _attend_work(node, shapes, load, size, attention)
    if node.target == EXPERT_LINEAR:
        return _expert_work(node, shapes, load, size, result)
    if node.target.startswith(("aten.linear.", "aten.mm.", "aten.addmm.", "aten.matmul.", "aten.bmm.")):
        return _linear_work(node, shapes, load, size, result)
    if node.target.startswith("aten.embedding."):
        return Work(weight_traffic=result * size, activation_traffic=result * size)
    return Work() if node.target.split(".")[1] in _VIEWS else Work(operations=result)


def _linear_work(node: Node, shapes: Mapping[str, Shape], load: StepLoad, size: int, result: float) -> Work:
    """Weight operands are those whose shape does not depend on the step; the rest are activations."""
    operands = [shapes[argument.name] for argument in node.args if isinstance(argument, Ref)]
    weights = [shape for shape in operands if not any(isinstance(dim, str) for dim in shape)]
    activations = [shape for shape in operands if any(isinstance(dim, str) for dim in shape)]
    inner = activations[0][-1] if activations else 1
    inputs = sum(_elements(shape, load) for shape in activations)
    return Work(
        operations=2 * result * _dim(inner, load),
        weight_traffic=sum(_elements(shape, load) for shape in weights) * size,
        activation_traffic=(inputs + result) * size,
    )


def _expert_work(node: Node, shapes: Mapping[str, Shape], load: StepLoad, size: int, result: float) -> Work:
    hidden, weight, _, chosen, transposed = node.args
    assert isinstance(hidden, Ref)
    assert isinstance(weight, Ref)
    assert isinstance(chosen, Ref)
    experts, *matrix = (_dim(dim, load) for dim in shapes[weight.name])
    inner = matrix[0] if getattr(transposed, "value", False) else matrix[1]
    choices = _elements(shapes[chosen.name], load)
    hit = experts * (1 - (1 - 1 / experts) ** choices)
    return Work(
        operations=2 * result * inner,
        weight_traffic=hit * math.prod(matrix) * size,
        activation_traffic=(_elements(shapes[hidden.name], load) + result) * size,
    )


def _attend_work(
    node: Node, shapes: Mapping[str, Shape], load: StepLoad, size: int, attention: Mapping[int, AttentionLayer]
) -> Work:
    layer = attention[int(getattr(node.args[3], "value", 0))]
    pairs = load.pairs(layer.window)
    seen = load.context if layer.window is None else min(load.context, layer.window + load.tokens // load.requests)
    kv_token = layer.kv_heads * (layer.key_dim + layer.value_dim) * size
    operands = [shapes[argument.name] for argument in node.args[:3] if isinstance(argument, Ref)]
    inputs = sum(_elements(shape, load) for shape in operands)
    return Work(
        operations=2 * pairs * layer.query_heads * (layer.key_dim + layer.value_dim),
        kv_traffic=load.requests * seen * kv_token,
        activation_traffic=(inputs + _elements(node.shape or (), load)) * size,
    )


def _attention_of(program: Program, atom: Atom) -> dict[int, AttentionLayer]:
    by_layer = {layer.layer: layer for layer in program.attention}
    return {ordinal: by_layer[layer] for ordinal, layer in enumerate(atom.layers)}


def _shapes(program: Program, graph: Graph, atom: Atom) -> dict[str, Shape]:
    """The shape of everything that a node of ``graph`` may name."""
    shapes: dict[str, Shape] = {"token_ids": (1, "T"), "positions": (1, "T"), "sample_tokens": ("N",)}
    shapes["hidden"] = (1, "T", program.hidden_size)
    shapes |= {slot: program.weights[name].shape for slot, name in zip(graph.weights, atom.weights, strict=True)}
    shapes |= {node.name: node.shape or () for node in (*program.prelude.nodes, *graph.nodes)}
    return shapes


def _elements(shape: Sequence[int | str], load: StepLoad) -> float:
    return math.prod(_dim(dim, load) for dim in shape)


def _dim(dim: int | str, load: StepLoad) -> float:
    """A dimension's size under ``load``. Expressions are products such as 2*T."""
    if isinstance(dim, int):
        return dim
    names = {"T": load.tokens, "N": load.sampled}
    return math.prod(names[factor] if factor in names else float(factor) for factor in dim.split("*"))
