"""Pieces of a tape in canonical form, so that equal atoms (same computation, other weights) share one graph.

Owns the naming: operations are counted within their graph, weights become slots named as in their own layer, attention
layers become ordinals, the hidden state is "hidden". Knows nothing of torch, costs or devices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from ..program import ATTEND, Argument, Atom, AttentionLayer, Dim, Graph, ListArg, Literal, Node, Ref, WeightSpec
from .cut_points import Division, Piece, attend_layer
from .tape import STEP_INPUTS, Entry, node_references

HIDDEN = "hidden"
"""The graph input that is the hidden state from the atom before."""

PRELUDE_PREFIX = "prelude."
"""Marks the prelude's values among an atom's inputs."""

_UP_TO_LAYER = re.compile(r"^.*?\.\d+\.")


@dataclass(frozen=True, slots=True)
class Assembly:
    """A program's computation: the parts of `Program` that come from the graph."""

    graphs: tuple[Graph, ...]
    prelude: Graph
    prelude_weights: tuple[str, ...]
    atoms: tuple[Atom, ...]
    attention: tuple[AttentionLayer, ...]


def assemble(division: Division, weights: Mapping[str, WeightSpec], output: str) -> Assembly:
    """Turn ``division`` into shared graphs and the atoms that instantiate them. ``output`` names the logits."""
    recomputable, renamed = _without_repeats(division.recomputable)
    body = [replace(entry, node=_renamed(entry.node, renamed)) for entry in division.body]
    users = _piece_users(recomputable, body, division.pieces)
    shared = [entry for entry in recomputable if len(users[entry.node.name]) > 1 or None in users[entry.node.name]]
    prelude, prelude_weights, prelude_names = _prelude(shared, recomputable, body, weights)

    graphs: dict[bytes, int] = {}
    distinct: list[Graph] = []
    atoms: list[Atom] = []
    entering: str | None = None
    for index, piece in enumerate(division.pieces):
        private = [entry for entry in recomputable if users[entry.node.name] == {index}]
        entries = [*private, *body[piece.start : piece.end]]
        leaving = piece.crosses or output
        graph, names = _canonical(entries, weights, prelude_names, entering, leaving)
        key = msgspec.json.encode(graph)
        if key not in graphs:
            graphs[key] = len(distinct)
            distinct.append(graph)
        atoms.append(Atom(piece.name, graphs[key], names, piece.layers, _carries(body, piece)))
        entering = piece.crosses
    attention = tuple(_attention_layer(entry.node, body) for entry in body if entry.node.target == ATTEND)
    return Assembly(tuple(distinct), prelude, prelude_weights, tuple(atoms), attention)


def _without_repeats(entries: Sequence[Entry]) -> tuple[list[Entry], dict[str, str]]:
    """Common subexpressions: every layer derives the same tables from the positions; say it once."""
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    kept: list[Entry] = []
    for entry in entries:
        node = _renamed(entry.node, renamed)
        key = msgspec.json.encode((node.target, node.args, node.kwargs))
        if key in first:
            renamed[node.name] = first[key]
        else:
            first[key] = node.name
            kept.append(replace(entry, node=node))
    return kept, renamed


def _piece_users(
    recomputable: Sequence[Entry], body: Sequence[Entry], pieces: Sequence[Piece]
) -> dict[str, set[int | None]]:
    """For each recomputable value the pieces that need it, directly or through other recomputable values."""
    users: dict[str, set[int | None]] = {entry.node.name: set() for entry in recomputable}
    for index, piece in enumerate(pieces):
        for entry in body[piece.start : piece.end]:
            for name in node_references(entry.node):
                if name in users:
                    users[name].add(index)
    for entry in reversed(recomputable):
        for name in node_references(entry.node):
            if name in users:
                users[name] |= users[entry.node.name]
    return users


def _prelude(
    shared: Sequence[Entry], recomputable: Sequence[Entry], body: Sequence[Entry], weights: Mapping[str, WeightSpec]
) -> tuple[Graph, tuple[str, ...], dict[str, str]]:
    """The graph of what several atoms need; its outputs are what nodes outside it read."""
    inside = {entry.node.name for entry in shared}
    outside = [entry for entry in (*recomputable, *body) if entry.node.name not in inside]
    read = {name for entry in outside for name in node_references(entry.node)}
    exported = [entry.node.name for entry in shared if entry.node.name in read]
    naming = _Naming(weights, {}, prefix=PRELUDE_PREFIX)
    nodes = tuple(naming.place(entry.node) for entry in shared)
    outputs = tuple(naming.names[name] for name in exported)
    graph = Graph(naming.inputs(), tuple(naming.slots.values()), nodes, outputs)
    return graph, tuple(naming.slots), {name: naming.names[name] for name in exported}


def _canonical(
    entries: Sequence[Entry],
    weights: Mapping[str, WeightSpec],
    prelude_names: Mapping[str, str],
    entering: str | None,
    leaving: str,
) -> tuple[Graph, tuple[str, ...]]:
    given = dict(prelude_names)
    if entering is not None:
        given[entering] = HIDDEN
    naming = _Naming(weights, given)
    nodes = tuple(naming.place(entry.node) for entry in entries)
    graph = Graph(naming.inputs(), tuple(naming.slots.values()), nodes, (naming.names[leaving],))
    return graph, tuple(naming.slots)


class _Naming:
    """Gives the names of one graph in order of first use, so that equal computations come out equal."""

    def __init__(self, weights: Mapping[str, WeightSpec], given: Mapping[str, str], prefix: str = "") -> None:
        self.names: dict[str, str] = {name: name for name in STEP_INPUTS} | dict(given)
        self.slots: dict[str, str] = {}
        self._weights = weights
        self._given = set(self.names.values())
        self._prefix = prefix
        self._read: dict[str, None] = {}
        self._counts: dict[str, int] = {}
        self._ordinals: dict[int, int] = {}

    def inputs(self) -> tuple[str, ...]:
        """The given names that were read: the hidden state first, then in order of use."""
        return tuple(sorted(self._read, key=lambda name: name != HIDDEN))

    def place(self, node: Node) -> Node:
        """``node`` with this graph's names."""
        args = tuple(self._argument(argument) for argument in node.args)
        kwargs = {key: self._argument(argument) for key, argument in node.kwargs.items()}
        if node.target == ATTEND:
            ordinal = self._ordinals.setdefault(attend_layer(node), len(self._ordinals))
            args = (*args[:3], Literal(ordinal), *args[4:])
        stem = node.target.split(".")[1]
        number = self._counts.get(stem, 0)
        self._counts[stem] = number + 1
        self.names[node.name] = f"{self._prefix}{stem}_{number}"
        return Node(self.names[node.name], node.target, args, kwargs, node.shape, node.dtype)

    def _argument(self, argument: Argument) -> Argument:
        if isinstance(argument, ListArg):
            return ListArg(tuple(self._argument(item) for item in argument.items))
        if isinstance(argument, Ref):
            return Ref(self._slot(argument.name) if argument.name in self._weights else self._name(argument.name))
        return argument

    def _name(self, name: str) -> str:
        placed = self.names[name]
        if placed in self._given:
            self._read[placed] = None
        return placed

    def _slot(self, weight: str) -> str:
        if weight not in self.slots:
            stem = slot = _UP_TO_LAYER.sub("", weight)
            number = 1
            while slot in self.slots.values():
                number += 1
                slot = f"{stem}_{number}"
            self.slots[weight] = slot
        return self.slots[weight]


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    if not any(name in names for name in node_references(node)):
        return node
    args = tuple(_renamed_argument(argument, names) for argument in node.args)
    kwargs = {key: _renamed_argument(argument, names) for key, argument in node.kwargs.items()}
    return Node(node.name, node.target, args, kwargs, node.shape, node.dtype)


def _renamed_argument(argument: Argument, names: Mapping[str, str]) -> Argument:
    if isinstance(argument, Ref):
        return Ref(names.get(argument.name, argument.name))
    if isinstance(argument, ListArg):
        return ListArg(tuple(_renamed_argument(item, names) for item in argument.items))
    return argument


def _carries(body: Sequence[Entry], piece: Piece) -> tuple[tuple[tuple[Dim, ...], str], ...]:
    if piece.crosses is None:
        return ()
    node = next(entry.node for entry in body if entry.node.name == piece.crosses)
    assert node.shape is not None
    assert node.dtype is not None
    return ((node.shape, node.dtype),)


def _attention_layer(node: Node, body: Sequence[Entry]) -> AttentionLayer:
    shapes = {entry.node.name: entry.node.shape for entry in body}
    query, key, value = (shapes[name] for name in node_references(node)[:3])
    window = node.args[5]
    assert query is not None
    assert key is not None
    assert value is not None
    assert isinstance(window, Literal)
    return AttentionLayer(
        layer=attend_layer(node),
        kv_heads=int(key[1]),
        key_dim=int(key[3]),
        value_dim=int(value[3]),
        query_heads=int(query[1]),
        window=None if window.value is None else int(window.value),
    )
