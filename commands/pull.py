"""`flexpipe pull`: a model into the cache, with bars."""

from __future__ import annotations

import json
from pathlib import Path

from ..runtime.models.model_store import resolve
from ..runtime.models.pull import pull
from .console import out, progress, reporter, size


def pull_command(model: str, from_file: Path | None, *, as_json: bool) -> int:
    """Fetch and convert ``model``, from ``from_file`` where one is given; print where it is; the exit code."""
    with progress() as display:
        report = reporter(display)
        folder = pull(model, from_file=from_file, report=report) if from_file else resolve(model, report=report)
    weight_bytes = sum(file.stat().st_size for file in set(folder.weights.values()))
    if as_json:
        print(json.dumps({"folder": str(folder.path), "weight_bytes": weight_bytes}))
    else:
        out.print(f"{model}: {size(weight_bytes)} in {folder.path}", highlight=False, soft_wrap=True)
    return 0
