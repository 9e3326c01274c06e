"""`flexpipe why`: what the autopilot decided and why, in words; from a running server, or from the logs of one that ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..actors.config import ConfigError
from ..client import Client
from .console import out

LOGS = ("daemon.jsonl.1", "daemon.jsonl")
"""A daemon's log, the older half first."""


def why_command(last: int, url: str, api_key: str | None, logs: Path | None, *, as_json: bool) -> int:
    """Print the last decisions, oldest first; the exit code. Raises `ConfigError`, `FlexPipeError`."""
    if last < 1:
        raise ConfigError(f"last is {last}; ask for one decision or more")
    if logs is not None:
        decisions = list(logged(logs))[-last:]
    else:
        with Client(url, api_key=api_key) as client:
            decisions = client.decisions(last)
    if as_json:
        print(json.dumps(decisions))
        return 0
    if not decisions:
        out.print("The autopilot decided nothing yet.")
    for decision in decisions:
        out.print(_told(decision), highlight=False, soft_wrap=True)
    return 0


def logged(folder: Path) -> Iterator[dict[str, Any]]:
    """The decisions in a server's log folder, oldest first, each with the time at which it was written."""
    files = [folder / name for name in LOGS if (folder / name).exists()]
    if not files:
        raise ConfigError(f"{folder} holds no daemon.jsonl; give the folder that `flexpipe serve` names at its start")
    for file in files:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if '"autopilot_decided"' in line and (event := _event(line)) is not None:
                yield event


def _event(line: str) -> dict[str, Any] | None:
    """The line's event; None where it was cut off."""
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return None
    return {key: event[key] for key in ("time_s", "decision", "words", "repeated")}


def _told(written: dict[str, Any]) -> str:
    when = f"{datetime.fromtimestamp(written['time_s'], UTC):%H:%M:%S} " if "time_s" in written else ""
    before = f"(after {written['repeated']} more like the one before)\n" if written["repeated"] else ""
    return f"{before}{when}{written['words']}\n"
