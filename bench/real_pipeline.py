"""A served model for comparisons: a whole server in this process with real worker processes, asked where its gateway would ask.

Owns the server's life and the clock by which requests are timed. HTTP is in it for changes only. It must never know what is
compared.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trio

from ..actors.config import ServeConfig
from ..actors.generation import GenerationRequest
from ..actors.refactor import RefactorReport
from ..actors.replicas import Replicas
from ..client import AsyncClient
from ..daemon import Server, serve
from ..preparation import PreparedModel, prepare
from ..runtime.interface import BLOCK_TOKENS, SamplingParams
from ..sim.fidelity.case import Case
from ..sim.fidelity.observed import Observed, ObservedChange

REQUESTS_MAX = 16
"""That run at once: few enough that an overloaded pipeline has a queue."""
CONTEXT_TOKENS = 2048
KV_TOKENS = REQUESTS_MAX * 1024
STEP_TOKENS_MAX = 512
QUEUE_MAX = 1 << 16
READY_LOOK_S = 0.05


class RealRunError(Exception):
    """The server gave up; the sentence is its own."""


@dataclass(slots=True)
class RealPipeline:
    """A server that is ready. Every stage has one thread, so that a stage is as fast alone as beside others."""

    model: PreparedModel
    replicas: Replicas
    client: AsyncClient
    chance: np.random.Generator

    @property
    def stages(self) -> int:
        """How many there are now."""
        return len(self.replicas.status().stages)

    @property
    def kv_bytes_per_token(self) -> int:
        """Over all layers."""
        return kv_bytes_per_token(self.model)

    def busy_s(self) -> tuple[float, ...]:
        """What each stage computed since its process started; up to a second old."""
        return tuple(stage["busy_s"] for stage in self.replicas.status().stages)

    async def ask(self, prompt_tokens: int, output_tokens: int) -> list[float]:
        """When a request of random tokens was asked for and when each of its tokens came, in trio's seconds."""
        prompt = tuple(self.chance.integers(0, self.model.program.vocabulary_size, prompt_tokens).tolist())
        request = GenerationRequest(prompt, SamplingParams(temperature=0.0), output_tokens)
        asked_s = trio.current_time()
        async with self.replicas.open(request) as events:
            return [asked_s, *[trio.current_time() async for _ in events]]

    async def change(self, stages: int) -> RefactorReport:
        """Refactor, live."""
        async with await self.client.refactor(stages=stages) as refactoring:
            return await refactoring.wait()

    async def play(self, case: Case) -> Observed:
        """Let a case happen."""
        if self.stages != case.stages:
            await self.change(case.stages)
        count = len(case.trace)
        arrival_s, first_s, end_s = np.zeros(count), np.zeros(count), np.zeros(count)
        changes: list[ObservedChange] = []
        began_s = trio.current_time()

        async def visit(number: int) -> None:
            await trio.sleep_until(began_s + float(case.trace.arrival_s[number]))
            times = await self.ask(int(case.trace.input_tokens[number]), int(case.trace.output_tokens[number]))
            arrival_s[number], first_s[number], end_s[number] = times[0], times[1], times[-1]

        async def operate() -> None:
            for planned in case.changes:
                await trio.sleep_until(began_s + planned.at_s)
                asked_s = trio.current_time()
                report = await self.change(planned.stages)
                pause_ms = report.pauses.p50_ms
                pause_s = None if pause_ms is None else pause_ms / 1000
                changes.append(ObservedChange(planned.stages, trio.current_time() - asked_s, pause_s))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(operate)
            for number in range(count):
                nursery.start_soon(visit, number)
        return Observed(arrival_s, first_s, end_s, case.trace.output_tokens, tuple(changes))


def with_real_pipeline(model: str, seed: int, work: Callable[[RealPipeline], Awaitable[None]]) -> None:
    """Start a server of one stage, do the work, and stop it. Raises `RealRunError`."""
    with tempfile.TemporaryDirectory(prefix="flexpipe-fidelity-") as folder:
        prepared = prepare(model, ServeConfig(stages=1, threads=1))
        config = ServeConfig(
            stages=1,
            threads=1,
            port=0,
            running=REQUESTS_MAX,
            queue=QUEUE_MAX,
            step_tokens=STEP_TOKENS_MAX,
            context=CONTEXT_TOKENS,
            kv_memory=f"{KV_TOKENS // BLOCK_TOKENS * BLOCK_TOKENS * kv_bytes_per_token(prepared)}B",
            log_dir=Path(folder),
        )

        async def present(server: Server) -> None:
            try:
                while not server.replicas.status().ready:  # noqa: ASYNC110 - the status is the fact; nothing signals it here
                    await trio.sleep(READY_LOOK_S)
                async with AsyncClient(server.url) as client:
                    await work(RealPipeline(prepared, server.replicas, client, np.random.default_rng(seed)))
            finally:
                server.stop()

        reason = trio.run(serve, prepared, config, present)
        if reason:
            raise RealRunError(f"the pipeline did not serve: {reason}")


def kv_bytes_per_token(model: PreparedModel) -> int:
    """Over all layers."""
    return sum(stage.kv_bytes_per_token for stage in model.plan.stages)


def steps_under_way_max() -> int:
    """Of a pipeline on this machine's processors (`replica_factory`)."""
    return len(os.sched_getaffinity(0))
