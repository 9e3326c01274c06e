"""What a refactoring costs those whose tokens stream meanwhile: pauses, slower tokens, and whether the tokens are right.

Real `flexpipe serve` processes with eight greedy streams over HTTP, taken along the chain 2→4→3→6→1 by each strategy in turn;
then a split and a merge again and again under contexts of several lengths. Pauses are this client's own, from when tokens arrived;
the server's reports stand beside them. What is compared was measured in one run; the rows are `refactor_figures`'.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from ..actors.config import ServeConfig
from ..actors.handoff_machine import DEFAULT_HANDOFF_LIMITS
from ..actors.refactor import RefactorReport
from ..actors.route import STRATEGIES
from ..client import AsyncClient
from ..preparation import PreparedModel, prepare
from .handoff_link import LAYERS, Shape, measured
from .refactor_figures import Session, Window, by_context, by_strategy, compared, figures, medians
from .served_process import ServedProcess, busy_cpu_s, served_process
from .token_streams import TokenStream, TokenStreams

STREAMS = 8
CHAIN = (2, 4, 3, 6, 1)
CHAIN_CONTEXT_TOKENS = 256
CONTEXT_CHANGES = (4, 2)
"""Under each length of context: a split from two stages to four, and a merge back."""
CONTEXT_STRATEGIES = ("precopy", "stop-copy")
OUTPUT_TOKENS_MAX = 1536
"""More than a stream makes before its session is over."""
QUIET_S = 6.0
"""Between two changes: long enough for a median gap, short of the 30 s of the pause's definition, which a bench of an hour
would need. A change's usual gaps are taken from the whole time since the one before."""
HURRIED_S = 1.0
"""The same where only the tokens matter."""

LINK_BYTES = 192 << 20
LINK_PAGE_BYTES = 24576
"""SmolLM2's."""
LINK_ROUNDS = 7

PASSAGE = (
    "The harbour wakes before the town does. Boats come in one by one, low in the water, and the first lamps go out. "
    "A woman counts crates and writes each number into a narrow book. Her brother mends a net; he has mended it every winter. "
    "When the wind turns, the ropes begin to sing, and the children who sleep above the bakery know what the day will be. "
    "Far out, a ship waits for the tide, because the channel is shallow and its pilot is a careful man. "
)
"""What the prompts are cut from, each beginning elsewhere."""

Report = Callable[[str, int, int], None]
"""Told what goes on, and how many sessions of how many are over."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. Strategies take turns within each round."""

    rounds: int = 3
    contexts: tuple[int, ...] = (256, 1024, 4096)
    strategies: tuple[str, ...] = STRATEGIES
    chain: tuple[int, ...] = CHAIN
    quiet_s: float = QUIET_S

    @property
    def sessions(self) -> int:
        """Servers that are started, and the two processes that only hand pages over."""
        return (self.rounds + 1) * len(self.strategies) + 2 + len(self.contexts) + 1


def run(model: str, plan: Plan, report: Report = lambda _line, _done, _total: None) -> dict[str, Any]:
    """Measure; plain data. Raises `ServerStartError`, and `FlexPipeError` where a change does not come off."""
    load_average = os.getloadavg()[0]
    bench = _Bench(model, prepare(model, ServeConfig(stages=plan.chain[0])), plan, report)
    ordinary = bench.chains(plan.rounds, plan.quiet_s)
    deterministic = bench.chains(1, min(plan.quiet_s, HURRIED_S), "--deterministic")
    tokens = [
        *bench.tokens(ordinary, "ordinary"),
        *bench.tokens(deterministic, "deterministic", "--deterministic"),
    ]
    contexts = [session for context in plan.contexts for session in bench.context(context)]
    chain_rows = [row for session in ordinary for row in figures(session)]
    context_rows = [row for session in contexts for row in figures(session)]
    sessions = [*ordinary, *contexts]
    return {
        "model": model,
        "streams": STREAMS,
        "chain": plan.chain,
        "rounds": plan.rounds,
        "quiet_s": plan.quiet_s,
        "processors": len(os.sched_getaffinity(0)),
        "load_average_at_start": load_average,
        "cores": statistics.median(session.cores for session in sessions),
        "cores_of_others": statistics.median(session.cores_of_others for session in sessions),
        "changes": chain_rows,
        "rows": medians(chain_rows),
        "strategies": by_strategy(chain_rows),
        "context_changes": context_rows,
        "context_rows": medians(context_rows),
        "contexts": by_context(context_rows),
        "tokens": tokens,
        "page_link": bench.page_link(),
    }


class _Bench:
    """One model's sessions, and how many are over."""

    def __init__(self, model: str, prepared: PreparedModel, plan: Plan, report: Report) -> None:
        self._model = model
        self._prepared = prepared
        self._plan = plan
        self._report = report
        self._done = 0

    def chains(self, rounds: int, quiet_s: float, *options: str) -> list[Session]:
        """Each strategy along the chain, ``rounds`` times in turn."""
        return [
            self._session(
                f"{strategy} along {'→'.join(map(str, self._plan.chain))}, round {number + 1}",
                CHAIN_CONTEXT_TOKENS,
                [(stages, strategy) for stages in self._plan.chain[1:]],
                quiet_s,
                *options,
            )
            for number in range(rounds)
            for strategy in self._plan.strategies
        ]

    def context(self, context: int) -> list[Session]:
        """A split and a merge by each strategy, alternating, on one server whose streams have ``context`` tokens and more."""
        strategies = [strategy for strategy in CONTEXT_STRATEGIES if strategy in self._plan.strategies]
        changes = [
            (stages, strategy)
            for _ in range(self._plan.rounds)
            for strategy in strategies
            for stages in CONTEXT_CHANGES
        ]
        return [self._session(f"contexts of {context} tokens", context, changes, self._plan.quiet_s)]

    def tokens(self, sessions: Sequence[Session], mode: str, *options: str) -> list[dict[str, Any]]:
        """Every disturbed stream against an undisturbed one of the same prompt."""
        most = max(len(stream.tokens) for session in sessions for stream in session.streams)
        with self._server(f"undisturbed, {mode}", CHAIN_CONTEXT_TOKENS, *options) as server:
            undisturbed = trio.run(_undisturbed, self._streams(server, CHAIN_CONTEXT_TOKENS, most))
        return [
            {
                "mode": mode,
                "strategy": strategy,
                **compared([s for s in sessions if s.strategy == strategy], undisturbed),
            }
            for strategy in self._plan.strategies
        ]

    def page_link(self) -> dict[str, float]:
        """Pages from process to process, and memcpy beside it; the best of some rounds, GB/s."""
        self._report("KV pages between two processes", self._done, self._plan.sessions)
        run_bytes = DEFAULT_HANDOFF_LIMITS.hurried_run_bytes_max
        shape = Shape(LINK_BYTES // (LAYERS * LINK_PAGE_BYTES), LINK_PAGE_BYTES, (run_bytes,), LINK_ROUNDS)
        took = measured(shape)[run_bytes]
        handoff_s, memcpy_s = min(took["handoff"]), min(took["memcpy"])
        return {
            "handoff_gb_per_s": shape.round_bytes / handoff_s / 1e9,
            "memcpy_gb_per_s": shape.round_bytes / memcpy_s / 1e9,
            "share": memcpy_s / handoff_s,
        }

    def _session(
        self, line: str, context: int, changes: list[tuple[int, str]], quiet_s: float, *options: str
    ) -> Session:
        with self._server(line, context, *options) as server:
            streams = self._streams(server, context, OUTPUT_TOKENS_MAX)
            gc.collect()
            gc.freeze()  # what this client's own collector takes, 0.1 s where it goes through everything, would pass for a pause
            return trio.run(_session, server, streams, self._plan.chain[0], changes, quiet_s, context)

    @contextmanager
    def _server(self, line: str, context: int, *options: str) -> Iterator[ServedProcess]:
        self._report(line, self._done, self._plan.sessions)
        per_token = sum(stage.kv_bytes_per_token for stage in self._prepared.plan.stages)
        kv_bytes = 2 * STREAMS * (context + OUTPUT_TOKENS_MAX) * per_token  # twice: of two epochs during a change
        shape = "--stages", str(self._plan.chain[0]), "--kv-memory", f"{kv_bytes}B"
        with served_process(self._model, *shape, *options) as server:
            yield server
        self._done += 1

    def _streams(self, server: ServedProcess, context: int, tokens_max: int) -> TokenStreams:
        return TokenStreams(server.url, self._prepared.name, self._prompts(context), tokens_max)

    def _prompts(self, tokens: int) -> list[list[int]]:
        sentences = PASSAGE.strip().split(". ")
        prompts = []
        for number in range(STREAMS):
            begin = number % len(sentences)
            text = f"{number + 1}. " + ". ".join([*sentences[begin:], *sentences[:begin]]) + " "
            ids = self._prepared.tokenizer.encode(text)
            prompts.append((ids * (tokens // len(ids) + 1))[:tokens])
        return prompts


async def _session(
    server: ServedProcess,
    streams: TokenStreams,
    stages: int,
    wanted: list[tuple[int, str]],
    quiet_s: float,
    context: int,
) -> Session:
    windows: list[Window] = []
    async with AsyncClient(server.url) as client, trio.open_nursery() as nursery:
        nursery.start_soon(streams.run)
        await streams.begun()
        began_s, cpu_s, busy_s, own_s = trio.current_time(), server.cpu_s(), busy_cpu_s(), time.process_time()
        for after, strategy in wanted:
            await trio.sleep(quiet_s)
            windows.append(await _change(client, streams, stages, after, strategy))
            stages = after
        await trio.sleep(quiet_s)
        ended_s = trio.current_time()
        served_s = server.cpu_s() - cpu_s
        others_s = busy_cpu_s() - busy_s - served_s - (time.process_time() - own_s)
        streams.leave()
    took_s = ended_s - began_s
    return Session(context, began_s, ended_s, tuple(windows), streams.streams, served_s / took_s, others_s / took_s)


async def _change(client: AsyncClient, streams: TokenStreams, before: int, after: int, strategy: str) -> Window:
    """One change, until every stream has had a token after it."""
    began_s = trio.current_time()
    phases_s: dict[str, float] = {}
    async with await client.refactor(stages=after, strategy=strategy) as refactoring:
        async for progress in refactoring:
            phases_s.setdefault(progress.phase, trio.current_time())
        report: RefactorReport = await refactoring.wait()
    ended_s = trio.current_time()
    await streams.until(lambda stream: stream.arrivals_s[-1] > ended_s)
    return Window(strategy, before, after, began_s, ended_s, phases_s, report)


async def _undisturbed(streams: TokenStreams) -> Sequence[TokenStream]:
    await streams.run()
    return streams.streams
