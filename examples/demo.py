"""The demo: four chats at once through the openai client, undisturbed, and again while the pipeline is refactored, 2→4→3 stages.

It shows what each change cost, and that no text is another. Run it with `make demo`.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio
from flexpipe.actors.config import ServeConfig
from flexpipe.actors.refactor import RefactorReport
from flexpipe.client import AsyncClient
from flexpipe.commands.console import err, out, size, stage_table
from flexpipe.commands.serve import prepared_model, with_server
from openai import AsyncOpenAI
from rich.console import Group
from rich.live import Live
from rich.panel import Panel

MODEL = "smollm2"
STAGES, CHANGES = 2, (4, 3)
QUESTIONS = (
    "Tell me about the capital of France.",
    "Write a story about a lighthouse and a storm.",
    "How do I bake bread?",
    "Explain step by step why the sky is blue.",
)
MAX_TOKENS = 192
GAPS_BEFORE_CHANGE = 24
"""In every chat; a pause is what exceeds their median."""


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


async def rhythm_known(chats: list[Chat]) -> None:
    """Wait until every chat has shown how fast it goes."""
    while any(len(chat.gaps_s) < GAPS_BEFORE_CHANGE and not chat.over for chat in chats):  # noqa: ASYNC110 - a demo may look
        await trio.sleep(0.05)


async def run(url: str) -> int:
    """Hold the chats twice, the second time while the pipeline changes; compare. The exit code."""
    out.print(f"\n[bold]Four chats on {STAGES} stages, undisturbed[/]")
    undisturbed = await hold(url, ())
    out.print(
        f"[bold]The same again, while the pipeline goes from {STAGES} stages to {' and to '.join(map(str, CHANGES))}[/]"
    )
    disturbed = await hold(url, CHANGES)
    async with AsyncClient(url) as client:
        status = await client.status()
    out.print(stage_table(status["stages"]))
    changed = [chat.question for chat, quiet in zip(disturbed, undisturbed, strict=True) if chat.text != quiet.text]
    unanswered = [chat.question for chat in undisturbed if not chat.text]
    if changed or unanswered:
        err.print(f"other texts than undisturbed: {changed}; no answer: {unanswered}", style="red")
        return 1
    out.print("\n[bold green]All four texts are the same as undisturbed, character by character.[/]")
    return 0


async def hold(url: str, changes: Sequence[int]) -> list[Chat]:
    """Four chats at once, and ``changes`` of the pipeline meanwhile; prints what came and what it took."""
    chats = [Chat(question) for question in QUESTIONS]
    started_s = time.perf_counter()
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="unused") as openai, trio.open_nursery() as nursery:
        for chat in chats:
            nursery.start_soon(stream, openai, chat)
        if out.is_terminal:
            nursery.start_soon(watch, chats)
        nursery.start_soon(refactor, url, changes, chats)
    took_s = time.perf_counter() - started_s
    if not out.is_terminal and not changes:
        out.print(panels(chats))
    tokens = sum(chat.tokens for chat in chats)
    gaps = sorted(gap for chat in chats for gap in chat.gaps_s) or [0.0]
    out.print(
        f"{tokens} tokens in {took_s:.1f} s, {tokens / took_s:.0f} tokens/s. First tokens after "
        f"{max(chat.first_token_s for chat in chats):.2f} s at the latest, then one every "
        f"{gaps[len(gaps) // 2] * 1e3:.0f} ms in each chat (median).\n",
        highlight=False,
        soft_wrap=True,
    )
    return chats


async def refactor(url: str, changes: Sequence[int], chats: list[Chat]) -> None:
    """Change the number of stages, one change after the other, and say how each went."""
    before = STAGES
    async with AsyncClient(url) as client:
        for stages in changes:
            await rhythm_known(chats)
            refactoring = await client.refactor(stages=stages)
            report = await refactoring.wait()
            out.print(short(f"{before}→{stages} stages", report), highlight=False, soft_wrap=True)
            before = stages


def short(change: str, report: RefactorReport) -> str:
    """A report in two lines."""
    phases = ", ".join(f"{phase} {elapsed_ms:.0f}" for phase, elapsed_ms in report.phase_ms.items())
    pauses, weights = report.pauses, report.weights
    paused = "no chat was under way"
    if pauses.p50_ms is not None and pauses.max_ms is not None:
        paused = f"{pauses.requests} chats paused, {pauses.p50_ms:.0f} ms in the median, {pauses.max_ms:.0f} ms at most"
    return (
        f"  [bold]{change}[/]: {paused}; {phases} ms\n"
        f"      {size(report.kv_sent_bytes)} of KV pages moved; {size(weights.kept_bytes)} of weights stayed, "
        f"{size(weights.warm_bytes)} came from this host's memory, {size(weights.disk_bytes)} from disk"
    )


async def watch(chats: list[Chat]) -> None:
    """Draw the four answers as they grow, until all have ended."""
    with Live(panels(chats), console=out, refresh_per_second=10) as live:
        while not all(chat.over for chat in chats):
            await trio.sleep(0.1)
            live.update(panels(chats))


def panels(chats: list[Chat]) -> Group:
    """The chats, one below the other."""
    return Group(*(Panel(chat.text or "…", title=chat.question, title_align="left") for chat in chats))


def main() -> int:
    """Fetch the model where it is not here yet, serve it, hold the chats, stop."""
    config = ServeConfig(stages=STAGES, port=0, deterministic=True)
    return with_server(prepared_model(MODEL, config), config, run)


if __name__ == "__main__":
    sys.exit(main())
