"""`flexpipe serve`, and a server that lives only as long as something in the foreground needs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import outcome
import trio
from rich.progress import Progress, TaskID

from ..actors.config import ServeConfig
from ..actors.generation import PipelineStatus
from ..daemon import Server, serve
from ..preparation import PreparedModel, prepare
from .console import err, out, progress, reporter, size, stage_table

POLL_INTERVAL_S = 0.1


def serve_command(model: str, config: ServeConfig) -> int:
    """Serve until a signal; the exit code."""
    prepared = prepared_model(model, config)
    reason = trio.run(serve, prepared, config, _present)
    if reason:
        err.print(f"the pipeline could not be kept up: {reason}", style="red", highlight=False)
        return 1
    return 0


def prepared_model(model: str, config: ServeConfig) -> PreparedModel:
    """Fetch, convert, capture and plan a model, with progress bars."""
    with progress() as display:
        return prepare(model, config, reporter(display))


def with_server(prepared: PreparedModel, config: ServeConfig, use: Callable[[str], Awaitable[int]]) -> int:
    """Serve, wait until ready, ``await use(url)``, stop; its exit code, or 1 where the pipeline never came up.

    What ``use`` raises ends the server first and then comes out by itself, not wrapped in the server's exception group.
    """
    used: outcome.Outcome[int] | None = None

    async def present(server: Server) -> None:
        nonlocal used
        if await _show_loading(server):
            used = await outcome.acapture(use, server.url)
        server.stop()

    reason = trio.run(serve, prepared, config, present)
    if reason:
        err.print(reason, style="red", highlight=False)
    return used.unwrap() if used is not None else 1


async def _present(server: Server) -> None:
    if not await _show_loading(server):
        return
    status = server.replicas.status()
    out.print(f"[bold]{status.model.name}[/] is ready at [bold]{server.url}/v1[/]  (Ctrl-C stops it)", highlight=False)
    out.print(stage_table(status.stages))
    out.print(f"logs: {server.log_folder}", highlight=False, soft_wrap=True)


async def _show_loading(server: Server) -> bool:
    """Draw a bar for each stage until the pipeline serves; False where it was given up before."""
    with progress() as display:
        bars: dict[int, TaskID] = {}
        while not (status := server.replicas.status()).ready:
            if server.given_up():
                return False
            _draw(display, bars, status)
            await trio.sleep(POLL_INTERVAL_S)
    return True


def _draw(display: Progress, bars: dict[int, TaskID], status: PipelineStatus) -> None:
    for stage in status.stages:
        number = stage["stage"]
        if number not in bars:
            bars[number] = display.add_task("")
        text = f"stage {number}: {stage['state']}"
        if stage["weight_bytes"]:
            text += f", {size(stage['weight_bytes'])}"
        total = stage["weight_bytes_expected"] or None
        display.update(bars[number], description=text, completed=stage["weight_bytes_loaded"], total=total)
