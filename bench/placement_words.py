"""The placement bench's result for people: tables, and sentences that hold it against its aims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = list[tuple[str, ...]]


def scale_rows(result: Mapping[str, Any]) -> Rows:
    """Milliseconds by map and size; the first row names the columns."""
    rows: Rows = [("map", "devices", "cold p50", "p99", "p99 CPU", "event anywhere p50", "in plan p50", "p99", "MiB")]
    for row in result.get("scale", ()):
        cold, cpu, anywhere, in_plan = (
            row[name] for name in ("cold_ms", "cold_cpu_ms", "event_anywhere_ms", "event_in_plan_ms")
        )
        figures = (cold["p50"], cold["p99"], cpu["p99"], anywhere.get("p50"), in_plan.get("p50"), in_plan.get("p99"))
        words = ("-" if each is None else f"{each:.1f}" for each in figures)
        memory = row["memory_mib"]["map"] + row["memory_mib"]["solver_peak"]
        rows.append((row["map"], f"{row['devices']:,}", *words, f"{memory:.1f}"))
    return rows


def packing_rows(result: Mapping[str, Any]) -> Rows:
    """What each contender placed on each map; the first row names the columns."""
    rows: Rows = [("map", "contender", "replicas", "stages", "placed", "stranded", "token's way", "a request")]
    for row in result.get("packing", ()):
        rows.append(
            (
                row["map"],
                row["contender"],
                f"{row['replicas']} of {row['asked']}",
                str(row["stages"]),
                f"{row['placed_share']:.1%}",
                f"{row['stranded_share']:.1%}",
                f"{row['tpot_ms_mean']:.1f} ms",
                f"{row['request_ms_mean']:.1f} ms",
            )
        )
    return rows


def floor_rows(result: Mapping[str, Any]) -> Rows:
    """Gaps to floors by map and size; the first row names the columns."""
    rows: Rows = [("map", "devices", "gap to floor p50", "p90", "max", "no plan")]
    for row in result.get("floors", ()):
        gap = row["gap"]
        figures = ("-",) * 3 if gap is None else tuple(f"{gap[name]:.1%}" for name in ("p50", "p90", "max"))
        rows.append((row["map"], f"{row['devices']:,}", *figures, str(row["no_plan"])))
    return rows


def sentences(result: Mapping[str, Any]) -> list[str]:
    """What was found, against the aims."""
    lines = []
    aims = result["aims"]
    if "gap" in result:
        found = result["gap"]
        gap = found["gap"]
        lines.append(
            f"{gap['count']} of {found['closed']} instances that HiGHS closed have a plan: gap p50 {gap['p50']:.3%} (aim"
            f" {aims['gap_p50']:.0%}), p90 {gap['p90']:.3%} (aim {aims['gap_p90']:.0%}), max {gap['max']:.3%};"
            f" {found['at_optimum_share']:.1%} are optimal; {found['infeasible']} have none, and {found['missed']} were missed."
        )
    if "first_solve_s" in result:
        first = result["first_solve_s"]
        lines.append(
            f"The first solve of a process takes {first['compiling']:.1f} s with nothing compiled, {first['cached']:.2f} s after."
        )
    lines.append(
        f"{result['processors']} processors, load average {result['load_average_at_start']:.1f} at the start and"
        f" {result['load_average_at_end']:.1f} at the end."
    )
    return lines
