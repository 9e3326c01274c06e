"""One worker's computation: its resident atoms' lowered callables in order, on its own weights and KV pages.

Owns the step, and the checks of what a peer sent; `resident_atoms` loads. Knows no socket, no scheduler, no other worker.

Determinism: with a backend that is batch-invariant by construction (the packed CPU kernels: every row's sums run in one
order, whatever else is in the batch) a request's tokens never depend on its neighbours, and nothing is padded. Any other
backend gets, in ``deterministic`` mode, every step padded to ``step_tokens_max`` tokens and the head run over groups of
`HEAD_ROWS` rows, so that all its kernels see one shape, and attention token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from .atom_loader import LoadedAtom
from .backends import choose_backend
from .device_memory import DeviceMemory
from .hidden_buffers import from_buffer, to_buffer
from .interface import (
    BufferView,
    EngineError,
    EngineSpec,
    Int32Array,
    ModelFiles,
    RaggedBatch,
    SampleRow,
    StageFacts,
    StageOutput,
)
from .kv_pages import KvPages
from .program import Program, load_program
from .resident_atoms import ResidentAtoms
from .sampler import sample
from .step_checks import check_batch, check_hidden

HEAD_ROWS = 8
"""Rows of logits computed at a time where batches are padded."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LoweredStageEngine:
    """See `StageEngine`. Sets torch's thread count for its whole process: one worker, one process."""

    def __init__(self, spec: EngineSpec, files: ModelFiles) -> None:
        _check_model(spec, files)
        if spec.dtype not in DTYPES:
            raise EngineError(f"A worker cannot compute in {spec.dtype!r}; choose one of {', '.join(DTYPES)}")
        self.spec = spec
        self.program = _read_program(files)
        self._dtype = DTYPES[spec.dtype]
        self._device = _device(spec.device)
        self.backend, self.backend_reason = choose_backend(spec, self.program, self._device, self._dtype)
        self._pads = spec.deterministic and not self.backend.batch_invariant
        memory = DeviceMemory(self._device, spec.device, spec.memory_bytes)
        self.pages = KvPages(self.program.attention, self.backend.page_elements, self._dtype, self._device, memory)
        self.resident = ResidentAtoms(spec, files, self.program, self.backend, self.pages, self._dtype, memory)
        self._is_warm = False

    def load(self, atoms: range, progress: Callable[[int, int], None]) -> StageFacts:
        """Make ``atoms`` resident; see `StageEngine.load`."""
        self._check_atoms(atoms)
        return self.resident.load(atoms, self.backend_reason, progress)

    def reserve(self, atoms: range, blocks: int) -> int:
        """Make room for KV pages of ``atoms``. A new engine then runs one token, so that the first request pays for no set-up.

        Atoms that come later need none: their graphs were lowered with the first, their weights are in the page tables.
        """
        reserved_bytes = self.pages.reserve(self.resident.layers(atoms), blocks)
        if blocks > 0 and not self._is_warm:
            self._is_warm = True
            self._warm_up(atoms)
        return reserved_bytes

    def run(
        self, atoms: range, batch: RaggedBatch, hidden: BufferView | None, rows: Sequence[SampleRow]
    ) -> StageOutput:
        """One step; see `StageEngine.run`. Raises `EngineError` where the batch does not fit these atoms."""
        is_last = self._is_last(atoms)
        if is_last and len(rows) != len(batch.sample_tokens):
            raise EngineError(f"The step wants {len(batch.sample_tokens)} tokens but brings {len(rows)} sampling rows")
        result = self.forward(atoms, batch, hidden)
        if is_last:
            return StageOutput(tokens=sample(result.float().cpu().numpy(), rows) if rows else [])
        return StageOutput(hidden=to_buffer(result))

    def use_threads(self, threads: int) -> None:
        """See `StageEngine.use_threads`."""
        self.backend.use_threads(threads)

    def drop(self, keep: range, blocks: int) -> int:
        """See `StageEngine.drop`."""
        return self.resident.drop(keep, blocks)

    def back_pages(self, blocks: int, rest: Callable[[], None]) -> int:
        """See `StageEngine.back_pages`."""
        return self.pages.back(blocks, rest)

    def gather_pages(self, layer: int, blocks: Int32Array, out: memoryview) -> None:
        """See `StageEngine.gather_pages`."""
        self.pages.gather(layer, blocks, out)

    def scatter_pages(self, layer: int, blocks: Int32Array, data: memoryview) -> None:
        """See `StageEngine.scatter_pages`."""
        self.pages.scatter(layer, blocks, data)

    @torch.inference_mode()
    def forward(self, atoms: range, batch: RaggedBatch, hidden: BufferView | None) -> torch.Tensor:
        """What a step computes before sampling: hidden states [T, hidden size], or logits [N, V] on the last stage."""
        prelude, loaded = self.resident.run_of(atoms)
        self._check(atoms, loaded, batch, hidden)
        tokens = self.spec.step_tokens_max if self._pads else batch.tokens
        step = self.backend.step(batch, tokens)
        values = self._inputs(batch, hidden, tokens)
        self._run_prelude(prelude, step, values)
        for atom in loaded:
            if atom.head:
                return self._run_head(atom, step, values)
            values["hidden"] = atom.run(step, values)[0]
        return values["hidden"].reshape(tokens, -1)[: batch.tokens]

    def _check_atoms(self, atoms: range) -> None:
        if not 0 <= atoms.start < atoms.stop <= len(self.program.atoms):
            raise EngineError(
                f"Atoms [{atoms.start}, {atoms.stop}) were asked for; the model has {len(self.program.atoms)} atoms"
            )

    def _is_last(self, atoms: range) -> bool:
        return atoms.stop == len(self.program.atoms)

    def _check(self, atoms: range, loaded: Sequence[LoadedAtom], batch: RaggedBatch, hidden: BufferView | None) -> None:
        """What a peer sent must fit the step, this stage and its pages; anything else could read foreign memory."""
        # Layers that were loaded since the last `reserve` have no pages yet.
        blocks = min((len(layer.pages) for atom in loaded for layer in atom.layers), default=self.pages.blocks)
        check_batch(batch, blocks, self.program, self.spec.step_tokens_max)
        if (atoms.start == 0) != (hidden is None):
            raise EngineError(
                "The first stage takes tokens and every other one takes the hidden state of the one before"
            )
        if hidden is not None:
            check_hidden(batch, hidden, self.program.hidden_size, self.spec.dtype, self._dtype.itemsize)

    def _inputs(self, batch: RaggedBatch, hidden: BufferView | None, tokens: int) -> dict[str, torch.Tensor]:
        """The step's own values by their program names, padded to ``tokens``."""
        values = {
            "token_ids": self._indices(batch.token_ids, tokens)[None],
            "positions": self._indices(batch.positions, tokens)[None],
            "sample_tokens": self._indices(batch.sample_tokens, len(batch.sample_tokens)),
        }
        if hidden is not None:
            values["hidden"] = from_buffer(hidden, tokens, self._dtype).to(self._device)
        return values

    def _indices(self, array: np.ndarray[Any, Any], length: int) -> torch.Tensor:
        padded = np.zeros(length, np.int64)
        padded[: len(array)] = array
        return torch.from_numpy(padded).to(self._device)

    def _run_prelude(self, prelude: LoadedAtom, step: Any, values: dict[str, torch.Tensor]) -> None:
        if self.program.prelude.outputs:
            values.update(zip(self.program.prelude.outputs, prelude.run(step, values), strict=True))

    def _run_head(self, atom: LoadedAtom, step: Any, values: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits of the sampled tokens only, in groups of one size where batches are padded."""
        wanted = values["sample_tokens"]
        count = len(wanted)
        if count == 0:
            return torch.empty(0, self.program.vocabulary_size)
        size = HEAD_ROWS if self._pads else count
        logits = []
        for start in range(0, count, size):
            group = wanted[start : start + size]
            values["sample_tokens"] = torch.nn.functional.pad(group, (0, size - len(group)))
            result = atom.run(step, values)[0]
            logits.append(result.reshape(size, -1)[: len(group)])
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _warm_up(self, atoms: range) -> None:
        """One token at position 0 in block 0, whose page is put back afterwards."""
        layers = [self.pages.layers[layer] for layer in self.resident.layers(atoms)]
        kept = [layer.pages[0].clone() for layer in layers]
        index = np.zeros(1, np.int32)
        batch = RaggedBatch(index, index, np.array([0, 1], np.int32), np.zeros((1, 1), np.int32), index)
        shape = (1, self.program.hidden_size)
        zeros = memoryview(bytes(shape[1] * self._dtype.itemsize))
        self.forward(atoms, batch, None if atoms.start == 0 else BufferView(self.spec.dtype, shape, zeros))
        for layer, page in zip(layers, kept, strict=True):
            layer.pages[0] = page


def _check_model(spec: EngineSpec, files: ModelFiles) -> None:
    if spec.model != files.digest:
        raise EngineError(
            f"The model that is served is {spec.model[:12] or 'unnamed'}, the one on this host {files.digest[:12] or 'unnamed'}: "
            "give every node the same weights and the same versions of torch and transformers"
        )


def _read_program(files: ModelFiles) -> Program:
    try:
        return load_program(Path(files.program_file))
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineError(
            f"The captured program {files.program_file} cannot be read ({error}); capture the model again"
        ) from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"{name!r} is not a device; say cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"The stage is to run on {name}, but torch finds no CUDA device here")
    return device
