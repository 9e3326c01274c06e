"""A captured model as data: shared graphs, the atoms that instantiate them, and the weights they name.

Owns the value that capture produces, the planner costs, and a stage executes; it is plain data (msgspec JSON on disk,
never pickle), so a stage process needs neither transformers nor a new export. Knows no torch.

Shapes: a captured graph sees a flattened ragged batch as ``[1, T, ...]``; ``T`` (tokens) and ``N`` (rows whose logits
are wanted) are dynamic and appear as the strings "T" and "N" in shapes; other entries are ints.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

PROGRAM_VERSION = 1
"""Bumped when a stored program can no longer be read; older files are captured anew."""

Dim = int | str

ATTEND = "flexpipe.attend.default"
"""The target of attention nodes; `runtime.capturing.operators` has its schema."""

EXPERT_LINEAR = "flexpipe.expert_linear.default"
"""The target of linear layers that a router chooses per token; `runtime.capturing.operators` has its schema."""


class Ref(msgspec.Struct, frozen=True, tag="ref"):
    """An argument that is another value of the same graph: a node, an input or a weight slot, by name."""

    name: str


class Literal(msgspec.Struct, frozen=True, tag="lit"):
    """An argument that is a constant: int, float, bool, str, None.

    ``kind`` says how to read ``value``: "plain"; "dtype" ("float32"); "dim" ("T" or "N", this step's size); "device"
    (None: the stage's own); "memory_format" ("contiguous_format"); "float" ("inf", "-inf", "nan", which JSON lacks).
    """

    value: int | float | bool | str | None
    kind: str = "plain"


class ListArg(msgspec.Struct, frozen=True, tag="list"):
    """An argument that is a list of arguments (shapes, cat inputs)."""

    items: tuple[Argument, ...]


Argument = Ref | Literal | ListArg


class Node(msgspec.Struct, frozen=True):
    """One operator call. ``target`` is "aten.linear.default", "flexpipe.attend.default", "operator.getitem", ...

    ``shape`` and ``dtype`` describe its (first) tensor result; None where the result is a symbolic int.
    """

    name: str
    target: str
    args: tuple[Argument, ...]
    kwargs: dict[str, Argument] = {}
    shape: tuple[Dim, ...] | None = None
    dtype: str | None = None


class Graph(msgspec.Struct, frozen=True):
    """A straight-line computation shared by equal atoms.

    ``inputs`` are, in order, values named at the program's level: step inputs ("token_ids", "positions",
    "sample_tokens"), prelude values, and the hidden values from the atom before ("hidden", "hidden_1", ...).
    ``weights`` are slots that each atom binds to its own weight names. ``attend`` nodes carry a layer *ordinal* within
    the graph as their ``layer`` argument; the atom maps it to its real layer. Names of nodes hold no dot (but for the
    prelude's, which start with "prelude."), names of slots do or may.
    """

    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]


class AttentionLayer(msgspec.Struct, frozen=True):
    """The KV needs of one attention layer. ``window`` is None for full attention, else tokens seen, itself included."""

    layer: int
    kv_heads: int
    key_dim: int
    value_dim: int
    query_heads: int
    window: int | None = None


class Atom(msgspec.Struct, frozen=True):
    """The finest piece that is moved as a whole. ``weights[i]`` fills slot i of ``graphs[graph].weights``.

    ``carries`` describes what crosses the cut *after* this atom: (shape, dtype) of each hidden value, usually one.
    """

    name: str
    graph: int
    weights: tuple[str, ...]
    layers: tuple[int, ...]
    carries: tuple[tuple[tuple[Dim, ...], str], ...]


class WeightSpec(msgspec.Struct, frozen=True):
    """A stored tensor. ``name`` is its key in the checkpoint; ``value`` holds small constants that no checkpoint has.

    ``value`` is base64 on disk, little-endian, in ``dtype``. ``tied_to`` names the checkpoint key that this weight shares,
    so a plan can say that it is duplicated. ``stacked``, where not empty, says that checkpoints hold it in parts (a
    mixture's experts): row e of axis 0 is the concatenation along axis 0 of the tensors that ``stacked[e]`` names.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    value: bytes | None = None
    tied_to: str | None = None
    stacked: tuple[tuple[str, ...], ...] = ()


class Program(msgspec.Struct, frozen=True):
    """A whole decoder-only model. ``prelude`` recomputes, from the step's inputs alone, what many atoms share.

    A stage runs the prelude (cheap: rotary tables, positions) and then its atoms in order.
    """

    version: int
    architecture: str
    model: str
    hidden_size: int
    vocabulary_size: int
    context_tokens: int
    graphs: tuple[Graph, ...]
    prelude: Graph
    prelude_weights: tuple[str, ...]
    atoms: tuple[Atom, ...]
    weights: dict[str, WeightSpec]
    attention: tuple[AttentionLayer, ...]

    def stage_weights(self, first_atom: int, end_atom: int) -> tuple[str, ...]:
        """Names of the weights that atoms [first_atom, end_atom) own, prelude constants included, without repeats."""
        names = [*self.prelude_weights]
        for atom in self.atoms[first_atom:end_atom]:
            names.extend(atom.weights)
        return tuple(dict.fromkeys(names))


def save_program(program: Program, path: Path) -> None:
    """Write ``program`` as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(program))
    partial.replace(path)


def load_program(path: Path) -> Program:
    """Read a program; raises `msgspec.MsgspecError` where the file is not one of this version."""
    program: Program = msgspec.json.decode(path.read_bytes(), type=Program)
    if program.version != PROGRAM_VERSION:
        raise msgspec.ValidationError(
            f"{path} holds program version {program.version}, this build reads {PROGRAM_VERSION}"
        )
    return program
