"""The demo: a real model on three stage processes, four chats at once through the openai client, and what it all weighed.

Run it with `make demo`.
"""

import sys
import time
from dataclasses import dataclass, field

import trio
from flexpipe.actors.config import ServeConfig
from flexpipe.client import AsyncClient
from flexpipe.commands.console import err, out, stage_table
from flexpipe.commands.serve import prepared_model, with_server
from openai import AsyncOpenAI
from rich.console import Group
from rich.live import Live
from rich.panel import Panel

MODEL = "smollm2"
QUESTIONS = (
    "What is the capital of France?",
    "Write two sentences about the sea.",
    "List three uses of a hammer.",
    "Explain in one sentence why the sky is blue.",
)
MAX_TOKENS = 64


@dataclass
class Chat:
    """One conversation as it streams."""

    question: str
    text: str = ""
    tokens: int = 0
    first_token_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)


async def stream(openai: AsyncOpenAI, chat: Chat) -> None:
    """Ask one question and collect the answer token by token."""
    asked_s = last_s = time.perf_counter()
    answer = await openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": chat.question}],
        max_tokens=MAX_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in answer:
        if chunk.usage is not None:
            chat.tokens = chunk.usage.completion_tokens
        if chunk.choices and chunk.choices[0].delta.content:
            now_s = time.perf_counter()
            if not chat.text:
                chat.first_token_s = now_s - asked_s
            else:
                chat.gaps_s.append(now_s - last_s)
            last_s = now_s
            chat.text += chunk.choices[0].delta.content


async def run(url: str) -> int:
    """Hold four chats at once; print what came and what it took."""
    chats = [Chat(question) for question in QUESTIONS]
    started_s = time.perf_counter()
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="unused") as openai, trio.open_nursery() as nursery:
        for chat in chats:
            nursery.start_soon(stream, openai, chat)
        if out.is_terminal:
            nursery.start_soon(watch, chats, nursery)
    took_s = time.perf_counter() - started_s
    if not out.is_terminal:
        out.print(panels(chats))
    async with AsyncClient(url) as client:
        status = await client.status()
    tokens = sum(chat.tokens for chat in chats)
    gaps = sorted(gap for chat in chats for gap in chat.gaps_s)
    out.print(f"\n[bold]{tokens} tokens in {took_s:.1f} s: {tokens / took_s:.0f} tokens/s[/] over four streams.")
    out.print(
        f"First tokens after {max(chat.first_token_s for chat in chats):.2f} s at the latest, then one every "
        f"{gaps[len(gaps) // 2] * 1e3:.0f} ms in each stream (median).\n"
    )
    out.print(stage_table(status["stages"]))
    unanswered = [chat.question for chat in chats if not chat.text]
    if unanswered:
        err.print(f"no answer to: {unanswered}", style="red")
    return int(bool(unanswered))


async def watch(chats: list[Chat], nursery: trio.Nursery) -> None:
    """Draw the four answers as they grow, until all streams have ended."""
    with Live(panels(chats), console=out, refresh_per_second=10) as live:
        while len(nursery.child_tasks) > 1:
            live.update(panels(chats))
            await trio.sleep(0.1)
        live.update(panels(chats))


def panels(chats: list[Chat]) -> Group:
    """The chats, one below the other."""
    return Group(*(Panel(chat.text or "…", title=chat.question, title_align="left") for chat in chats))


def main() -> int:
    """Fetch the model where it is not here yet, serve it on three stages, hold the chats, stop."""
    config = ServeConfig(stages=3, port=0)
    return with_server(prepared_model(MODEL, config), config, run)


if __name__ == "__main__":
    sys.exit(main())
