"""A cluster map as a picture in the terminal: a cell per device, a row per node; of a large cluster, a bar per rack or several."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..policies.cluster.cluster_map import ClusterMap
from ..policies.cluster.map_summary import NEARLY_FREE, free_shares
from .console import size
from .map_words import FREE_CLASSES, free_classes

NODE_ROWS_MAX = 48
"""Nodes that are drawn one by one; of more, racks are."""
RACK_ROWS_MAX = 40
"""Rows of racks; of more racks, neighbours share a row."""
NAMED_DEVICES_MAX = 16
"""Devices that are listed by name too."""
BAR_CELLS = 24


def terminal_picture(cluster: ClusterMap) -> RenderableType:
    """The picture with its legend."""
    parts: list[RenderableType] = [_nodes(cluster) if cluster.nodes <= NODE_ROWS_MAX else _racks(cluster), _legend()]
    if 0 < cluster.devices <= NAMED_DEVICES_MAX:
        parts = [_named(cluster), Text(), *parts]
    return Group(*parts)


def _named(cluster: ClusterMap) -> Table:
    table = _table("device", "model", ">free", ">of", ">busy")
    for row, name in enumerate(cluster.device_names):
        free, total = int(cluster.free_bytes[row]), int(cluster.total_bytes[row])
        busy = f"{cluster.slowdown[row]:.0%}" if cluster.slowdown[row] else ""
        table.add_row(name, cluster.models[row], size(free), size(total), busy)
    return table


def _nodes(cluster: ClusterMap) -> Table:
    classes = free_classes(cluster)
    table = _table("rack", "node", "devices", ">free", ">of", ">largest")
    for node, name in enumerate(cluster.node_names):
        rack = int(cluster.rack_of[node])
        rows = cluster.devices_of_node(node)
        table.add_row(
            cluster.rack_names[rack] if node == cluster.first_node[rack] else "",
            name,
            _cells(classes[rows], cluster.island_of[rows]),
            size(int(cluster.free_bytes[rows].sum())),
            size(int(cluster.total_bytes[rows].sum())),
            size(int(cluster.free_bytes[rows].max(initial=0))),
        )
    return table


def _racks(cluster: ClusterMap) -> Table:
    classes, shares = free_classes(cluster), free_shares(cluster)
    table = _table("racks", ">nodes", ">devices", "by free memory", ">free", f">≥{NEARLY_FREE:.0%}", ">largest")
    for racks in np.array_split(np.arange(cluster.racks), min(cluster.racks, RACK_ROWS_MAX)):
        first, last = int(racks[0]), int(racks[-1])
        rows = slice(cluster.devices_of_rack(first).start, cluster.devices_of_rack(last).stop)
        names = cluster.rack_names[first : last + 1]
        table.add_row(
            names[0] if len(names) == 1 else f"{names[0]}…{names[-1].removeprefix('rack-')}",
            f"{int(cluster.first_node[last + 1] - cluster.first_node[first]):,}",
            f"{rows.stop - rows.start:,}",
            _bar(np.bincount(classes[rows], minlength=len(FREE_CLASSES))),
            f"{cluster.free_bytes[rows].sum() / max(1, cluster.total_bytes[rows].sum()):.0%}",
            f"{int(np.count_nonzero(shares[rows] >= NEARLY_FREE)):,}",
            size(int(cluster.free_bytes[rows].max(initial=0))),
        )
    return table


def _cells(
    classes: np.ndarray[tuple[int], np.dtype[np.int64]], islands: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> Text:
    """Two characters for each device, and a gap between islands."""
    text = Text()
    for place, each in enumerate(classes):
        if place and islands[place] != islands[place - 1]:
            text.append(" ")
        text.append(FREE_CLASSES[each].glyph * 2, style=FREE_CLASSES[each].on_dark)
    return text


def _bar(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Text:
    """A bar of `BAR_CELLS` cells, shared out among the classes, the free ones first."""
    edges = np.rint(np.cumsum(counts[::-1]) / max(1, counts.sum()) * BAR_CELLS).astype(int)
    text = Text()
    for each, cells in zip(reversed(FREE_CLASSES), np.diff(edges, prepend=0), strict=True):
        text.append(each.glyph * int(cells), style=each.on_dark)
    return text


def _legend() -> Text:
    text = Text()
    for each in reversed(FREE_CLASSES):
        text.append(each.glyph * 2, style=each.on_dark)
        text.append(f" {each.words}   ")
    return text


def _table(*columns: str) -> Table:
    """Columns whose name begins with ">" are numbers."""
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=False)
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", no_wrap=True)
    return table
