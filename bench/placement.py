"""`flexpipe bench placement`: how good plans are, how long they take, and how much of a fragmented cluster they can use.

Owns what is run and the aims that it is held against; the parts measure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .placement_exact import require_exact_library
from .placement_gap import against_exact, against_floors
from .placement_maps import NINE, TIGHT, load_maps
from .placement_packing import packing
from .placement_scale import first_solve_s, times

PARTS = ("gap", "floors", "scale", "packing")
AIMS = {
    "gap_p50": 0.0,
    "gap_p90": 0.01,
    "cold_p50_ms": 50.0,
    "cold_p99_ms": 250.0,
    "event_p50_ms": 2.0,
    "memory_mib": 64.0,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. ``maps`` is a folder with a file for each of nine maps; without one they are drawn."""

    instances: int = 320
    rounds: int = 8
    maps: Path | None = None
    parts: tuple[str, ...] = PARTS


def run(plan: Plan, report: Callable[[str], None] = lambda _line: None) -> dict[str, Any]:
    """Measure; plain data. Raises `ExactLibraryError` before anything else, and `MapError` where a map is missing."""
    if "gap" in plan.parts:
        require_exact_library()
    load_before = os.getloadavg()[0]
    names = NINE if "packing" in plan.parts else TIGHT if {"floors", "scale"} & set(plan.parts) else ()
    maps = load_maps(names, plan.maps)
    tight = {name: maps[name] for name in TIGHT if name in maps}
    result: dict[str, Any] = {
        "maps": "files" if plan.maps else "drawn",
        "processors": len(os.sched_getaffinity(0)),
        "load_average_at_start": load_before,
        "aims": AIMS,
    }
    if "gap" in plan.parts:
        result["gap"] = against_exact(plan.instances, report)
    if "floors" in plan.parts:
        result["floors"] = against_floors(tight, report)
    if "scale" in plan.parts:
        result["first_solve_s"] = first_solve_s()
        result["scale"] = times(tight, plan.rounds, report)
    if "packing" in plan.parts:
        result["packing"] = packing(maps, report)
    result["load_average_at_end"] = os.getloadavg()[0]
    return result
