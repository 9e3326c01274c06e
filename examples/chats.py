"""Chats through the openai client, several at once, drawn as their answers grow: what the demos watch while something happens."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio
from flexpipe.commands.console import out
from openai import AsyncOpenAI
from rich.console import Group
from rich.live import Live
from rich.panel import Panel

MODEL = "smollm2"
QUESTIONS = (
    "Tell me about the capital of France.",
    "Write a story about a lighthouse and a storm.",
    "How do I bake bread?",
    "Explain step by step why the sky is blue.",
)
MAX_TOKENS = 192


@dataclass
class Chat:
    """One conversation as it streams."""

    question: str
    text: str = ""
    tokens: int = 0
    first_token_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    over: bool = False


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
    chat.over = True


async def hold(urls: Sequence[str], chats: list[Chat], api_key: str = "unused") -> None:
    """Hold all ``chats``, in turn at each of ``urls``, and draw them where there is a terminal; says what it took."""
    started_s = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for place, chat in enumerate(chats):
            nursery.start_soon(_hold_one, urls[place % len(urls)], chat, api_key)
        if out.is_terminal:
            nursery.start_soon(_watch, chats)
    took_s = time.perf_counter() - started_s
    tokens = sum(chat.tokens for chat in chats)
    gaps = sorted(gap for chat in chats for gap in chat.gaps_s) or [0.0]
    out.print(
        f"{tokens} tokens in {took_s:.1f} s, {tokens / took_s:.0f} tokens/s. First tokens after "
        f"{max(chat.first_token_s for chat in chats):.2f} s at the latest, then one every "
        f"{gaps[len(gaps) // 2] * 1e3:.0f} ms in each chat (median), the longest wait {gaps[-1]:.2f} s.\n",
        highlight=False,
        soft_wrap=True,
    )


async def _hold_one(url: str, chat: Chat, api_key: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key) as openai:
        await stream(openai, chat)


async def _watch(chats: list[Chat]) -> None:
    """Draw the four answers as they grow, until all have ended."""
    with Live(panels(chats), console=out, refresh_per_second=10) as live:
        while not all(chat.over for chat in chats):
            await trio.sleep(0.1)
            live.update(panels(chats))


def panels(chats: list[Chat]) -> Group:
    """The chats, one below the other."""
    return Group(*(Panel(chat.text or "…", title=chat.question, title_align="left") for chat in chats))


def others(chats: list[Chat], undisturbed: list[Chat]) -> list[str]:
    """The questions whose answers are not the same as undisturbed, or are none."""
    pairs = zip(chats, undisturbed, strict=True)
    return [chat.question for chat, quiet in pairs if chat.text != quiet.text or not quiet.text]
