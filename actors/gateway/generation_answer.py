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
from .sending import CLIENT_LEFT, COMPLETED, AnswerWriter, cancel_on_disconnect, event

DONE = b"data: [DONE]\n\n"


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Generate and send."""
        writer = AnswerWriter(send)
        try:
            last = await self._generate(receive, writer)
        finally:
            self._ended(self._outcome, self._run.usage.completion_tokens)
        if last is not None:
            # Outside the nursery: hypercorn reports a disconnect from inside the last send, and a watcher that cancels
            # it then leaves the socket open.
            await writer.last(last)

    async def _generate(self, receive: Receive, writer: AnswerWriter) -> bytes | None:
        """Send everything but the last part, which is returned; None where the client left."""
        last: bytes | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_on_disconnect, receive, nursery.cancel_scope)
                try:
                    await self._run.start(nursery)
                    last = await (self._stream(writer) if self._job.stream else self._whole(writer))
                    self._outcome = COMPLETED
                except GenerationFailedError as error:
                    last = await self._fail(writer, generation_failed(error))
                nursery.cancel_scope.cancel()
        except Exception as error:
            self._broke(error)
            last = await self._fail(writer, internal_error())
        return last

    async def _stream(self, writer: AnswerWriter) -> bytes:
        await writer.start_events()
        for index in range(len(self._job.choices)):
            opening = self._format.opening(index)
            if opening is not None:
                await writer.part(event(opening))
        shown: set[int] = set()
        while batch := await self._run.next_batch():
            usage = self._run.usage if self._job.continuous_usage else None
            chunks = (
                self._format.chunk(index, self._echoed(index, delta, shown), usage) for index, delta in batch.items()
            )
            await writer.part(b"".join(map(event, chunks)))
        if self._job.include_usage:
            return event(self._format.usage_chunk(self._run.usage)) + DONE
        return DONE

    async def _whole(self, writer: AnswerWriter) -> bytes:
        gathered: defaultdict[int, list[Delta]] = defaultdict(list)
        while batch := await self._run.next_batch():
            for index, delta in batch.items():
                gathered[index].append(delta)
        shown: set[int] = set()
        answers = [self._echoed(index, joined(gathered[index]), shown) for index in range(len(self._job.choices))]
        body = self._format.whole(answers, self._run.usage)
        await writer.start_body(body)
        return body

    def _echoed(self, index: int, delta: Delta, shown: set[int]) -> Delta:
        """Put the prompt before the first delta of a sequence whose request asked for that."""
        echo = self._job.choices[index].echo
        if not echo or index in shown:
            return delta
        shown.add(index)
        return Delta(echo + delta.text, delta.reports, delta.finish)

    async def _fail(self, writer: AnswerWriter, error: ApiError) -> bytes:
        self._outcome = error.detail.code or "internal_error"
        return await writer.fail(error)
