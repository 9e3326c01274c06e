"""The `flexpipe story` command: its arguments and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..actors.config import ConfigError


def story(
    subject: str = "last",
    /,
    *,
    logs: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    diff: Annotated[tuple[str, str] | None, Parameter(negative="")] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Tell what happened to a request or in a change of the pipeline, and where the time went, from logs alone.

    For example:

        flexpipe story last
        flexpipe story 8f3a90 --logs ~/.local/state/flexpipe/logs/20261124-120000-4711
        flexpipe story last-refactor --logs node-a/logs --logs node-b/logs
        flexpipe story --diff 8f3a90 71bb02

    Args:
        subject: A request's id as in X-Request-Id, or its beginning; the number of an epoch; last, the request that ended last;
            or last-refactor.
        logs: A log folder; several times for those of several nodes, each of which has a clock of its own. By default that of the
            last server that was started here.
        diff: Two subjects; shows where the second one's time differs.
        json: Print the story as JSON, for machines.
    """
    from .story import story_command

    if diff is not None and subject != "last":
        raise ConfigError(f"--diff names its two subjects itself; leave {subject!r} out")
    first, second = diff or (subject, None)
    return story_command(first, logs, second, as_json=json)
