"""One stage's computation: its atoms' lowered callables in order, on its own weights and KV pages.

Owns loading, the step, and the checks of what a peer sent. Knows no socket, no scheduler, no other stage.

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

from .atom_loader import AtomLoader, LoadedAtom
from .backends import choose_backend
from .device_memory import free_bytes
from .hidden_buffers import from_buffer, to_buffer
from .interface import BufferView, EngineError, RaggedBatch, SampleRow, StageFacts, StageOutput, StageSpec
from .kv_pages import KvPages
from .lowering import LoweredGraph, lower
from .program import Program, load_program
from .sampler import sample
from .step_checks import check_batch, check_hidden
from .weights import Checkpoint

HEAD_ROWS = 8
"""Rows of logits computed at a time where batches are padded."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LoweredStageEngine:
    """See `StageEngine`. Sets torch's thread count for its whole process: one stage, one process."""

    def __init__(self, spec: StageSpec) -> None:
        if spec.dtype not in DTYPES:
            raise EngineError(f"A stage cannot compute in {spec.dtype!r}; choose one of {', '.join(DTYPES)}")
        self.spec = spec
        self.program = _read_program(spec)
        self.is_first = spec.first_atom == 0
        self.is_last = spec.end_atom == len(self.program.atoms)
        self._dtype = DTYPES[spec.dtype]
        self._device = _device(spec.device)
        self.backend, self.backend_reason = choose_backend(spec, self.program, self._device, self._dtype)
        self._pads = spec.deterministic and not self.backend.batch_invariant
        atoms = self.program.atoms[spec.first_atom : spec.end_atom]
        owned = {layer for atom in atoms for layer in atom.layers}
        geometries = (geometry for geometry in self.program.attention if geometry.layer in owned)
        self.pages = KvPages(geometries, self.backend.page_elements, self._dtype, self._device)
        self._prelude: LoadedAtom | None = None
        self._atoms: list[LoadedAtom] = []

    def load(self, progress: Callable[[int, int], None]) -> StageFacts:
        """Read and pack the weights of this stage's atoms, one at a time."""
        lowered, prelude = self._lower()
        with Checkpoint(Path(self.spec.model_folder)) as checkpoint:
            loader = AtomLoader(checkpoint, self.program, self.backend, self._dtype, self._device, progress)
            loader.expect(self.program.stage_weights(self.spec.first_atom, self.spec.end_atom))
            self._prelude = loader.bind("prelude", prelude, self.program.prelude_weights, ())
            self._atoms = []
            for atom in self.program.atoms[self.spec.first_atom : self.spec.end_atom]:
                layers = tuple(self.pages.layers[layer] for layer in atom.layers)
                self._atoms.append(loader.bind(atom.name, lowered[atom.graph], atom.weights, layers))
        return StageFacts(
            weight_bytes=loader.weight_bytes,
            kv_bytes_per_block=self.pages.bytes_per_block,
            memory_free_bytes=free_bytes(self._device),
            layers=tuple(sorted(self.pages.layers)),
            backend=self.backend_reason,
        )

    def reserve(self, blocks: int) -> None:
        """Resize the KV pages, then run one token through the stage so that the first request pays for no set-up."""
        self.pages.reserve(blocks)
        if blocks > 0:
            self._warm_up()

    def run(self, batch: RaggedBatch, hidden: BufferView | None, rows: Sequence[SampleRow]) -> StageOutput:
        """One step; see `StageEngine.run`. Raises `EngineError` where the batch does not fit this stage."""
        if self.is_last and len(rows) != len(batch.sample_tokens):
            raise EngineError(f"The step wants {len(batch.sample_tokens)} tokens but brings {len(rows)} sampling rows")
        result = self.forward(batch, hidden)
        if self.is_last:
            return StageOutput(tokens=sample(result.float().cpu().numpy(), rows) if rows else [])
        return StageOutput(hidden=to_buffer(result))

    @torch.inference_mode()
    def forward(self, batch: RaggedBatch, hidden: BufferView | None) -> torch.Tensor:
        """What a step computes before sampling: hidden states [T, hidden size], or logits [N, V] on the last stage."""
        if not self._atoms:
            raise EngineError("The stage was asked to run before its weights were loaded")
        self._check(batch, hidden)
        tokens = self.spec.step_tokens_max if self._pads else batch.tokens
        step = self.backend.step(batch, tokens)
        values = self._inputs(batch, hidden, tokens)
        self._run_prelude(step, values)
        for atom in self._atoms:
            if atom.head:
                return self._run_head(atom, step, values)
            values["hidden"] = atom.run(step, values)[0]
        return values["hidden"].reshape(tokens, -1)[: batch.tokens]

    def _lower(self) -> tuple[dict[int, LoweredGraph], LoweredGraph]:
        """The callables of this stage's graphs, each lowered once, and that of the prelude."""
        program = self.program
        shapes = {node.name: node.shape for node in program.prelude.nodes if node.shape is not None}
        used = {atom.graph for atom in program.atoms[self.spec.first_atom : self.spec.end_atom]}
        return {index: lower(program.graphs[index], self.backend, shapes) for index in used}, lower(
            program.prelude, self.backend, {}
        )

    def _check(self, batch: RaggedBatch, hidden: BufferView | None) -> None:
        """What a peer sent must fit the step, this stage and its pages; anything else could read foreign memory."""
        check_batch(batch, self.pages.blocks, self.program, self.spec.step_tokens_max)
        if self.is_first != (hidden is None):
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

    def _run_prelude(self, step: Any, values: dict[str, torch.Tensor]) -> None:
        prelude = self._prelude
        assert prelude is not None
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

    def _warm_up(self) -> None:
        """One token at position 0 in block 0, whose page is put back afterwards."""
        kept = [layer.pages[0].clone() for layer in self.pages.layers.values()]
        index = np.zeros(1, np.int32)
        batch = RaggedBatch(index, index, np.array([0, 1], np.int32), np.zeros((1, 1), np.int32), index)
        shape = (1, self.program.hidden_size)
        zeros = memoryview(bytes(shape[1] * self._dtype.itemsize))
        self.forward(batch, None if self.is_first else BufferView(self.spec.dtype, shape, zeros))
        for layer, page in zip(self.pages.layers.values(), kept, strict=True):
            layer.pages[0] = page


def _read_program(spec: StageSpec) -> Program:
    try:
        program = load_program(Path(spec.program_file))
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineError(
            f"The captured program {spec.program_file} cannot be read ({error}); capture the model again"
        ) from error
    if not 0 <= spec.first_atom < spec.end_atom <= len(program.atoms):
        raise EngineError(
            f"A stage of atoms [{spec.first_atom}, {spec.end_atom}) was asked for; the model has {len(program.atoms)} atoms"
        )
    return program


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"{name!r} is not a device; say cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"The stage is to run on {name}, but torch finds no CUDA device here")
    return device
