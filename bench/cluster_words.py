"""The cluster bench's result for people: a row for each case, and sentences that hold the hops against their arithmetic."""

from __future__ import annotations

from typing import Any

Row = tuple[str, ...]


def case_rows(result: dict[str, Any]) -> list[Row]:
    """The table, its heading first."""
    rows: list[Row] = [("case", "answered", "lost", "altered", "asked again", "longest wait", "noticed", "all stages")]
    for name, at in result["cases"].items():
        counts = (f"{at[field]:,}" for field in ("answered", "lost", "altered", "retried"))
        times = (_seconds(at[field]) for field in ("longest_wait_s", "noticed_s", "full_capacity_s"))
        rows.append((name, *counts, *times))
    return rows


def sentences(result: dict[str, Any]) -> list[str]:
    """What the table does not say."""
    across, change = result["across"], result["across"]["change"]
    said = []
    said.append(
        f"Across hosts (1 Gbit/s, 1 ms): {across['tpot_cabled_ms']:.1f} ms a token, {across['ratio']:.2f}x the "
        f"{across['arithmetic_ms']:.1f} ms of cables that cost nothing ({across['tpot_free_ms']:.1f} ms) and the hops' arithmetic."
    )
    if change.get("pause_p99_ms") is not None:
        said.append(
            f"A change from 3 to 2 stages across hosts: pause p99 {change['pause_p99_ms']:.0f} ms over "
            f"{change['requests']} requests, {change['pause_p99_ms'] / change['step_ms']:.2f} of a step of "
            f"{change['step_ms']:.0f} ms; {change['lost']} lost, {change['altered']} altered."
        )
    return said


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
