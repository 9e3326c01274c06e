"""Some decoder layers go to another device: what the user wrote, and the stages that come of it.

Pure: values in, values out. The layers are cut out of the stages that hold them; what is left of those stages stays. They
join the stage on that device where they touch it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .reassignment import HeldStage, ReassignmentError, SameShapeError, WantedStage
from .types import AtomCost

_MOVE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?:(cpu|cuda):(\d{1,4})", re.ASCII)


class MoveError(ReassignmentError):
    """What was written is no move of this model's layers."""


class BrokenRunError(ReassignmentError):
    """A stage would hold two separate runs of atoms."""


@dataclass(frozen=True, slots=True)
class Move:
    """Atoms ``[first_atom, end_atom)``, which are decoder layers ``first_layer`` to ``last_layer``, to ``device``."""

    first_layer: int
    last_layer: int
    first_atom: int
    end_atom: int
    device: str


def parse_move(text: str, atoms: Sequence[AtomCost]) -> Move:
    """What ``text`` asks for: "12-17:cpu:3" is decoder layers 12 to 17 to device cpu:3, "12:cpu:3" layer 12 alone.

    As in a partition by layers the embedding goes with the first layer and the head with the last. Raises `MoveError`.
    """
    match = _MOVE.fullmatch(text.strip())
    if match is None:
        raise MoveError(f"move {text!r} is not layers and a device; write 12-17:cpu:3 to move layers 12 to 17 to cpu:3")
    first, last = int(match[1]), int(match[2] or match[1])
    layers = sorted({block for atom in atoms for block in atom.blocks})
    if first > last:
        raise MoveError(f"move {text!r} runs backwards; write {last}-{first}")
    if not (layers and layers[0] <= first <= last <= layers[-1]):
        raise MoveError(f"move {text!r} goes beyond the model, which has layers {_span(layers)}")
    moved = [place for place, atom in enumerate(atoms) if any(first <= block <= last for block in atom.blocks)]
    for place in (moved[0], moved[-1]):
        blocks = atoms[place].blocks
        if blocks[0] < first or blocks[-1] > last:
            raise MoveError(f"{atoms[place].name} is one piece: move all of layers {_span(blocks)}, or none")
    first_atom = 0 if first == layers[0] else moved[0]
    end_atom = len(atoms) if last == layers[-1] else moved[-1] + 1
    return Move(first, last, first_atom, end_atom, f"{match[3]}:{int(match[4])}")


def stages_after(move: Move, present: Sequence[HeldStage], atoms: Sequence[AtomCost]) -> tuple[WantedStage, ...]:
    """The stages that ``move`` makes of the present ones, in order. Raises `SameShapeError` and `BrokenRunError`."""
    first, end = move.first_atom, move.end_atom
    holder = next((stage for stage in present if stage.device == move.device), None)
    if holder is not None:
        if holder.first_atom <= first and end <= holder.end_atom:
            layers = _span(range(move.first_layer, move.last_layer + 1))
            raise SameShapeError(f"{move.device} already holds layers {layers}; nothing was changed")
        if first > holder.end_atom or holder.first_atom > end:
            raise _broken(move, holder, atoms)
        first, end = min(first, holder.first_atom), max(end, holder.end_atom)
    left = [WantedStage(s.first_atom, min(s.end_atom, first)) for s in present if s.first_atom < first and s != holder]
    right = [WantedStage(max(s.first_atom, end), s.end_atom) for s in present if s.end_atom > end and s != holder]
    return (*left, WantedStage(first, end, move.device), *right)


def _broken(move: Move, holder: HeldStage, atoms: Sequence[AtomCost]) -> BrokenRunError:
    if move.end_atom < holder.first_atom:
        joining = range(move.first_atom, holder.first_atom)
    else:
        joining = range(holder.end_atom, move.end_atom)
    wider = _span([block for place in joining for block in atoms[place].blocks])
    return BrokenRunError(
        f"{move.device} holds {atoms[holder.first_atom].name} to {atoms[holder.end_atom - 1].name}, which layers "
        f"{_span((move.first_layer, move.last_layer))} do not touch, and a stage holds one run; move {wider}:{move.device}, "
        "or name a free device"
    )


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]}-{layers[-1]}" if layers and layers[0] != layers[-1] else ", ".join(map(str, layers[:1]))
