"""`flexpipe bench`: runs a benchmark and prints it, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .console import err, out, size


def engine_command(model: str, concurrency: Sequence[int], threads: int, *, compare: bool, as_json: bool) -> int:
    """One stage's engine without sockets; the exit code."""
    from ..bench import engine
    from ..runtime.models.model_store import resolve

    result = engine.run(
        resolve(model).path,
        concurrency=concurrency,
        threads=threads,
        compare_transformers=compare,
        report=_note,
    )
    print(json.dumps(result, indent=2) if as_json else engine.table(result))
    return 0


def pipeline_command(model: str, concurrency: Sequence[int], rounds: int, *, as_json: bool) -> int:
    """What cutting a model into stages costs; the exit code."""
    from ..bench import pipeline

    result = pipeline.run(model, concurrency=concurrency, rounds=rounds, report=_note)
    if as_json:
        print(json.dumps(result, indent=2))
        return 0
    out.print(f"{model}: {result['tokens_in']} tokens in, {result['tokens_out']} out, median of {rounds} rounds")
    for row in result["rows"]:
        shape = f"{row['contender']['stages']} stages x {row['contender']['threads']} threads"
        out.print(
            f"  {row['requests']:>3} at once, {shape}: {row['tokens_per_s']:6.0f} tokens/s, {row['ratio']:.2f} of the "
            f"yardstick, first tokens within {row['first_token_s']:.2f} s, {row['cores']:.2f} cores",
            highlight=False,
            soft_wrap=True,
        )
    for name, stages in result["stages"].items():
        weights = ", ".join(f"{size(s['weight_bytes'])} of weights in {size(s['peak_rss_bytes'])}" for s in stages)
        out.print(f"  {name}: {weights}", highlight=False, soft_wrap=True)
    return 0


def _note(line: str) -> None:
    err.print(line, style="dim", highlight=False, soft_wrap=True)
