"""Where a model may be cut, by liveness: what must cross a cut, less what the other side can recompute for itself.

Owns the split of a tape into a prelude (functions of the step's inputs alone, which no cut need carry) and pieces (the
finest runs of operations worth moving). Knows nothing of costs or devices.

A cut is admissible where exactly one hidden state, [1, T, at most hidden size] in floating point, is alive. Everything
else follows: an attention operator is one node, so its KV stays whole; in a parallel-residual block (Phi, GPT-NeoX) two
values are alive inside, so such a block is not cut; a value shared across layers is alive between them and forbids
those cuts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..program import ATTEND, Literal, Node
from .tape import STEP_INPUTS, Entry, Tape, node_references

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
"""The first number in a module path is its layer: model.layers.3.mlp.experts.0 belongs to layer 3."""

_MATMULS = ("aten.linear.", "aten.addmm.", "aten.mm.", "aten.matmul.", "aten.bmm.", "flexpipe.expert_linear.")
_LAYER_ARGUMENT = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """A run ``[start, end)`` of the body that is never cut. ``crosses`` is the value alive after it, None at the end.

    ``layers`` are the attention layers inside; ``blocks`` the decoder layers whose modules it ran, empty for what comes
    before the first (embedding) and after the last (head).
    """

    name: str
    start: int
    end: int
    layers: tuple[int, ...]
    blocks: tuple[int, ...]
    crosses: str | None


@dataclass(frozen=True, slots=True)
class Division:
    """A tape in two kinds of entries: ``recomputable`` from the step's inputs, and the ``body``, cut into ``pieces``."""

    recomputable: tuple[Entry, ...]
    body: tuple[Entry, ...]
    pieces: tuple[Piece, ...]


def divide(tape: Tape, hidden_size: int) -> Division:
    """Cut ``tape`` as finely as is worthwhile. ``hidden_size`` bounds what may cross, in elements per token."""
    recomputable, body = _separate(tape)
    cuts = list(_admissible_cuts(body, tape.output, hidden_size))
    bounds = [(0, None), *cuts, (len(body), None)]
    pieces = [_describe(body, start, end, crosses) for (start, _), (end, crosses) in pairwise(bounds)]
    return Division(recomputable, body, _named(_merge(body, pieces)))


def attend_layer(node: Node) -> int:
    """The layer that an attend node of a tape appends to."""
    argument = node.args[_LAYER_ARGUMENT]
    assert isinstance(argument, Literal)
    assert isinstance(argument.value, int)
    return argument.value


def _separate(tape: Tape) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Split off what depends on token ids, positions and constants only; sampled rows and weights bind the rest."""
    free = {name for name in STEP_INPUTS if name != "sample_tokens"}
    free |= {name for name, spec in tape.weights.items() if spec.value is not None}
    recomputable, body = [], []
    for entry in tape.entries:
        if all(name in free for name in node_references(entry.node)):
            free.add(entry.node.name)
            recomputable.append(entry)
        else:
            body.append(entry)
    return tuple(recomputable), tuple(body)


def _admissible_cuts(body: Sequence[Entry], output: str, hidden_size: int) -> Iterator[tuple[int, str]]:
    """(index, value): the body may be cut before ``index``, and ``value`` is all that crosses."""
    producers = {entry.node.name: entry for entry in body}
    last_use = {output: len(body)}
    for index, entry in enumerate(body):
        last_use.update((name, max(index, last_use.get(name, 0))) for name in node_references(entry.node))
    alive: set[str] = set()
    for index, entry in enumerate(body[:-1]):
        alive.add(entry.node.name)
        alive = {name for name in alive if last_use.get(name, -1) > index}
        if len(alive) == 1 and _is_hidden_state(producers[next(iter(alive))], hidden_size):
            yield index + 1, next(iter(alive))


def _is_hidden_state(entry: Entry, hidden_size: int) -> bool:
    match entry.node.shape:
        case (1, "T", int(width)):
            return not entry.many and width <= hidden_size and "float" in (entry.node.dtype or "")
    return False


def _describe(body: Sequence[Entry], start: int, end: int, crosses: str | None) -> Piece:
    inside = body[start:end]
    layers = tuple(attend_layer(entry.node) for entry in inside if entry.node.target == ATTEND)
    blocks = {int(found[1]) for entry in inside if (found := _LAYER.search(entry.scope))}
    return Piece("", start, end, layers, tuple(sorted(blocks)), crosses)


def _merge(body: Sequence[Entry], pieces: list[Piece]) -> list[Piece]:
    """Join the slivers: what lies outside the layers becomes one embedding and one head, norms join their own layer."""
    last_block = max((i for i, piece in enumerate(pieces) if piece.blocks), default=len(pieces) - 1)
    merged: list[Piece] = []
    for i, piece in enumerate(pieces):
        if merged and _belongs_to_previous(body, merged[-1], piece, in_head=i > last_block):
            merged[-1] = _join(merged[-1], piece)
        else:
            merged.append(piece)
    return _join_leading_slivers(body, merged)


def _belongs_to_previous(body: Sequence[Entry], previous: Piece, piece: Piece, *, in_head: bool) -> bool:
    if not piece.blocks:
        return not previous.blocks or not in_head
    return previous.blocks == piece.blocks and not _works(body, piece)


def _join_leading_slivers(body: Sequence[Entry], pieces: list[Piece]) -> list[Piece]:
    """A sliver that opens its layer (a norm before the first matmul) joins the piece after it."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].blocks and not _works(body, joined[-1]):
            joined[-1] = _join(joined[-1], piece)
        else:
            joined.append(piece)
    return joined


def _works(body: Sequence[Entry], piece: Piece) -> bool:
    return any(
        entry.node.target == ATTEND or entry.node.target.startswith(_MATMULS) for entry in body[piece.start : piece.end]
    )


def _join(first: Piece, second: Piece) -> Piece:
    blocks = tuple(sorted({*first.blocks, *second.blocks}))
    return Piece("", first.start, second.end, first.layers + second.layers, blocks, second.crosses)


def _named(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Name the pieces: embed, layers.0.attention, layers.0.mlp, layers.3 for a whole block, layers.3-4, head."""
    per_block: dict[tuple[int, ...], int] = {}
    for piece in pieces:
        per_block[piece.blocks] = per_block.get(piece.blocks, 0) + 1
    named: list[Piece] = []
    taken: set[str] = set()
    for piece in pieces:
        name = _name(piece, first=not named, alone=per_block[piece.blocks] == 1)
        unique, number = name, 1
        while unique in taken:
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique)
        named.append(replace(piece, name=unique))
    return tuple(named)


def _name(piece: Piece, *, first: bool, alone: bool) -> str:
    if not piece.blocks:
        return "embed" if first else "head"
    low, high = piece.blocks[0], piece.blocks[-1]
    block = f"layers.{low}" if low == high else f"layers.{low}-{high}"
    if alone:
        return block
    return f"{block}.attention" if piece.layers else f"{block}.mlp"
