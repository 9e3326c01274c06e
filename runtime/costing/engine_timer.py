"""Times atoms as a stage would run them: random weights, the real engine, steps of a stated load.

Owns the making of small programs of equal atoms, their random checkpoints and their batches. Knows nothing of grids or
caches (see `runtime.costing.profile`, whose `Timer` this is).

A run of several equal atoms with weights of their own is timed as one stage and divided, so that caches are as cold as
they are in service and a step's fixed cost (checks, prelude, buffers) is shared as a stage shares it.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file

from ..interface import (
    BLOCK_TOKENS,
    BufferView,
    EngineError,
    EngineSpec,
    ModelFiles,
    RaggedBatch,
    SampleRow,
    SamplingParams,
)
from ..program import Atom, Program, WeightSpec, load_program, save_program
from ..stage_engine import LoweredStageEngine
from .costs import StepLoad, weight_bytes
from .profile import Profile, device_key, load_profile, measure, save_profile

RUN_ATOMS_MAX = 4
"""Equal atoms timed in one run."""

RUN_BYTES_MAX = 1 << 30
"""Weights of one run, and KV pages of one run: a run has fewer atoms, and its rows share blocks, rather than more bytes."""

REPEATS = 5
"""Steps timed per load; the quickest counts, as the one least disturbed by others."""

WEIGHT_SPREAD = 0.02
"""Standard deviation of random weights: values of ordinary size, so that no arithmetic is denormal."""


class EngineTimer:
    """A `profile.Timer`. ``folder`` must stay while it is used; keep one timer per process, as engines ask.

    ``device``, ``threads`` and ``dtype`` are an `EngineSpec`'s.
    """

    def __init__(
        self, program: Program, folder: Path, device: str = "cpu", threads: int = 1, dtype: str = "float32"
    ) -> None:
        self._program = program
        self._folder = folder
        self._spec = EngineSpec(device=device, threads=threads, dtype=dtype)
        self._random = np.random.default_rng(0)
        self._loaded: tuple[int, range, LoweredStageEngine] | None = None

    def __call__(self, atom: int, load: StepLoad) -> float:
        """Seconds that atom number ``atom`` takes in one step of ``load``, sampling included for the head."""
        atoms, engine = self._engine(atom)
        blocks = self._blocks(engine, load)
        if engine.pages.blocks < blocks:
            engine.reserve(atoms, blocks)
        is_last = atoms.stop == len(engine.program.atoms)
        batch, hidden = self._batch(load, blocks), None if atoms.start == 0 else self._hidden(load)
        rows = [SampleRow(SamplingParams(temperature=0.0), load.context)] * load.sampled if is_last else []
        engine.run(atoms, batch, hidden, rows)
        return min(_timed(engine, atoms, batch, hidden, rows) for _ in range(REPEATS)) / len(atoms)

    def _engine(self, atom: int) -> tuple[range, LoweredStageEngine]:
        """The atoms and the engine that runs ``atom``'s equals, loaded unless it is the one in use."""
        if self._loaded is None or self._loaded[0] != atom:
            run = self._equals(atom)
            self._write_weights(run)
            program = self._shortened(run)
            file = self._folder / "program.json"
            save_program(program, file)
            first = program.atoms.index(run[0])
            spec = msgspec.structs.replace(self._spec, step_tokens_max=self._program.context_tokens)
            engine = LoweredStageEngine(spec, ModelFiles(str(self._folder), str(file)))
            atoms = range(first, first + len(run))
            engine.load(atoms, lambda _done, _total: None)
            self._loaded = (atom, atoms, engine)
        return self._loaded[1], self._loaded[2]

    def _equals(self, atom: int) -> list[Atom]:
        """Atoms of the same graph that fit into one run, ``atom`` among them; embedding and head run alone."""
        atoms = self._program.atoms
        if atom in {0, len(atoms) - 1}:
            return [atoms[atom]]
        size = max(weight_bytes(self._program, atoms[atom], self._spec.dtype), 1)
        count = max(1, min(RUN_ATOMS_MAX, RUN_BYTES_MAX // size))
        inner = atoms[1:-1]
        equals = [other for other in inner if other.graph == atoms[atom].graph and other is not atoms[atom]]
        return [atoms[atom], *equals[: count - 1]]

    def _shortened(self, run: Sequence[Atom]) -> Program:
        """The program whose inner atoms are ``run`` only, so that they make one stage."""
        first, last = self._program.atoms[0], self._program.atoms[-1]
        inner = [atom for atom in run if atom is not first and atom is not last]
        atoms = (first, *inner, last)
        return msgspec.structs.replace(self._program, atoms=atoms)

    def _write_weights(self, run: Sequence[Atom]) -> None:
        names = dict.fromkeys(name for atom in run for name in atom.weights)
        specs = [self._program.weights[name] for name in names]
        save_file(
            {spec.name: self._random_weight(spec) for spec in specs if spec.value is None},
            self._folder / "model.safetensors",
        )

    def _random_weight(self, spec: WeightSpec) -> torch.Tensor:
        values = self._random.standard_normal(spec.shape, np.float32) * np.float32(WEIGHT_SPREAD)
        return torch.from_numpy(values).to(getattr(torch, spec.dtype))

    def _blocks(self, engine: LoweredStageEngine, load: StepLoad) -> int:
        """KV blocks for ``load``, at most what `RUN_BYTES_MAX` holds and at least one request's."""
        one = math.ceil(load.context / BLOCK_TOKENS)
        held = max(engine.pages.bytes_per_block, 1)
        return max(one, min(one * load.requests, RUN_BYTES_MAX // held))

    def _batch(self, load: StepLoad, blocks: int) -> RaggedBatch:
        """Rows of as equal a number of new tokens as can be, each at the end of its context."""
        starts = np.linspace(0, load.tokens, load.requests + 1).astype(np.int32)
        counts = np.diff(starts)
        positions = [np.arange(max(load.context - count, 0), max(load.context - count, 0) + count) for count in counts]
        width = math.ceil(max(load.context, int(counts.max())) / BLOCK_TOKENS)
        tables = np.arange(load.requests * width).reshape(load.requests, width) % blocks
        ids = self._random.integers(0, self._program.vocabulary_size, load.tokens)
        sampled = starts[1:][-load.sampled :] - 1 if load.sampled else starts[:0]
        return RaggedBatch(
            ids.astype(np.int32),
            np.concatenate(positions).astype(np.int32),
            starts,
            tables.astype(np.int32),
            sampled.astype(np.int32),
        )

    def _hidden(self, load: StepLoad) -> BufferView:
        shape = (load.tokens, self._program.hidden_size)
        values = torch.from_numpy(self._random.standard_normal(shape, np.float32))
        raw = values.to(getattr(torch, self._spec.dtype)).view(torch.uint8).numpy()
        return BufferView(self._spec.dtype, shape, raw.data.cast("B"))


def profile_program(program: Program, device: str = "cpu", threads: int = 1, dtype: str = "float32") -> Profile:
    """The cached profile of ``program`` on this machine, measured and cached first where there is none."""
    key = device_key(device, threads, dtype)
    profile = load_profile(program, key)
    if profile is None:
        with tempfile.TemporaryDirectory(prefix="flexpipe-profile-") as folder:
            profile = measure(program, key, EngineTimer(program, Path(folder), device, threads, dtype))
        save_profile(program, profile)
    return profile


def main(arguments: list[str]) -> int:
    """Measure ``PROGRAM.json DEVICE THREADS DTYPE`` into the cache, for light processes; exit code 0, 1 or 2."""
    if len(arguments) != 4 or not arguments[2].isdecimal():
        print(
            "usage: python -m flexpipe.runtime.costing.engine_timer PROGRAM.json DEVICE THREADS DTYPE", file=sys.stderr
        )
        return 2
    file, device, threads, dtype = arguments
    try:
        profile_program(load_program(Path(file)), device, int(threads), dtype)
    except (EngineError, OSError, msgspec.MsgspecError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _timed(
    engine: LoweredStageEngine,
    atoms: range,
    batch: RaggedBatch,
    hidden: BufferView | None,
    rows: Sequence[SampleRow],
) -> float:
    start = time.perf_counter()
    engine.run(atoms, batch, hidden, rows)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
