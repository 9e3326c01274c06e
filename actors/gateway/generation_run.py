"""One HTTP request's generation: runs its sequences, and hands their deltas to whoever writes the answer.

Owns the tasks that read the token source. Between those and the writer lies a buffer of deltas, so a slow client delays no
token: it holds at most the request's `max_tokens` deltas per sequence, and what has gathered in it goes out as one piece
(under load several tokens share one server-sent event). It must never know of HTTP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable

import trio

from ..generation import GenerationFailedError, TokenEvent, TokenSource
from .drain import Drain
from .metrics import GatewayMetrics
from .openai_responses import Usage, joined
from .prompts import Job
from .request_machine import Delta, RequestMachine


class GenerationRun:
    """The sequences of one job. Make it, `start` it in a nursery, then call `next_batch` until it returns nothing."""

    def __init__(
        self,
        job: Job,
        source: TokenSource,
        make_machine: Callable[[tuple[str, ...]], RequestMachine],
        drain: Drain,
        metrics: GatewayMetrics,
        arrived_s: float,
    ) -> None:
        self._job = job
        self._source = source
        self._drain = drain
        self._metrics = metrics
        self._arrived_s = arrived_s
        self._machines = [make_machine(choice.stops) for choice in job.choices]
        self._fresh: defaultdict[int, list[Delta]] = defaultdict(list)
        self._failure: GenerationFailedError | None = None
        self._changed = trio.Event()

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        completion = sum(machine.completion_tokens for machine in self._machines)
        return Usage(self._job.prompt_tokens, completion, self._job.prompt_tokens + completion)

    async def start(self, nursery: trio.Nursery) -> None:
        """Submit every sequence. Raises `GenerationFailedError` where the source refuses one; leave the nursery then."""
        for index in range(len(self._job.choices)):
            await nursery.start(self._run, index)
            if self._failure is not None:
                raise self._failure
        self._metrics.admitted(self._job.prompt_tokens)

    async def next_batch(self) -> dict[int, Delta]:
        """Wait for more; return what each sequence made since the last call, nothing at the end of all of them.

        Raises `GenerationFailedError` where one of them is lost, after everything made before was handed out.
        """
        while not self._fresh and self._failure is None and not all(machine.closed for machine in self._machines):
            self._changed = trio.Event()
            await self._changed.wait()
        fresh, self._fresh = self._fresh, defaultdict(list)
        if not fresh and self._failure is not None:
            raise self._failure
        return {index: joined(deltas) for index, deltas in fresh.items()}

    async def _run(self, index: int, *, task_status: trio.TaskStatus[None]) -> None:
        admitted = False
        try:
            with self._drain.work("generation"):
                async with self._source.open(self._job.choices[index].request) as events:
                    admitted = True
                    task_status.started()
                    await self._read(index, events)
        except GenerationFailedError as error:
            self._failure = self._failure or error
            self._changed.set()
        finally:
            if not admitted:
                task_status.started()

    async def _read(self, index: int, events: AsyncIterator[TokenEvent]) -> None:
        sequence = _Sequence(self._machines[index], self._metrics, self._arrived_s)
        async for event in events:
            self._show(index, sequence.take(event))
            if sequence.closed:
                return
        raise GenerationFailedError("stage_lost", "The generation ended without a last token.")

    def _show(self, index: int, delta: Delta) -> None:
        if self._failure is None and (delta.text or delta.reports or delta.finish is not None):
            self._fresh[index].append(delta)
            self._changed.set()


class _Sequence:
    """A machine with a clock: takes tokens and measures them."""

    def __init__(self, machine: RequestMachine, metrics: GatewayMetrics, arrived_s: float) -> None:
        self._machine = machine
        self._metrics = metrics
        self._arrived_s = arrived_s
        self._first_s = 0.0

    @property
    def closed(self) -> bool:
        return self._machine.closed

    def take(self, event: TokenEvent) -> Delta:
        now_s = trio.current_time()
        delta = self._machine.take(event)
        self._metrics.token()
        if event.index == 0:
            self._first_s = now_s
            self._metrics.first_token(now_s - self._arrived_s)
        if self._machine.closed:
            self._metrics.sequence_ended(now_s - self._first_s, self._machine.completion_tokens)
        return delta
