"""The demo: four chats at once through the openai client, undisturbed, and again while the pipeline is refactored, 2→4→3 stages.

It shows what each change cost, and that no text is another. Run it with `make demo`.
"""

import sys
from collections.abc import Sequence

import trio
from chats import MODEL, QUESTIONS, Chat, hold, others, panels
from flexpipe.actors.config import ServeConfig
from flexpipe.actors.refactor import RefactorReport
from flexpipe.client import AsyncClient
from flexpipe.commands.console import err, out, size, stage_table
from flexpipe.commands.serve import prepared_model, with_server

STAGES, CHANGES = 2, (4, 3)
GAPS_BEFORE_CHANGE = 24
"""In every chat; a pause is what exceeds their median."""


async def rhythm_known(chats: list[Chat]) -> None:
    """Wait until every chat has shown how fast it goes."""
    while any(len(chat.gaps_s) < GAPS_BEFORE_CHANGE and not chat.over for chat in chats):  # noqa: ASYNC110 - a demo may look
        await trio.sleep(0.05)


async def run(url: str) -> int:
    """Hold the chats twice, the second time while the pipeline changes; compare. The exit code."""
    undisturbed, disturbed = ([Chat(question) for question in QUESTIONS] for _ in range(2))
    out.print(f"\n[bold]Four chats on {STAGES} stages, undisturbed[/]")
    await hold([url], undisturbed)
    if not out.is_terminal:
        out.print(panels(undisturbed))
    out.print(
        f"[bold]The same again, while the pipeline goes from {STAGES} stages to {' and to '.join(map(str, CHANGES))}[/]"
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, [url], disturbed)
        nursery.start_soon(refactor, url, CHANGES, disturbed)
    async with AsyncClient(url) as client:
        status = await client.status()
    out.print(stage_table(status["stages"]))
    if changed := others(disturbed, undisturbed):
        err.print(f"other texts than undisturbed, or none: {changed}", style="red")
        return 1
    out.print("\n[bold green]All four texts are the same as undisturbed, character by character.[/]")
    return 0


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


def main() -> int:
    """Fetch the model where it is not here yet, serve it, hold the chats, stop."""
    config = ServeConfig(stages=STAGES, port=0, deterministic=True)
    return with_server(prepared_model(MODEL, config), config, run)


if __name__ == "__main__":
    sys.exit(main())
