"""Calibrates the simulators: times a real pipeline under synthetic loads of known steps, and what its refactorings take.

Owns the loads and the fit. A load keeps its steps alike (so many rows that decode, or one prompt), so that what a client sees is
what a step takes; rounds are repeated and the median of each point counts. Nothing of what is compared later is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean, median

import numpy as np
import trio

from ..runtime.interface import BLOCK_TOKENS
from ..sim.fidelity.calibration import Calibration
from .real_pipeline import (
    CONTEXT_TOKENS,
    KV_TOKENS,
    REQUESTS_MAX,
    STEP_TOKENS_MAX,
    RealPipeline,
    steps_under_way_max,
)

DECODED = {1: (1, 2, 4, 8, 16), 2: (1, 2, 4, 8)}
"""Rows of a step, by how many steps are under way."""
PROMPTS = {1: (32, 64, 128, 256, 512), 2: (16, 32, 64, 128, 256, 512)}
"""Tokens of a step that is one prompt."""
DECODE_PROMPT, DECODE_TOKENS = 8, 16
PROMPT_REPEATS = 3
LONG_CONTEXT, LONG_ROWS = 256, 8
LONG_PROMPT = 2 * STEP_TOKENS_MAX
CHANGES = (2, 3, 1, 3, 2, 1)
"""From one stage on: every change between one, two and three."""
CHANGE_STREAMS, CHANGE_TOKENS_MAX, BEFORE_CHANGE_S = 6, 400, 1.2
HOP_S_MIN, HOP_S_MAX = 1e-4, 5e-3
REPORT_S = 1.5
"""After so long a stage's report of how busy it was is there."""


@dataclass(slots=True)
class _Points:
    """Everything that was measured, seconds, in lists over the rounds."""

    steps: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    long_rows: list[float] = field(default_factory=list)
    long_prompts: list[float] = field(default_factory=list)
    hops: list[float] = field(default_factory=list)
    shares: dict[int, tuple[float, ...]] = field(default_factory=lambda: {1: (1.0,)})
    changes: dict[str, list[float]] = field(default_factory=dict)
    slowdowns: list[float] = field(default_factory=list)
    cuts: list[float] = field(default_factory=list)
    cycles: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)

    def add(self, under_way: int, tokens: int, seconds: float) -> None:
        self.steps.setdefault((under_way, tokens), []).append(seconds)

    def step_s(self, under_way: int, tokens: int) -> float:
        return median(self.steps[under_way, tokens])


async def calibrate(pipeline: RealPipeline, rounds: int, report: Callable[[str], None]) -> Calibration:
    """Measure for ``rounds`` rounds, and freeze."""
    points = _Points()
    await _decode(pipeline, 4, DECODE_PROMPT)  # wakes and maps everything once
    for number in range(rounds):
        report(f"calibrating, round {number + 1} of {rounds}: steps of one stage")
        await _measure_steps(pipeline, points, 1)
        points.long_rows.append(await _decode(pipeline, LONG_ROWS, LONG_CONTEXT))
        points.long_prompts.append(await _prompts(pipeline, LONG_PROMPT, 1))
        report(f"calibrating, round {number + 1} of {rounds}: refactoring")
        await _measure_changes(pipeline, points)
        report(f"calibrating, round {number + 1} of {rounds}: steps of two stages")
        await pipeline.change(3)
        await _measure_shares(pipeline, points, 3)
        await pipeline.change(2)
        await _measure_shares(pipeline, points, 2)
        points.hops.append(await _decode(pipeline, 1, DECODE_PROMPT) - points.step_s(1, 1))
        await _measure_steps(pipeline, points, 2)
        await pipeline.change(1)
    return _frozen(pipeline, points)


# --- measuring --------------------------------------------------------------------------------------------------------


async def _measure_steps(pipeline: RealPipeline, points: _Points, under_way: int) -> None:
    for rows in DECODED[under_way]:
        points.add(under_way, rows, await _decode(pipeline, under_way * rows, DECODE_PROMPT))
    for tokens in PROMPTS[under_way]:
        points.add(under_way, tokens, await _prompts(pipeline, tokens, under_way))


async def _decode(pipeline: RealPipeline, requests: int, prompt_tokens: int) -> float:
    """Mean time from one token of a request to its next while all of them decode."""
    found = await _together(pipeline, requests, prompt_tokens, DECODE_TOKENS)
    begun_s, over_s = max(times[1] for times in found), min(times[-1] for times in found)
    gaps = [b - a for times in found for a, b in pairwise(times[1:]) if a >= begun_s and b <= over_s]
    return mean(gaps) if gaps else mean(b - a for times in found for a, b in pairwise(times[-4:]))


async def _together(pipeline: RealPipeline, requests: int, prompt_tokens: int, output_tokens: int) -> list[list[float]]:
    found: list[list[float]] = []

    async def ask() -> None:
        found.append(await pipeline.ask(prompt_tokens, output_tokens))

    async with trio.open_nursery() as nursery:
        for _ in range(requests):
            nursery.start_soon(ask)
    return found


async def _prompts(pipeline: RealPipeline, tokens: int, chains: int) -> float:
    """Time of a prompt while ``chains`` are always under way, each after the one before."""
    took: list[float] = []

    async def chain() -> None:
        for _ in range(PROMPT_REPEATS):
            asked_s, first_s = await pipeline.ask(tokens, 1)
            took.append(first_s - asked_s)

    async with trio.open_nursery() as nursery:
        for _ in range(chains):
            nursery.start_soon(chain)
    return median(took)


async def _measure_shares(pipeline: RealPipeline, points: _Points, stages: int) -> None:
    await trio.sleep(REPORT_S)
    before = pipeline.busy_s()
    await _together(pipeline, 2, 64, 24)
    await trio.sleep(REPORT_S)
    busy = np.subtract(pipeline.busy_s(), before)
    points.shares[stages] = tuple((busy / busy.sum()).tolist())


async def _measure_changes(pipeline: RealPipeline, points: _Points) -> None:
    """Along the chain of changes, under streams that decode."""
    tokens: list[list[float]] = []
    over = trio.Event()

    async def stream() -> None:
        while not over.is_set():
            tokens.append(await pipeline.ask(DECODE_PROMPT, CHANGE_TOKENS_MAX // 8))

    windows: list[tuple[int, int, float, float]] = []
    async with trio.open_nursery() as nursery:
        for _ in range(CHANGE_STREAMS):
            nursery.start_soon(stream)
        before = pipeline.stages
        for after in CHANGES:
            await trio.sleep(BEFORE_CHANGE_S)
            asked_s = trio.current_time()
            report = await pipeline.change(after)
            phases = report.phase_ms
            cut_s = sum(phases.get(name, 0.0) for name in ("plan", "load", "copy", "commit")) / 1000
            points.changes.setdefault(f"{before}>{after}", []).append(cut_s)
            points.blocks.append(report.kv_final_bytes / (BLOCK_TOKENS * pipeline.kv_bytes_per_token))
            points.cuts.append(phases.get("switch", 0.0) / 1000)
            windows.append((before, after, asked_s, asked_s + cut_s))
            before = after
        over.set()
    for _, _, asked_s, cut_s in windows:
        usual, meanwhile = (
            _gaps(tokens, begin_s, end_s) for begin_s, end_s in ((asked_s - BEFORE_CHANGE_S, asked_s), (asked_s, cut_s))
        )
        if usual and meanwhile:
            points.slowdowns.append(mean(meanwhile) / mean(usual) - 1)
            points.cycles.append(mean(usual))


def _gaps(tokens: list[list[float]], begin_s: float, end_s: float) -> list[float]:
    return [b - a for times in tokens for a, b in pairwise(times[1:]) if a >= begin_s and b <= end_s]


# --- fitting ----------------------------------------------------------------------------------------------------------


def _frozen(pipeline: RealPipeline, points: _Points) -> Calibration:
    known = sorted({tokens for _, tokens in points.steps})
    context_s = _context_s(points)
    square_s = _square_s(points)
    tables = []
    for under_way in (1, 2):
        # A cycle of two stages lasts as long as the longer takes for both steps: more than the way through both.
        through = 1.0 if under_way == 1 else 2 * max(points.shares[2])
        at, seconds = [], []
        for rows in DECODED[under_way]:
            at.append(rows)
            seconds.append(
                points.step_s(under_way, rows) / through - context_s * rows * (DECODE_PROMPT + DECODE_TOKENS / 2)
            )
        for tokens in PROMPTS[under_way]:
            at.append(tokens)
            seconds.append(points.step_s(under_way, tokens) / through - square_s * tokens**2)
        tables.append(tuple(np.interp(known, at, _rising(seconds)).tolist()))
    # Beside others nothing is faster than alone.
    tables[1] = tuple(np.maximum(tables[0], tables[1]).tolist())
    return Calibration(
        model=pipeline.model.name,
        tokens=tuple(known),
        seconds=tuple(tables),
        context_s=context_s,
        square_s=square_s,
        hop_s=float(np.clip(median(points.hops), HOP_S_MIN, HOP_S_MAX)),
        shares=points.shares,
        change_s={name: median(each) for name, each in points.changes.items()},
        change_slowdown=max(0.0, median(points.slowdowns)),
        # The steps that are under way at the cut end first: half a cycle that the simulators know by themselves.
        cut_s=max(0.0, median(points.cuts) - median(points.cycles) / 2),
        cut_blocks=mean(points.blocks),
        step_tokens_max=STEP_TOKENS_MAX,
        requests_max=REQUESTS_MAX,
        context_tokens=CONTEXT_TOKENS,
        kv_tokens=KV_TOKENS,
        steps_max=steps_under_way_max(),
    )


def _rising(values: list[float]) -> list[float]:
    """The nearest values, in the least squares, that never fall: neighbours that do are replaced by their mean."""
    groups: list[tuple[float, int]] = []
    for value in values:
        groups.append((value, 1))
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            (one, ones), (other, others) = groups[-2:]
            groups[-2:] = [((one * ones + other * others) / (ones + others), ones + others)]
    return [value for value, count in groups for _ in range(count)]


def _context_s(points: _Points) -> float:
    """What a token of context adds to a step of decoding rows."""
    more = LONG_ROWS * (LONG_CONTEXT - DECODE_PROMPT)
    return max(0.0, (median(points.long_rows) - points.step_s(1, LONG_ROWS)) / more)


def _square_s(points: _Points) -> float:
    """From a prompt of two steps beside two of one step: twice the tokens, four times the square."""
    whole, half = median(points.long_prompts), points.step_s(1, STEP_TOKENS_MAX)
    return max(0.0, (whole - 2 * half) / (LONG_PROMPT**2 - 2 * STEP_TOKENS_MAX**2))
