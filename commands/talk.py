"""`flexpipe generate` and `flexpipe chat`: text from a running server, or from one that lives for this command only."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from ..actors.config import ServeConfig
from ..client import AsyncClient
from ..client_messages import GenerationOptions, Message
from ..client_streams import AsyncTextStream
from .console import err
from .serve import prepared_model, with_server

EXIT_WORDS = ("/exit", "/quit")


@dataclass(frozen=True, slots=True)
class Where:
    """Which server: the one at ``url``, or one for ``model`` on ``stages`` stages that is started for this command."""

    model: str
    url: str | None
    api_key: str | None
    stages: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens; see `flexpipe generate --help`."""

    max_tokens: int
    temperature: float
    seed: int | None

    def options(self) -> GenerationOptions:
        """As the client's keyword arguments."""
        options = GenerationOptions(max_tokens=self.max_tokens, temperature=self.temperature)
        if self.seed is not None:
            options["seed"] = self.seed
        return options


def generate_command(prompt: str, where: Where, sampling: Sampling) -> int:
    """Print the continuation of ``prompt`` as it comes; the exit code."""

    async def generate(client: AsyncClient) -> int:
        await _print(await client.complete(prompt, stream=True, **sampling.options()))
        return 0

    return _with_client(where, generate)


def chat_command(where: Where, sampling: Sampling, system: str | None) -> int:
    """Talk until the user leaves; the exit code."""

    async def chat(client: AsyncClient) -> int:
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        err.print("Type a message; Ctrl-D or /exit leaves.", style="dim")
        while (line := await _read_line()) is not None:
            messages.append({"role": "user", "content": line})
            answer = await _print(await client.chat(messages, stream=True, **sampling.options()))
            messages.append({"role": "assistant", "content": answer})
        return 0

    return _with_client(where, chat)


def _with_client(where: Where, use: Callable[[AsyncClient], Awaitable[int]]) -> int:
    async def at(url: str) -> int:
        async with AsyncClient(url, api_key=where.api_key) as client:
            return await use(client)

    if where.url is not None:
        return trio.run(at, where.url)
    config = ServeConfig(stages=where.stages, port=0)
    return with_server(prepared_model(where.model, config), config, at)


async def _print(stream: AsyncTextStream) -> str:
    """Print a stream's text as it comes, and return it whole."""
    parts: list[str] = []
    async with stream:
        async for text in stream:
            parts.append(text)
            sys.stdout.write(text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(parts)


async def _read_line() -> str | None:
    """The user's next non-empty line; None where they leave. The wait happens in a thread, so that streams of others go on."""
    while True:
        try:
            line = await trio.to_thread.run_sync(input, "> ", abandon_on_cancel=True)
        except EOFError:
            return None
        if line.strip() in EXIT_WORDS:
            return None
        if line.strip():
            return line
