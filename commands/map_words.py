"""A cluster map in words, and the few classes of free memory that every picture of it is drawn in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..policies.cluster.cluster_map import ClusterMap
from ..policies.cluster.map_summary import NEARLY_FREE, WIDTHS, MapSummary, free_shares
from .console import size


@dataclass(frozen=True, slots=True)
class FreeClass:
    """Devices whose free share is at least ``least``: how a terminal shows one, its colour on paper, and what it is called.

    Glyphs tell the classes apart where there are no colours, and lightness does for who does not see them: what is free stands
    out from the ground, dark or light.
    """

    least: float
    glyph: str
    on_dark: str
    on_paper: str
    words: str


FREE_CLASSES = (
    FreeClass(0.0, "·", "#5a6272", "#e3e6ec", "full"),
    FreeClass(0.005, "░", "#3a7d63", "#bfe0d0", "under 25% free"),
    FreeClass(0.25, "▒", "#48a57e", "#7cc3a4", "25 to 50%"),
    FreeClass(0.5, "▓", "#6fd0a2", "#31946c", "50 to 85%"),
    FreeClass(NEARLY_FREE, "█", "#c6f7da", "#0a5437", f"{NEARLY_FREE:.0%} or more"),
)
"""From full to free."""


def free_classes(cluster: ClusterMap) -> npt.NDArray[np.int64]:
    """Each device's class, as its place in `FREE_CLASSES`."""
    edges = [each.least for each in FREE_CLASSES[1:]]
    return np.searchsorted(edges, free_shares(cluster), side="right").astype(np.int64)


def summary_lines(summary: MapSummary) -> list[str]:
    """What a picture does not say: counts, the largest piece, neighbours, and for whom the rest is of no use."""
    if not summary.devices:
        return ["no devices"]
    counts = ", ".join(
        (_count(summary.devices, "device"), _count(summary.nodes, "node"), _count(summary.racks, "rack"))
    )
    share = _share(summary.free_bytes, summary.total_bytes)
    free = f"{size(summary.free_bytes)} free of {size(summary.total_bytes)} ({share})"
    wholly = f"{summary.wholly_free:,} ({_share(summary.wholly_free, summary.devices)})"
    nearly = f"{summary.nearly_free:,} ({_share(summary.nearly_free, summary.devices)})"
    nodes = f"{', '.join(f'{nodes:,}' for nodes in summary.nodes_with)} of {summary.nodes:,}"
    lines = [
        f"{counts}: {free}, the largest piece {size(summary.largest_free_bytes)}",
        f"devices wholly free: {wholly}; at least {NEARLY_FREE:.0%} free: {nearly}",
        f"nodes with at least {', '.join(map(str, WIDTHS))} devices {NEARLY_FREE:.0%} free: {nodes}",
    ]
    if summary.fragments:
        useless = ", ".join(f"{part.share:.0%} for stages of {size(part.stage_bytes)}" for part in summary.fragments)
        lines.append(f"free memory in pieces too small: {useless}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _share(part: int, whole: int) -> str:
    share = part / whole if whole else 0.0
    return f"{share:.1%}" if 0 < share < 0.095 else f"{share:.0%}"
