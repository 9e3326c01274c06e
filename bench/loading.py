"""What a load costs the steps that run beside it: one engine's first half serves while its second half is loaded and dropped.

    python -m flexpipe.bench.loading MODEL_FOLDER [--threads 1] [--rounds 6] [--batch 8]

From the host's shared copy and from the checkpoint, through the threads that a worker has (`actors.engine_thread`). Each load's
steps are compared with steps just before it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import trio

from ..actors.engine_thread import EngineThread
from ..runtime.capturing.capture import program_file
from ..runtime.interface import EngineSpec, ModelFiles, RaggedBatch
from ..runtime.program import load_program
from ..runtime.stage_engine import LoweredStageEngine

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where a server keeps its shared copy, too
STEPS_BEFORE = 40
POSITION = 100
"""Of the decoded token; the context is as long."""


class Bench:
    """One engine and what its steps took, beside a load and before."""

    def __init__(self, spec: EngineSpec, files: ModelFiles, atoms: int, batch: int) -> None:
        self.before: list[float] = []
        self.beside: list[float] = []
        self.loads: list[float] = []
        self._engine = EngineThread(partial(LoweredStageEngine, files=files))
        self._spec = spec
        self._first, self._second = range(atoms // 2), range(atoms // 2, atoms)
        self._batch = _decode(batch)

    async def run(self, rounds: int) -> None:
        """Measure."""
        await self._load(self._first)
        await self._engine.reserve(self._first, self._batch.block_tables.size)
        await self._step()
        for _ in range(rounds):
            self.before += [await self._step() for _ in range(STEPS_BEFORE)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._timed_load)
                count = len(self.loads)
                while len(self.loads) == count:
                    self.beside.append(await self._step())
            await self._engine.drop(self._first, self._batch.block_tables.size)

    async def _timed_load(self) -> None:
        start = time.perf_counter()
        await self._load(self._second)
        self.loads.append(time.perf_counter() - start)

    async def _load(self, atoms: range) -> None:
        await self._engine.load(self._spec, atoms, _ignore)

    async def _step(self) -> float:
        start = time.perf_counter()
        await self._engine.run(self._first, self._batch, None, ())
        return time.perf_counter() - start


async def _ignore(_done: int, _total: int) -> None: ...


def _decode(batch: int) -> RaggedBatch:
    order, width = np.arange(batch + 1, dtype=np.int32), POSITION // 16 + 1
    tables = np.arange(batch * width, dtype=np.int32).reshape(batch, width)
    return RaggedBatch(order[:-1], np.full(batch, POSITION, np.int32), order, tables, order[:-1])


def _line(name: str, bench: Bench) -> str:
    def figures(seconds: Any) -> str:
        return f"mean {np.mean(seconds) * 1e3:6.2f}  p90 {np.quantile(seconds, 0.9) * 1e3:6.2f}  max {max(seconds) * 1e3:6.2f}"

    ratio = np.mean(bench.beside) / np.mean(bench.before)
    return (
        f"{name:5} load {np.median(bench.loads):6.3f} s | steps [ms] before: {figures(bench.before)} | beside: "
        f"{figures(bench.beside)} | ratio of means {ratio:.3f}, of medians {np.median(bench.beside) / np.median(bench.before):.3f}"
    )


def main() -> int:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    program_path = program_file(options.model_folder)
    atoms = len(load_program(program_path).atoms)
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as warm:
        for name, folder in (("warm", warm), ("disk", "")):
            spec = EngineSpec(threads=options.threads)
            files = ModelFiles(str(options.model_folder), str(program_path), folder)
            if folder:
                LoweredStageEngine(spec, files).load(range(atoms), lambda _done, _total: None)
            bench = Bench(spec, files, atoms, options.batch)
            trio.run(bench.run, options.rounds)
            print(_line(name, bench), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
