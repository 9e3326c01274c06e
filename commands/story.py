"""`flexpipe story`: what happened to a request or in a change, and where the time went, out of the logs and nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ..actors.config import ConfigError
from ..daemon_folders import newest_log_folder
from ..story.storyteller import story_of
from ..story.telling import Story
from .console import out
from .story_view import show, show_difference


def story_command(asked: str, logs: tuple[Path, ...], against: str | None, *, as_json: bool) -> int:
    """Print one story, or how that of ``against`` differs; the exit code. Raises `ConfigError`."""
    folders = logs or (_newest(),)
    one = story_of(asked, folders)
    other = story_of(against, folders) if against is not None else None
    if as_json:
        print(json.dumps(_plain(one) if other is None else {"a": _plain(one), "b": _plain(other)}))
    elif other is None:
        show(one, out)
    else:
        show_difference(one, other, out)
    return 0


def _newest() -> Path:
    folder = newest_log_folder()
    if folder is None:
        raise ConfigError("no server of this user has written logs here; give --logs DIR")
    return folder


def _plain(story: Story) -> dict[str, Any]:
    return dataclasses.asdict(story)
