"""Which atoms of the model a worker holds, and how they come and go while others compute.

A load runs beside steps, in another thread: it builds new atoms aside and makes them known at its end, in one assignment. The
weights come from what is resident, then from this host's shared copy (`warm_weights`), then from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .atom_loader import AtomLoader, LoadedAtom
from .device_memory import free_bytes
from .interface import EngineError, EngineSpec, StageFacts, WeightSources
from .kv_pages import KvPages
from .lowered import Backend
from .lowering import LoweredGraph, lower
from .program import Program
from .warm_weights import WarmWeights, warm_key
from .weights import Checkpoint


class ResidentAtoms:
    """See the module. One load at a time; `run_of` and `drop` are called by the thread that computes."""

    def __init__(
        self,
        spec: EngineSpec,
        program: Program,
        backend: Backend,
        pages: KvPages,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._spec = spec
        self._program = program
        self._backend = backend
        self._pages = pages
        self._dtype = dtype
        self._device = device
        self._lowered: dict[int, LoweredGraph] = {}
        self._shapes = {node.name: node.shape for node in program.prelude.nodes if node.shape is not None}
        self._prelude: LoadedAtom | None = None
        self._atoms: dict[int, LoadedAtom] = {}
        self._bytes: dict[int, int] = {}

    def load(self, atoms: range, backend_reason: str, progress: Callable[[int, int], None]) -> StageFacts:
        """Make ``atoms`` resident beside those that are; what they weigh, and where their weights came from."""
        kept = [atom for atom in atoms if atom in self._atoms]
        with Checkpoint(Path(self._spec.model_folder)) as checkpoint:
            loader = AtomLoader(
                checkpoint, self._program, self._backend, self._dtype, self._device, progress, self._warm(checkpoint)
            )
            new = self._load_new([atom for atom in atoms if atom not in self._atoms], loader)
        self._bytes |= {atom: loader.bytes_of[loaded.name] for atom, loaded in new.items()}
        self._atoms = self._atoms | new  # another thread may be reading the old one
        layers = self._layers(atoms)
        sizes = [self._pages.page_bytes(layer) for layer in layers]
        return StageFacts(
            weight_bytes=sum(self._bytes[atom] for atom in atoms),
            kv_bytes_per_block=sum(sizes),
            memory_free_bytes=free_bytes(self._device),
            layers=layers,
            page_bytes=tuple(sizes),
            page_layout=f"{self._backend.name} {self._spec.dtype}",
            backend=backend_reason,
            weights=WeightSources(
                kept_bytes=sum(self._bytes[atom] for atom in kept),
                warm_bytes=loader.warm_bytes,
                disk_bytes=loader.disk_bytes,
            ),
        )

    def run_of(self, atoms: range) -> tuple[LoadedAtom, list[LoadedAtom]]:
        """The prelude and ``atoms`` in order. Raises `EngineError` where one is not resident."""
        resident = self._atoms
        lacking = [atom for atom in atoms if atom not in resident]
        if lacking or self._prelude is None or not atoms:
            raise EngineError(f"Atoms {lacking or list(atoms)} were asked to run; their weights were not loaded")
        return self._prelude, [resident[atom] for atom in atoms]

    def first_run(self) -> range:
        """The first run of neighbouring resident atoms."""
        first = end = min(self._atoms)
        while end in self._atoms:
            end += 1
        return range(first, end)

    def drop(self, keep: range) -> int:
        """Let go of atoms outside ``keep`` and of their layers' pages; the bytes that they took."""
        gone = [atom for atom in self._atoms if atom not in keep]
        freed = sum(self._bytes.pop(atom) for atom in gone)
        self._atoms = {atom: loaded for atom, loaded in self._atoms.items() if atom in keep}
        return freed + self._pages.drop(self._layers(keep))

    def _load_new(self, atoms: list[int], loader: AtomLoader) -> dict[int, LoadedAtom]:
        program = self._program
        if self._prelude is None:
            graph = lower(program.prelude, self._backend, {})
            self._prelude = loader.bind("prelude", graph, program.prelude_weights, ())
        loader.expect([name for atom in atoms for name in program.atoms[atom].weights])
        new = {}
        for atom in atoms:
            described = program.atoms[atom]
            layers = tuple(self._pages.layer(layer) for layer in described.layers)
            new[atom] = loader.bind(described.name, self._graph(described.graph), described.weights, layers)
        return new

    def _graph(self, index: int) -> LoweredGraph:
        """The callable of a graph, lowered once for all atoms that share it."""
        if index not in self._lowered:
            self._lowered[index] = lower(self._program.graphs[index], self._backend, self._shapes)
        return self._lowered[index]

    def _layers(self, atoms: range) -> tuple[int, ...]:
        return tuple(sorted(layer for atom in atoms for layer in self._program.atoms[atom].layers))

    def _warm(self, checkpoint: Checkpoint) -> tuple[WarmWeights, Callable[[str], str]]:
        """This host's shared copy, and the key of an atom in it. A backend without a form to share keeps nothing."""
        folder = self._spec.warm_folder if hasattr(self._backend, "freeze") else ""
        common: tuple[Any, ...] = (checkpoint.identity(), self._spec.program_file, self._backend.name, self._spec.dtype)
        return WarmWeights(folder, self._backend), lambda name: warm_key(*common, name)
