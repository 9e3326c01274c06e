"""Which atoms of the model a worker holds, and how they come and go while others compute.

A load runs beside steps, in another thread: it builds new atoms aside and makes them known at its end, in one assignment. The
weights come from what is resident, then from this host's shared copy (`warm_weights`), then from the checkpoint.

Whatever needs Python for long is done once, before there are steps: lowering graphs and reading the checkpoint's headers would
hold the GIL, for which a step asks after every operator.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from .atom_loader import AtomLoader, LoadedAtom
from .device_memory import DeviceMemory
from .interface import EngineError, EngineSpec, ModelFiles, OutOfMemoryError, StageFacts, WeightSources
from .kv_pages import KvPages
from .lowered import Backend
from .lowering import LoweredGraph, lower
from .program import Program
from .warm_weights import SharedForm, WarmWeights, warm_key
from .weights import Checkpoint, WeightsError


class ResidentAtoms:
    """See the module. One load at a time; `run_of` and `drop` are called by the thread that computes."""

    def __init__(
        self,
        spec: EngineSpec,
        files: ModelFiles,
        program: Program,
        backend: Backend,
        pages: KvPages,
        dtype: torch.dtype,
        memory: DeviceMemory,
    ) -> None:
        self._spec = spec
        self._files = files
        self._program = program
        self._backend = backend
        self._pages = pages
        self._dtype = dtype
        self._memory = memory
        shapes = {node.name: node.shape for node in program.prelude.nodes if node.shape is not None}
        self._prelude_graph = lower(program.prelude, backend, {})
        self._lowered = [lower(graph, backend, shapes) for graph in program.graphs]
        self._warm = WarmWeights(files.warm_folder, backend if isinstance(backend, SharedForm) else None)
        self._checkpoint: Checkpoint | None = None
        self._identity: tuple[Any, ...] = ()
        self._changing = threading.Lock()
        self._prelude: LoadedAtom | None = None
        self._atoms: dict[int, LoadedAtom] = {}
        memory.count(self._weight_bytes)

    def load(self, atoms: range, backend_reason: str, progress: Callable[[int, int], None]) -> StageFacts:
        """Make ``atoms`` resident beside those that are; what they weigh, and where their weights came from."""
        kept = [atom for atom in atoms if atom in self._atoms]
        lacking = [atom for atom in atoms if atom not in self._atoms]
        with self._opened() as checkpoint:
            loader = AtomLoader(
                checkpoint, self._program, self._backend, self._dtype, self._memory, progress, self._warm, self._key
            )
            try:
                new = self._load_new(lacking, loader)
            except MemoryError as error:
                raise OutOfMemoryError(
                    f"The stage's weights do not fit: {error}; give the stage fewer layers"
                ) from error
        self._memory.check_stated(sum(loaded.nbytes for loaded in new.values()))
        return self._facts(atoms, self._admit(new, kept), kept, loader, backend_reason)

    def run_of(self, atoms: range) -> tuple[LoadedAtom, list[LoadedAtom]]:
        """The prelude and ``atoms`` in order. Raises `EngineError` where one is not resident."""
        resident = self._atoms
        lacking = [atom for atom in atoms if atom not in resident]
        if lacking or self._prelude is None or not atoms:
            raise EngineError(f"Atoms {lacking or list(atoms)} were asked to run; their weights were not loaded")
        return self._prelude, [resident[atom] for atom in atoms]

    def layers(self, atoms: range) -> tuple[int, ...]:
        """The layers whose pages ``atoms`` own."""
        return tuple(sorted(layer for atom in atoms for layer in self._program.atoms[atom].layers))

    def drop(self, keep: range, blocks: int) -> int:
        """Let go of atoms outside ``keep``, of their layers' pages, and of KV blocks from ``blocks`` on; the bytes they took."""
        with self._changing:
            freed = sum(loaded.nbytes for atom, loaded in self._atoms.items() if atom not in keep)
            self._atoms = {atom: loaded for atom, loaded in self._atoms.items() if atom in keep}
        return freed + self._pages.drop(self.layers(keep), blocks)

    def _weight_bytes(self) -> int:
        return sum(loaded.nbytes for loaded in self._atoms.values()) + (self._prelude.nbytes if self._prelude else 0)

    def _load_new(self, atoms: list[int], loader: AtomLoader) -> dict[int, LoadedAtom]:
        described = [self._program.atoms[atom] for atom in atoms]
        if self._prelude is None:
            self._prelude = loader.bind("prelude", self._prelude_graph, self._program.prelude_weights, ())
        loader.expect([(self._lowered[each.graph], each.weights) for each in described])
        new = {}
        for atom, each in zip(atoms, described, strict=True):
            layers = tuple(self._pages.make(layer) for layer in each.layers)
            new[atom] = loader.bind(each.name, self._lowered[each.graph], each.weights, layers)
        return new

    def _admit(self, new: dict[int, LoadedAtom], kept: list[int]) -> dict[int, LoadedAtom]:
        """Let everyone see ``new``; gives all that are resident.

        Raises `EngineError` where atoms that were not loaded anew are gone meanwhile.
        """
        with self._changing:
            gone = [atom for atom in kept if atom not in self._atoms]
            if gone:
                raise EngineError(f"Atoms {gone} were dropped while a load counted on them; load again")
            self._pages.add(layer for loaded in new.values() for layer in loaded.layers)
            self._atoms = self._atoms | new
            return self._atoms

    def _facts(
        self, atoms: range, resident: dict[int, LoadedAtom], kept: list[int], loader: AtomLoader, backend_reason: str
    ) -> StageFacts:
        layers = self.layers(atoms)
        sizes = tuple(self._pages.page_bytes(layer) for layer in layers)
        return StageFacts(
            weight_bytes=sum(resident[atom].nbytes for atom in atoms),
            kv_bytes_per_block=sum(sizes),
            memory_free_bytes=self._memory.free_bytes(),
            layers=layers,
            page_bytes=sizes,
            blocks_held=tuple(len(self._pages.layers[layer].pages) for layer in layers),
            page_layout=f"{self._backend.name}, {self._pages.layout}",
            backend=backend_reason,
            weights=WeightSources(
                kept_bytes=sum(resident[atom].nbytes for atom in kept),
                warm_bytes=loader.warm_bytes,
                disk_bytes=loader.disk_bytes,
            ),
        )

    def _opened(self) -> Checkpoint:
        """The checkpoint, its headers read once. Raises `WeightsError` where its files changed since."""
        if self._checkpoint is None:
            self._checkpoint = Checkpoint(Path(self._files.folder))
            self._identity = self._checkpoint.identity()
        elif self._checkpoint.identity() != self._identity:
            raise WeightsError(
                f"The weights in {self._files.folder} changed while they were served; restart the server"
            )
        return self._checkpoint

    def _key(self, graph: LoweredGraph, names: Sequence[str]) -> str:
        """The key under which the weights ``names`` of ``graph`` are shared: all that decides their bytes."""
        specs = [msgspec.msgpack.encode(self._program.weights[name]) for name in names]
        return warm_key(self._identity, self._backend.name, self._spec.dtype, graph.digest, specs)
