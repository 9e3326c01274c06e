"""Drives stage engines the way a scheduler does: blocks in shuffled order, prompts in chunks, ragged mixed batches."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from flexpipe.runtime.interface import BLOCK_TOKENS, EngineSpec, ModelFiles, RaggedBatch
from flexpipe.runtime.stage_engine import LoweredStageEngine


@dataclass
class Request:
    """Tokens to be fed in order; ``blocks`` grows as they are; ``logits`` collects one row per fed token."""

    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    fed: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)


class BlockSource:
    """Hands out block ids in a shuffled order, as a long-lived server's free list would."""

    def __init__(self, blocks: int, seed: int) -> None:
        self.free = np.random.default_rng(seed).permutation(blocks).tolist()

    def extend(self, request: Request, tokens: int) -> None:
        while len(request.blocks) * BLOCK_TOKENS < tokens:
            request.blocks.append(self.free.pop())


def build_batch(work: list[tuple[Request, int]], source: BlockSource, sample_all: bool = True) -> RaggedBatch:
    """One step that feeds each request its next ``count`` tokens."""
    ids: list[int] = []
    positions: list[int] = []
    starts = [0]
    samples: list[int] = []
    for request, count in work:
        source.extend(request, request.fed + count)
        ids += request.tokens[request.fed : request.fed + count]
        positions += range(request.fed, request.fed + count)
        starts.append(len(ids))
        samples += range(starts[-2], starts[-1]) if sample_all else [starts[-1] - 1]
    tables = np.full((len(work), max(len(request.blocks) for request, _ in work)), -1, np.int32)
    for row, (request, _) in enumerate(work):
        tables[row, : len(request.blocks)] = request.blocks
    return RaggedBatch(
        np.array(ids, np.int32),
        np.array(positions, np.int32),
        np.array(starts, np.int32),
        tables,
        np.array(samples, np.int32),
    )


class Stage:
    """An engine and the atoms that it is to run."""

    def __init__(self, engine: LoweredStageEngine, atoms: range) -> None:
        self.engine = engine
        self.atoms = atoms
        self.pages = engine.pages

    def run(self, batch, hidden, rows):
        return self.engine.run(self.atoms, batch, hidden, rows)

    def forward(self, batch, hidden):
        return self.engine.forward(self.atoms, batch, hidden)


def new_engine(folder: Path, program_file: Path, *, warm_folder: str = "", **options) -> LoweredStageEngine:
    """An engine without atoms; ``options`` are those of `EngineSpec`."""
    return LoweredStageEngine(EngineSpec(**options), ModelFiles(str(folder), str(program_file), warm_folder))


def load_stage(engine: LoweredStageEngine, atoms: range) -> Stage:
    engine.load(atoms, lambda _done, _total: None)
    return Stage(engine, atoms)


def load_stages(folder: Path, program_file: Path, cuts: list[int], blocks: int = 64, **options) -> list[Stage]:
    """Engines of the stages between neighbouring ``cuts`` (atom indices, the first 0 and the last the number of atoms)."""
    stages = []
    for first, end in itertools.pairwise(cuts):
        stage = load_stage(new_engine(folder, program_file, **options), range(first, end))
        stage.engine.reserve(stage.atoms, blocks)
        stages.append(stage)
    return stages


def run_step(stages: list[Stage], batch: RaggedBatch) -> torch.Tensor:
    """The logits of one step through all stages, hidden states crossing as buffers."""
    hidden = None
    for stage in stages[:-1]:
        hidden = stage.run(batch, hidden, ()).hidden
    return stages[-1].forward(batch, hidden)


def feed(stages: list[Stage], work: list[tuple[Request, int]], source: BlockSource) -> None:
    """Run one step and hand every request the logits of its tokens."""
    batch = build_batch(work, source)
    logits = run_step(stages, batch)
    start = 0
    for request, count in work:
        request.logits += logits[start : start + count].clone()
        request.fed += count
        start += count


def serve(stages: list[Stage], requests: list[Request], seed: int, step_tokens: int = 24) -> None:
    """Feed all tokens of all requests in random ragged steps: chunks of prompts beside single tokens."""
    random = np.random.default_rng(seed)
    source = BlockSource(stages[0].pages.blocks or stages[-1].pages.blocks, seed)
    while any(request.fed < len(request.tokens) for request in requests):
        work = []
        room = step_tokens
        for index in random.permutation(len(requests)):
            request = requests[index]
            left = len(request.tokens) - request.fed
            count = min(left, room, int(random.choice([1, 1, 2, 7, 17])))
            if count > 0 and random.random() < 0.8:
                work.append((request, count))
                room -= count
        if work:
            feed(stages, work, source)
