"""The refactoring bench's result for people: two tables and a few sentences that hold it against its bars.

Pure: plain data in, text out. Owns the bars' values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

STEPS_BAR = 1.0
"""A pause at precopy is at most one decode step long."""
COPY_RATIO_BAR = 1.05
"""Tokens come at most this much slower while pages are copied."""
RESENT_BAR = 0.05
"""Share of the bytes sent that may be sent again."""
NLL_BAR = 1e-5
"""Nats per token."""
STOP_COPY_BAR = 20.0
"""How many times longer a pause at stop-copy is, at `STOP_COPY_CONTEXT` tokens in each stream."""
STOP_COPY_CONTEXT = 1024

TextRow = tuple[str, ...]


def change_rows(result: Mapping[str, Any]) -> list[TextRow]:
    """A row per strategy and change of the chain; the first names the columns. Milliseconds."""
    head = (
        "strategy",
        "change",
        "step",
        "pause p50",
        "p99",
        "longest",
        "steps",
        "at cut",
        "while loading",
        "copying",
        "took",
    )
    return [head, *(_change_row(row) for row in result["rows"])]


def _change_row(row: Mapping[str, Any]) -> TextRow:
    names = "step_before_ms", "pause_p50_ms", "pause_p99_ms", "pause_max_ms", "pause_in_steps", "cut_pause_p99_ms"
    late = "tpot_load_ms", "tpot_copy_ms", "took_ms"
    return (row["strategy"], f"{row['from']}→{row['to']}", *(_number(row[name]) for name in (*names, *late)))


def context_rows(result: Mapping[str, Any]) -> list[TextRow]:
    """A row per strategy, change and context; the first names the columns. Milliseconds."""
    head = "strategy", "change", "context", "step", "pause p99", "at cut", "growth per 1,024 tokens"
    rows = []
    for row in result["contexts"]:
        columns = (row[name] for name in ("contexts", "step_before_ms", "pause_p99_ms", "cut_pause_p99_ms"))
        for context, *numbers in zip(*columns, strict=True):
            change = f"{row['from']}→{row['to']}"
            rows.append((row["strategy"], change, str(context), *map(_number, numbers), _number(row["growth_ms"])))
    return [head, *rows]


def sentences(result: Mapping[str, Any]) -> Iterator[str]:
    """What the figures come to, and how far they can be trusted."""
    yield (
        f"{result['streams']} streams, medians of {result['rounds']} rounds. The servers got {result['cores']:.2f} cores of "
        f"{result['processors']}; other work took {result['cores_of_others']:.2f} (load average at the start "
        f"{result['load_average_at_start']:.1f}): with others at work, compare within this run only."
    )
    for row in result["strategies"]:
        yield _strategy(row)
    for row in result["tokens"]:
        yield _tokens(row)
    yield from _against_stop_copy(result)
    link = result["page_link"]
    yield (
        f"KV pages between two processes: {link['handoff_gb_per_s']:.1f} GB/s, {link['share']:.0%} of memcpy's "
        f"{link['memcpy_gb_per_s']:.1f} GB/s in the same run (bar 70%)."
    )


def _strategy(row: Mapping[str, Any]) -> str:
    text = (
        f"{row['strategy']}: pause p99 {_number(row['pause_p99_ms'])} ms, {_number(row['pause_in_steps'])} decode steps "
        f"(worst {_number(row['worst_pause_ms'])} ms, {_number(row['worst_in_steps'])} steps)"
    )
    if row["strategy"] == "precopy":
        text += f" (bar {STEPS_BAR:g}); tokens while copying {_number(row['copy_ratio'])}x (bar {COPY_RATIO_BAR:g})"
    if row["resent_share"] is not None:
        text += f"; {row['resent_share']:.1%} sent again (bar {RESENT_BAR:.0%})"
    return f"{text}; {row['lost']} requests lost (bar 0)."


def _tokens(row: Mapping[str, Any]) -> str:
    nll = row["nll_difference"]
    return (
        f"{row['strategy']}, {row['mode']}: {row['equal']} of {row['streams']} streams equal to undisturbed ones, "
        f"{row['tokens_compared']} of {row['tokens']} tokens; NLL differs by "
        f"{'-' if nll is None else f'{nll:.1g}'} at most (bar {NLL_BAR:g})."
    )


def _against_stop_copy(result: Mapping[str, Any]) -> Iterator[str]:
    """How precopy compares where contexts are long."""
    pauses = {
        (r["strategy"], r["from"], r["to"]): dict(zip(r["contexts"], r["pause_p99_ms"], strict=True))
        for r in result["contexts"]
    }
    for (strategy, before, after), at in pauses.items():
        ours, control = at.get(STOP_COPY_CONTEXT), pauses.get(("stop-copy", before, after), {}).get(STOP_COPY_CONTEXT)
        if strategy == "precopy" and ours is not None and control is not None:
            compared = f"{control / ours:.1f}x" if ours > 0 else "over any number of times"
            yield (
                f"{before}→{after} at {STOP_COPY_CONTEXT} tokens: a pause at stop-copy is {compared} that at precopy "
                f"(bar {STOP_COPY_BAR:g}x)."
            )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
