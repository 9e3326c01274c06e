"""An atom ready to run, and how its weights get there: the shared copy, or checkpoint → recipe → backend's form, one at a time.

Owns the counting of bytes and the progress told. Knows nothing of steps and batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from .device_memory import DeviceMemory
from .interface import OutOfMemoryError
from .kv_pages import KvLayer
from .lowered import Backend
from .lowering import LoweredGraph
from .program import Program
from .warm_weights import WarmWeights
from .weights import Checkpoint

WarmKey = Callable[[LoweredGraph, Sequence[str]], str]
"""Names the shared copy of an atom's weights."""


@dataclass(frozen=True, slots=True)
class LoadedAtom:
    """An atom ready to run. ``head`` marks what only sampled tokens need: it reads ``sample_tokens`` and no KV.

    ``nbytes`` is what its weights take.
    """

    name: str
    call: Callable[..., tuple[torch.Tensor, ...]]
    inputs: tuple[str, ...]
    layers: tuple[KvLayer, ...]
    weights: tuple[Any, ...]
    head: bool
    flat: bool
    nbytes: int

    def run(self, step: Any, values: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Compute from ``values`` by name; the hidden state is brought into the form that the graph takes."""
        hidden = values.get("hidden")
        if hidden is not None and (hidden.dim() == 2) != self.flat:
            values["hidden"] = hidden[0] if self.flat else hidden[None]
        return self.call(step, self.layers, *[values[name] for name in self.inputs], *self.weights)


class AtomLoader:
    """Builds weights from a checkpoint, counting bytes and telling progress."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        program: Program,
        backend: Backend,
        dtype: torch.dtype,
        memory: DeviceMemory,
        progress: Callable[[int, int], None],
        warm: WarmWeights,
        warm_key: WarmKey,
    ) -> None:
        self.warm_bytes = 0
        self.disk_bytes = 0
        self._warm = warm
        self._warm_key = warm_key
        self._checkpoint = checkpoint
        self._program = program
        self._backend = backend
        self._dtype = dtype
        self._memory = memory
        self._progress = progress
        self._sizes: dict[str, int] = {}
        self._done = 0

    def expect(self, weights: Sequence[tuple[LoweredGraph, Sequence[str]]]) -> None:
        """Say which weights are to come, atom by atom; raises where one is missing or memory cannot hold them all."""
        stored = {name: self._program.weights[name] for _, names in weights for name in names}
        self._sizes = {name: self._checkpoint.stored_bytes(spec) for name, spec in stored.items() if spec.value is None}
        own = (names for graph, names in weights if not self._warm.holds(self._warm_key(graph, names)))
        shapes = (stored[name].shape for names in own for name in names if name in self._sizes)
        needed = sum(prod(shape) * self._dtype.itemsize for shape in shapes)
        free = self._memory.free_bytes()
        if needed > free:
            raise OutOfMemoryError(
                f"The stage's weights need {needed} bytes, {self._memory.name} has {free} free; give the stage fewer layers"
            )

    def bind(self, name: str, graph: LoweredGraph, names: Sequence[str], layers: tuple[KvLayer, ...]) -> LoadedAtom:
        """An atom's callable with its own weights."""
        key = self._warm_key(graph, names)
        weights = self._warm.fetch(key)
        if weights is not None:
            self.warm_bytes += _size(weights)
            self._count(names)
        else:
            weights = self._warm.keep(key, self._build(graph, names))
            self.disk_bytes += _size(weights)
        head = "sample_tokens" in graph.inputs and not layers
        return LoadedAtom(name, graph.call, graph.inputs, layers, weights, head, graph.flat, _size(weights))

    def _build(self, graph: LoweredGraph, names: Sequence[str]) -> tuple[Any, ...]:
        """Weights from the checkpoint, one after the other."""
        slots = dict(zip(graph.slots, names, strict=True))

        def read(slot: str) -> torch.Tensor:
            spec = self._program.weights[slots[slot]]
            self._count([slots[slot]])
            return self._checkpoint.read(spec, self._dtype)

        weights = []
        for recipe in graph.recipes:
            weight = recipe.build(read, self._backend)
            if isinstance(weight, torch.Tensor):
                weight = weight.to(self._memory.device)
            weights.append(weight)
        return tuple(weights)

    def _count(self, names: Sequence[str]) -> None:
        """Tell that ``names`` are in."""
        total = sum(self._sizes.values())
        self._done += sum(self._sizes.get(name, 0) for name in names)
        self._progress(min(self._done, total), total)


def _size(weights: Sequence[Any]) -> int:
    return sum(int(weight.nbytes) for weight in weights)
