"""The HTTP answer to a generation: a body, or server-sent events, or an error; it ends early when the client leaves.

Owns the order of what is sent. Rules: headers go out when the source has taken every sequence, so a refusal has its own
HTTP status; a stream that cannot finish ends with an error frame and no `[DONE]`; a client that leaves cancels the
generation at once, streamed or not. It must never know how bytes reach the client.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..generation import GenerationFailedError
from .generation_run import GenerationRun
from .openai_errors import ApiError, generation_failed, internal_error
from .openai_responses import AnswerFormat, joined
from .prompts import Job
from .request_machine import Delta

DONE = b"data: [DONE]\n\n"
CLIENT_LEFT = "client_disconnected"
COMPLETED = "completed"
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class GenerationAnswer(Response):
    """Runs one job and sends its answer.

    ``ended(outcome, completion_tokens)`` is called once, before the last part is sent; ``broke(error)`` before it, where something
    raised what no contract allows: that request fails, and only that one.
    """

    def __init__(
        self,
        job: Job,
        run: GenerationRun,
        answer_format: AnswerFormat,
        ended: Callable[[str, int], None],
        broke: Callable[[Exception], None],
    ) -> None:
        super().__init__()
        self._job = job
        self._run = run
        self._format = answer_format
        self._ended = ended
        self._broke = broke
        self._outcome = CLIENT_LEFT
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Generate and send."""
        try:
            last = await self._generate(receive, send)
        finally:
            self._ended(self._outcome, self._run.usage.completion_tokens)
        if last is not None:
            # Outside the nursery: hypercorn reports a disconnect from inside the last send, and a watcher that cancels
            # it then leaves the socket open.
            await send({"type": "http.response.body", "body": last})

    async def _generate(self, receive: Receive, send: Send) -> bytes | None:
        """Send everything but the last part, which is returned; None where the client left."""
        last: bytes | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
                try:
                    await self._run.start(nursery)
                    last = await (self._stream(send) if self._job.stream else self._whole(send))
                    self._outcome = COMPLETED
                except GenerationFailedError as error:
                    last = await self._fail(send, generation_failed(error))
                nursery.cancel_scope.cancel()
        except Exception as error:
            self._broke(error)
            last = await self._fail(send, internal_error())
        return last

    async def _stream(self, send: Send) -> bytes:
        await self._start(send, 200, _STREAM_HEADERS)
        for index in range(len(self._job.choices)):
            opening = self._format.opening(index)
            if opening is not None:
                await _send_part(send, _frame(opening))
        shown: set[int] = set()
        while batch := await self._run.next_batch():
            usage = self._run.usage if self._job.continuous_usage else None
            chunks = (
                self._format.chunk(index, self._echoed(index, delta, shown), usage) for index, delta in batch.items()
            )
            await _send_part(send, b"".join(map(_frame, chunks)))
        if self._job.include_usage:
            return _frame(self._format.usage_chunk(self._run.usage)) + DONE
        return DONE

    async def _whole(self, send: Send) -> bytes:
        gathered: defaultdict[int, list[Delta]] = defaultdict(list)
        while batch := await self._run.next_batch():
            for index, delta in batch.items():
                gathered[index].append(delta)
        shown: set[int] = set()
        answers = [self._echoed(index, joined(gathered[index]), shown) for index in range(len(self._job.choices))]
        body = self._format.whole(answers, self._run.usage)
        await self._start(send, 200, _body_headers(body))
        return body

    def _echoed(self, index: int, delta: Delta, shown: set[int]) -> Delta:
        """Put the prompt before the first delta of a sequence whose request asked for that."""
        echo = self._job.choices[index].echo
        if not echo or index in shown:
            return delta
        shown.add(index)
        return Delta(echo + delta.text, delta.reports, delta.finish)

    async def _fail(self, send: Send, error: ApiError) -> bytes:
        self._outcome = error.detail.code or "internal_error"
        if self._started:
            return _frame(error.body())
        await self._start(send, error.status, [*error.headers(), _length(error.body())])
        return error.body()

    async def _start(self, send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        await send({"type": "http.response.start", "status": status, "headers": headers})


async def _cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


def _frame(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


def _body_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), _length(body)]


def _length(body: bytes) -> tuple[bytes, bytes]:
    return (b"content-length", str(len(body)).encode())
