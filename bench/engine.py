"""One stage engine without scheduler, sockets or HTTP: tokens per second, each with its share of the machine's limit.

    python -m flexpipe.bench.engine MODEL_FOLDER [--json] [--compare-transformers] [--concurrency 1 8 32]

Every figure comes from a whole run: real prefill in steps of several requests, then every decode step with its own
sampled tokens. On a machine that others use too, read the cores obtained (CPU seconds per wall second) first: below the
number of threads a figure says more about the neighbours. Rounds interleave all contenders; the best round counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.capturing.capture import program_file
from ..runtime.costing.costs import DeviceRates, StepLoad
from ..runtime.interface import BLOCK_TOKENS, EngineSpec, ModelFiles, RaggedBatch, SampleRow, SamplingParams
from ..runtime.program import Program, load_program
from ..runtime.stage_engine import LoweredStageEngine
from .limits import best_rates, least_seconds, probe

GREEDY = SamplingParams(temperature=0.0)
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Workload:
    """``concurrency`` requests at once, each ``tokens_in`` random tokens and ``tokens_out`` greedy ones."""

    concurrency: int
    tokens_in: int = 128
    tokens_out: int = 128
    seed: int = 0

    def prompts(self, vocabulary: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        """int32 [concurrency, tokens_in]."""
        random = np.random.default_rng(self.seed)
        return random.integers(0, vocabulary, (self.concurrency, self.tokens_in), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One contender's run of one workload. ``cores`` is CPU seconds per wall second over the whole run."""

    tokens_per_s: float
    prefill_s: float
    decode_step_ms: float
    cores: float


def run(
    model_folder: Path | str,
    concurrency: Sequence[int] = (1, 8, 32),
    threads: int = 2,
    tokens_in: int = 128,
    tokens_out: int = 128,
    rounds: int = 2,
    compare_transformers: bool = False,
    report: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Measure and return everything as plain data (see the module's docstring). ``report`` hears of each round.

    Raises `EngineError` where the model cannot be loaded.
    """
    folder = Path(model_folder)
    program_path = _captured(folder)
    program = load_program(program_path)
    engine, load_s = _load(folder, program_path, program, threads)
    workloads = [Workload(each, tokens_in, tokens_out) for each in concurrency]
    engine.reserve(range(len(program.atoms)), max(concurrency) * _blocks_per_request(workloads[0]))
    _measure(engine, Workload(1, tokens_in, 4))  # first calls compile, map and wake
    peak_bytes = _peak_bytes()  # of loading and one request; the probes and transformers come later
    reference = _Transformers(folder, threads) if compare_transformers else None
    probes: list[DeviceRates] = [probe(threads)]
    ours: list[list[Measurement]] = [[] for _ in workloads]
    theirs: list[list[Measurement]] = [[] for _ in workloads]
    for number in range(rounds):
        for place, workload in enumerate(workloads):
            ours[place].append(_measure(engine, workload))
            probes.append(probe(threads))
            report(f"round {number + 1}, {workload.concurrency} at once: {ours[place][-1]}")
            if reference is not None:
                theirs[place].append(reference.measure(workload, program.vocabulary_size))
                report(f"round {number + 1}, {workload.concurrency} at once, transformers: {theirs[place][-1]}")
    rates = best_rates(probes)
    return {
        "model": str(folder),
        "threads": threads,
        "backend": engine.backend_reason,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "load_s": load_s,
        "peak_rss_mib": peak_bytes / MIB,
        "read_gb_per_s": rates.bytes_per_s / 1e9,
        "gemm_gflop_per_s": rates.operations_per_s / 1e9,
        "rows": [
            _row(program, workload, mine, other, rates)
            for workload, mine, other in zip(workloads, ours, theirs, strict=True)
        ],
    }


def _row(
    program: Program, workload: Workload, ours: list[Measurement], theirs: list[Measurement], rates: DeviceRates
) -> dict[str, Any]:
    """One concurrency's best run, its share of the limit, and transformers' beside it."""
    best = max(ours, key=lambda each: each.tokens_per_s)
    requests, context = workload.concurrency, workload.tokens_in + workload.tokens_out // 2
    prompts = StepLoad(requests * workload.tokens_in, requests, workload.tokens_in, requests)
    least_prefill = least_seconds(program, prompts, rates)
    least_step = least_seconds(program, StepLoad.decode(requests, context), rates)
    limit = requests * workload.tokens_out / (least_prefill + (workload.tokens_out - 1) * least_step)
    row = {"concurrency": requests, **asdict(best), "limit_tokens_per_s": limit, "share": best.tokens_per_s / limit}
    row["prefill_share"] = least_prefill / best.prefill_s
    row["decode_share"] = least_step / (best.decode_step_ms / 1e3)
    if theirs:
        other = max(theirs, key=lambda each: each.tokens_per_s)
        row["transformers"] = asdict(other)
        row["times_transformers"] = best.tokens_per_s / other.tokens_per_s
    return row


def _measure(engine: LoweredStageEngine, workload: Workload) -> Measurement:
    """Prefill in steps as full as they may be, then decode all requests together."""
    prompts = workload.prompts(engine.program.vocabulary_size)
    tables = np.random.default_rng(1).permutation(workload.concurrency * _blocks_per_request(workload))
    tables = tables.reshape(workload.concurrency, -1).astype(np.int32)
    cpu, start = time.process_time(), time.perf_counter()
    drawn = _prefill(engine, prompts, tables)
    prefilled = time.perf_counter()
    for position in range(workload.tokens_in, workload.tokens_in + workload.tokens_out - 1):
        drawn = _decode(engine, drawn, position, tables)
    end = time.perf_counter()
    return Measurement(
        tokens_per_s=workload.concurrency * workload.tokens_out / (end - start),
        prefill_s=prefilled - start,
        decode_step_ms=(end - prefilled) / (workload.tokens_out - 1) * 1e3,
        cores=(time.process_time() - cpu) / (end - start),
    )


def _prefill(engine: LoweredStageEngine, prompts: Any, tables: Any) -> list[int]:
    """All prompts, several requests a step; gives each one's first token."""
    requests, length = prompts.shape
    together = max(1, engine.spec.step_tokens_max // length)
    drawn: list[int] = []
    for first in range(0, requests, together):
        ids = prompts[first : first + together]
        starts = np.arange(len(ids) + 1, dtype=np.int32) * length
        positions = np.tile(np.arange(length, dtype=np.int32), len(ids))
        batch = RaggedBatch(ids.reshape(-1), positions, starts, tables[first : first + together], starts[1:] - 1)
        drawn += _sampled(engine, batch, length)
    return drawn


def _decode(engine: LoweredStageEngine, ids: list[int], position: int, tables: Any) -> list[int]:
    """One token of every request."""
    count = len(ids)
    order = np.arange(count + 1, dtype=np.int32)
    batch = RaggedBatch(np.array(ids, np.int32), np.full(count, position, np.int32), order, tables, order[:-1])
    return _sampled(engine, batch, position + 1)


def _sampled(engine: LoweredStageEngine, batch: RaggedBatch, position: int) -> list[int]:
    rows = [SampleRow(GREEDY, position)] * len(batch.sample_tokens)
    return [token.token_id for token in engine.run(range(len(engine.program.atoms)), batch, None, rows).tokens]


def _blocks_per_request(workload: Workload) -> int:
    return -(-(workload.tokens_in + workload.tokens_out) // BLOCK_TOKENS)


def _load(folder: Path, program_path: Path, program: Program, threads: int) -> tuple[LoweredStageEngine, float]:
    start = time.perf_counter()
    engine = LoweredStageEngine(EngineSpec(threads=threads), ModelFiles(str(folder), str(program_path)))
    engine.load(range(len(program.atoms)), lambda _done, _total: None)
    return engine, time.perf_counter() - start


def _captured(folder: Path) -> Path:
    """The model's program, captured by a child process where the cache lacks it, so that this one stays small."""
    path = program_file(folder)
    if not path.exists():
        command = [sys.executable, "-m", program_file.__module__, str(folder), str(path)]
        subprocess.run(command, check=True)  # noqa: S603 - our own interpreter and module
    return path


def _peak_bytes() -> int:
    """The most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Transformers:
    """The same model under ``generate`` of transformers: greedy, static batch, no early end."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._threads = threads
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train(mode=False)

    def measure(self, workload: Workload, vocabulary: int) -> Measurement:
        """A run with one new token times the prefill, a second one everything."""
        torch, before = self._torch, self._torch.get_num_threads()
        torch.set_num_threads(self._threads)
        ids = torch.from_numpy(workload.prompts(vocabulary)).long()
        try:
            start = time.perf_counter()
            self._generate(ids, 1)
            prefill_s = time.perf_counter() - start
            cpu, start = time.process_time(), time.perf_counter()
            self._generate(ids, workload.tokens_out)
            total_s = time.perf_counter() - start
        finally:
            torch.set_num_threads(before)
        return Measurement(
            tokens_per_s=workload.concurrency * workload.tokens_out / total_s,
            prefill_s=prefill_s,
            decode_step_ms=(total_s - prefill_s) / (workload.tokens_out - 1) * 1e3,
            cores=(time.process_time() - cpu) / total_s,
        )

    def _generate(self, ids: Any, tokens: int) -> None:
        with self._torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=0,
            )


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        (
            f"{result['model']}: {result['tokens_in']} tokens in, {result['tokens_out']} out, {result['threads']} threads, "
            f"{result['backend']}"
        ),
        (
            f"loaded in {result['load_s']:.1f} s, peak RSS {result['peak_rss_mib']:.0f} MiB; this machine: "
            f"{result['read_gb_per_s']:.1f} GB/s, {result['gemm_gflop_per_s']:.0f} GFLOP/s ({os.cpu_count()} cores)"
        ),
        "at once    tok/s  limit  share  prefill s  decode ms  cores  x transformers",
    ]
    for row in result["rows"]:
        times = f"{row['times_transformers']:15.2f}" if "times_transformers" in row else f"{'-':>15}"
        lines.append(
            f"{row['concurrency']:7d} {row['tokens_per_s']:8.1f} {row['limit_tokens_per_s']:6.0f} {row['share']:6.0%} "
            f"{row['prefill_s']:10.2f} {row['decode_step_ms']:10.1f} {row['cores']:6.2f} {times}"
        )
    return "\n".join(lines)


def main() -> int:
    """Parse the command line and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model_folder", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--compare-transformers", action="store_true")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens-out", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    result = run(
        options.model_folder,
        options.concurrency,
        options.threads,
        tokens_out=options.tokens_out,
        rounds=options.rounds,
        compare_transformers=options.compare_transformers,
        report=lambda line: print(line, file=sys.stderr),
    )
    print(json.dumps(result, indent=2) if options.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
