"""The pipeline's tax: two stages of one thread each against one stage of two threads, with as many requests in flight.

Whole servers with real stage processes and links, asked through the scheduler (no HTTP). Contenders alternate within a run; the
median round counts. With two processors' worth of threads on both sides, ideal is a ratio of 1: a pipeline pays for hops and for
smaller batches (each stage works on half of the requests at a time).
"""

from __future__ import annotations

import os
import resource
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trio

from ..actors.config import ServeConfig
from ..actors.generation import GenerationRequest, TokenSource
from ..daemon import Server, serve
from ..preparation import prepare
from ..runtime.interface import SamplingParams

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Contender:
    """A shape of the pipeline: ``stages`` processes of ``threads`` threads."""

    stages: int
    threads: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.stages} x {self.threads} threads"


@dataclass(frozen=True, slots=True)
class Round:
    """One contender's round. Rates in tokens/s; ``decode`` leaves out the time to the last request's first token."""

    tokens_per_s: float
    decode_tokens_per_s: float
    first_token_s: float
    cores: float
    stages: tuple[dict[str, Any], ...]


def run(
    model: str,
    concurrency: Sequence[int] = (8, 32),
    contenders: Sequence[Contender] = (Contender(1, 2), Contender(2, 1)),
    tokens_in: int = 128,
    tokens_out: int = 64,
    rounds: int = 3,
    report: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Measure every contender at every concurrency, alternating; plain data. The first contender is the yardstick."""
    measured: dict[tuple[Contender, int], list[Round]] = {(c, n): [] for c in contenders for n in concurrency}
    for number in range(rounds):
        for contender in contenders:
            for requests, result in _serve_once(model, contender, concurrency, tokens_in, tokens_out).items():
                measured[contender, requests].append(result)
                report(f"round {number + 1}, {contender.name}, {requests} at once: {result.tokens_per_s:.0f} tokens/s")
    return {
        "model": model,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "rounds": rounds,
        "rows": [
            _row(measured, contenders, contender, requests) for requests in concurrency for contender in contenders
        ],
        "stages": {c.name: measured[c, concurrency[0]][-1].stages for c in contenders},
    }


def _row(
    measured: dict[tuple[Contender, int], list[Round]],
    contenders: Sequence[Contender],
    contender: Contender,
    requests: int,
) -> dict[str, Any]:
    rounds, yardstick = measured[contender, requests], measured[contenders[0], requests]
    return {
        "contender": asdict(contender),
        "requests": requests,
        "tokens_per_s": statistics.median(r.tokens_per_s for r in rounds),
        "decode_tokens_per_s": statistics.median(r.decode_tokens_per_s for r in rounds),
        "first_token_s": statistics.median(r.first_token_s for r in rounds),
        "cores": statistics.median(r.cores for r in rounds),
        # Of each round against the yardstick's round beside it, since the machine drifts between rounds.
        "ratio": statistics.median(
            mine.tokens_per_s / other.tokens_per_s for mine, other in zip(rounds, yardstick, strict=True)
        ),
    }


def _serve_once(
    model: str, contender: Contender, concurrency: Sequence[int], tokens_in: int, tokens_out: int
) -> dict[int, Round]:
    config = ServeConfig(stages=contender.stages, port=0, threads=contender.threads, running=max(concurrency))
    prepared = prepare(model, config)
    found: dict[int, Round] = {}

    async def present(server: Server) -> None:
        while not server.replicas.status().ready:  # noqa: ASYNC110 - the status is the fact; nothing signals it here
            await trio.sleep(POLL_S)
        vocabulary = prepared.program.vocabulary_size
        await _ask_all(server.replicas, _prompts(1, tokens_in, vocabulary), 4)  # wakes and maps everything once
        for requests in concurrency:
            prompts = _prompts(requests, tokens_in, vocabulary)
            found[requests] = await _ask_all(server.replicas, prompts, tokens_out)
        server.stop()

    reason = trio.run(serve, prepared, config, present)
    if reason:
        raise RuntimeError(f"the {contender.name} pipeline did not serve: {reason}")
    return found


def _prompts(requests: int, tokens: int, vocabulary: int) -> list[tuple[int, ...]]:
    random = np.random.default_rng(requests)
    return [tuple(row) for row in random.integers(0, vocabulary, (requests, tokens)).tolist()]


async def _ask_all(pipeline: TokenSource, prompts: list[tuple[int, ...]], tokens_out: int) -> Round:
    first_s: list[float] = []

    async def ask(prompt: tuple[int, ...]) -> None:
        async with pipeline.open(GenerationRequest(prompt, SamplingParams(temperature=0.0), tokens_out)) as events:
            await anext(events)
            first_s.append(trio.current_time() - started_s)
            async for _ in events:
                pass

    busy_s = _cpu_s(pipeline)
    started_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for prompt in prompts:
            nursery.start_soon(ask, prompt)
    took_s = trio.current_time() - started_s
    stages = pipeline.status().stages
    return Round(
        tokens_per_s=len(prompts) * tokens_out / took_s,
        decode_tokens_per_s=len(prompts) * (tokens_out - 1) / max(took_s - max(first_s), 1e-9),
        first_token_s=max(first_s),
        cores=(_cpu_s(pipeline) - busy_s) / took_s,
        stages=tuple(
            {key: stage[key] for key in ("stage", "layers", "weight_bytes", "peak_rss_bytes")} for stage in stages
        ),
    )


def _cpu_s(pipeline: TokenSource) -> float:
    """Processor seconds of this process and the stages so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ticks = os.sysconf("SC_CLK_TCK")
    total = own.ru_utime + own.ru_stime
    for stage in pipeline.status().stages:
        fields = Path(f"/proc/{stage['pid']}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total
