"""Measures the load of a `TokenSource` as requests pass through: what arrives, what is served, how long requests stay.

Work is counted in decoded tokens: a prompt's token counts for ``prompt_weight`` of one, since a prefill computes many at once. It
must never know what is made of the signals.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ..policies.control.signals import Signals
from .generation import GenerationRequest, PipelineStatus, TokenEvent, TokenSource

OUTPUT_TOKENS_AT_FIRST = 128
"""What a request is taken to make, at most, while none has ended yet."""
OUTPUT_SMOOTHING = 0.05
"""Weight of the last request's output in the expected one: about twenty requests are remembered."""


class LoadMeter:
    """A `TokenSource` around ``source`` that tells ``signals`` what passes."""

    def __init__(self, source: TokenSource, signals: Signals, prompt_weight: float) -> None:
        self.served_tokens = 0.0
        self._source = source
        self._signals = signals
        self._prompt_weight = prompt_weight
        self._output_tokens: float | None = None

    @asynccontextmanager
    async def open(
        self, request: GenerationRequest, outputs: tuple[int, ...] | None = None
    ) -> AsyncIterator[AsyncIterator[TokenEvent]]:
        """See `TokenSource.open`. A request that is refused has arrived all the same: it is demand.

        So has one that goes on from ``outputs``, which are prefilled like the prompt.
        """
        prompt = (len(request.prompt) + len(outputs or ())) * self._prompt_weight
        self._signals.arrived(trio.current_time(), prompt + self._expected(request, len(outputs or ())))
        async with self._source.open(request, outputs) as events:
            stream = _MeteredStream(events, self, prompt)
            try:
                yield stream
            finally:
                if stream.outputs:
                    self._ended(stream)

    def status(self) -> PipelineStatus:
        """See `TokenSource.status`."""
        return self._source.status()

    def _expected(self, request: GenerationRequest, delivered: int) -> float:
        expected = OUTPUT_TOKENS_AT_FIRST if self._output_tokens is None else self._output_tokens
        return min(request.max_tokens - delivered, expected)

    def _ended(self, stream: _MeteredStream) -> None:
        known = stream.outputs if self._output_tokens is None else self._output_tokens
        self._output_tokens = known + OUTPUT_SMOOTHING * (stream.outputs - known)
        now_s = trio.current_time()
        self._signals.finished(now_s, now_s - stream.first_at_s)


class _MeteredStream:
    """The tokens of one request, counted as they are read."""

    def __init__(self, events: AsyncIterator[TokenEvent], meter: LoadMeter, prompt: float) -> None:
        self.outputs = 0
        self.first_at_s = 0.0
        self._events = events
        self._meter = meter
        self._prompt = prompt

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        return self

    async def __anext__(self) -> TokenEvent:
        event = await self._events.__anext__()
        if not self.outputs:
            self.first_at_s = trio.current_time()
            self._meter.served_tokens += self._prompt
        self.outputs += 1
        self._meter.served_tokens += 1
        return event
