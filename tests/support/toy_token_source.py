"""A token source in memory: a real implementation of `actors.generation.TokenSource` with a toy rule for the next token.

The rule: output token i of a greedy request is the prompt's token i + 1 (the begin token is skipped), then the end token. A
request that draws (temperature > 0) starts ``seed`` tokens further on, so seeds can be told apart. Every token takes one
turn of the loop; `hold` stops all of them until `release`.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from itertools import cycle, islice

import trio
from flexpipe.actors.generation import GenerationFailedError, ModelFacts, PipelineStatus, TokenEvent
from flexpipe.runtime.interface import SampledToken
from toy_language import BEGIN, END

PAGES = 1000


def toy_tokens(request):
    """What the rule says for a request, without limit of length, up to and with the end token."""
    text = [token for token in request.prompt if token != BEGIN] or [END]
    shift = request.params.seed % len(text) if request.params.temperature > 0 else 0
    return [*text[shift:], *text[:shift], END]


class ToyTokenSource:
    """``requests_max`` are accepted at once; make it, run it in a nursery."""

    def __init__(self, requests_max=256, context_tokens=4096):
        self.requests_max = requests_max
        self.context_tokens = context_tokens
        self.opened = []
        self.tokens_made = 0
        self._open = {}
        self._ready = True
        self._nursery = None
        self._gate = trio.Event()
        self._gate.set()
        self._changed = trio.Event()

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    @asynccontextmanager
    async def open(self, request, outputs=None):
        self._check(request, is_new=outputs is None)
        stream = _Stream(request, len(outputs or ()))
        self.opened.append(request)
        self._open[id(stream)] = stream
        self._notify()
        self._nursery.start_soon(self._generate, stream)
        try:
            yield stream
        finally:
            stream.scope.cancel()
            self._open.pop(id(stream), None)
            self._notify()

    def status(self):
        return PipelineStatus(
            ready=self._ready,
            reason="" if self._ready else "stage 1 is lost",
            epoch=7,
            model=ModelFacts("toy", "ToyForCausalLM", 4, self.context_tokens),
            stages=(self._stage(0), self._stage(1)),
            running=len(self._open),
            waiting=0,
        )

    def hold(self):
        """Make no token until `release`."""
        self._gate = trio.Event()

    def release(self):
        self._gate.set()

    def lose_stage(self):
        """Every open request is lost, and none is taken until `recover`."""
        self._ready = False
        for stream in self._open.values():
            stream.fail(GenerationFailedError("stage_lost", "stage 1 is lost", 2.0))

    def recover(self):
        self._ready = True

    async def until(self, condition):
        """Wait until ``condition()`` holds; it is looked at whenever a request comes, goes or gets a token."""
        while not condition():
            self._changed = trio.Event()
            await self._changed.wait()

    async def until_idle(self):
        await self.until(lambda: not self._open)

    def _check(self, request, *, is_new):
        if not self._ready:
            raise GenerationFailedError("not_ready", "stage 1 is lost", 2.0)
        if is_new and len(self._open) >= self.requests_max:
            raise GenerationFailedError("overloaded", f"{self.requests_max} requests are under way", 3.0)
        if len(request.prompt) >= self.context_tokens:
            raise GenerationFailedError("too_long", f"the context holds {self.context_tokens} tokens")

    async def _generate(self, stream):
        request = stream.request
        with stream.scope:
            for index, token_id in islice(enumerate(cycle(toy_tokens(request))), stream.first_index, None):
                await self._gate.wait()
                await trio.lowlevel.checkpoint()
                finish = _finish(request, index, token_id)
                stream.push(TokenEvent(index, _sampled(request, token_id), finish))
                self.tokens_made += 1
                self._notify()
                if finish is not None:
                    return

    def _notify(self):
        self._changed.set()

    def _stage(self, number):
        return {
            "replica": 0,
            "stage": number,
            "worker": number,
            "state": "serving" if self._ready or number == 0 else "gone",
            "pid": 1000 + number,
            "device": "cpu",
            "epoch": 7,
            "first_atom": f"layers.{2 * number}.attention",
            "last_atom": f"layers.{2 * number + 1}.mlp",
            "layers": [2 * number, 2 * number + 1],
            "backend": "a toy",
            "weight_bytes": 4096,
            "weight_bytes_loaded": 4096,
            "weight_bytes_expected": 4096,
            "peak_rss_bytes": 8192,
            "busy_s": 0.0,
            "steps": self.tokens_made,
            "kv_bytes": 64 * PAGES,
            "kv_pages_used": len(self._open),
            "kv_pages_free": PAGES - len(self._open),
        }


def _finish(request, index, token_id):
    if token_id in request.stop_token_ids:
        return "stop"
    return "length" if index + 1 == request.max_tokens else None


def _sampled(request, token_id):
    alternatives = request.params.logprobs
    if alternatives is None:
        return SampledToken(token_id)
    top = tuple(((token_id + other) % 256, -0.25 - other) for other in range(alternatives))
    return SampledToken(token_id, -0.25, top)


class _Stream:
    """The events of one request: never makes the source wait, holds at most ``max_tokens`` of them."""

    def __init__(self, request, first_index):
        self.request = request
        self.first_index = first_index
        self.scope = trio.CancelScope()
        self._events = deque()
        self._failure = None
        self._arrived = trio.Event()

    def push(self, event):
        if self._failure is None:
            self._events.append(event)
            self._arrived.set()

    def fail(self, error):
        self._failure = error
        self.scope.cancel()
        self._arrived.set()

    def __aiter__(self):
        return self

    async def __anext__(self):
        while not self._events:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise StopAsyncIteration
            self._arrived = trio.Event()
            await self._arrived.wait()
        event = self._events.popleft()
        self._ended = event.finish is not None
        return event

    _ended = False
