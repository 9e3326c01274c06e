"""A cluster map as a drawing: where each device's square lies, each label, and the legend; then as SVG or PNG.

A rack is a block, a node a row of it, a device a square whose colour says how much of it is free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..policies.cluster.cluster_map import ClusterMap
from .map_words import FREE_CLASSES, free_classes

CELL_SIZES = ((64, 26), (400, 16), (2_000, 10), (20_000, 6), (1 << 62, 4))
"""Up to so many devices, and the side of a device's square in pixels."""
NAMED_NODES_MAX = 48
"""Nodes whose names are written beside them."""
NAMED_RACKS_MAX = 200
"""Racks whose names are written above them."""
ASPECT = 1.7
"""Width over height that the blocks of racks are to have together."""
MARGIN, TEXT, SMALL = 24.0, 13.0, 9.0
"""Pixels: around everything, and heights of letters."""
LETTER_WIDTH = 0.62
"""Width of a letter over its height, at most, for the names whose width nobody measures here."""
ISLAND_GAP = 0.4
"""Cells between two islands of a node."""
INK, PAPER, FAINT = "#1d2430", "#ffffff", "#69748a"
PNG_SCALE = 2


@dataclass(frozen=True, slots=True)
class Label:
    """Text whose baseline begins at (``x``, ``y``)."""

    x: float
    y: float
    text: str
    height: float
    colour: str = INK


@dataclass(frozen=True, slots=True)
class Drawing:
    """Squares at ``corners`` [squares, (x, y)], with their ``sides`` and the colours of their ``classes``; and labels.

    All in pixels, y downwards.
    """

    width: float
    height: float
    corners: npt.NDArray[np.float64]
    sides: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    labels: tuple[Label, ...]


def draw(cluster: ClusterMap, title: str, lines: list[str]) -> Drawing:
    """Lay ``cluster`` out under its title, some lines of text, and the legend."""
    cell = next(side for devices, side in CELL_SIZES if cluster.devices <= devices)
    gap = 1 if cell < 10 else 2
    legend_top = MARGIN + (2.4 + 1.5 * len(lines)) * TEXT
    top = legend_top + 3 * TEXT
    names = cluster.node_names if cluster.nodes <= NAMED_NODES_MAX else ()
    beside = max((len(name) for name in names), default=0) * LETTER_WIDTH * SMALL + (8 if names else 0)
    blocks = _Blocks.of(cluster, cell, beside)
    corners, labels = blocks.place(cluster, MARGIN, top, names)
    legend_corners, legend_labels = _legend(MARGIN, legend_top, TEXT)
    heading = [Label(MARGIN, MARGIN + TEXT, title, 1.3 * TEXT)]
    heading += [Label(MARGIN, MARGIN + (2.6 + 1.5 * at) * TEXT, line, TEXT, FAINT) for at, line in enumerate(lines)]
    widest = max([label.x + len(label.text) * LETTER_WIDTH * label.height for label in [*heading, *legend_labels]])
    return Drawing(
        width=math.ceil(max(widest, MARGIN + blocks.width) + MARGIN),
        height=math.ceil(top + blocks.height + MARGIN),
        corners=np.concatenate([corners, legend_corners]),
        sides=np.concatenate([np.full(cluster.devices, cell - gap), np.full(len(FREE_CLASSES), TEXT)]),
        classes=np.concatenate([free_classes(cluster), np.arange(len(FREE_CLASSES))[::-1]]),
        labels=(*heading, *legend_labels, *labels),
    )


def svg_text(drawing: Drawing) -> str:
    """The drawing as SVG: one path for each class, since a hundred thousand rectangles are more than a browser likes."""
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width:g} {drawing.height:g}" '
            f'width="{drawing.width:g}" height="{drawing.height:g}" '
            'font-family="Helvetica, Arial, sans-serif" shape-rendering="crispEdges">'
        ),
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
    ]
    for number, each in enumerate(FREE_CLASSES):
        chosen = drawing.classes == number
        squares = zip(drawing.corners[chosen].tolist(), drawing.sides[chosen].tolist(), strict=True)
        path = "".join(f"M{_short(x)} {_short(y)}h{side:g}v{side:g}h-{side:g}z" for (x, y), side in squares)
        parts.append(f'<path fill="{each.on_paper}" d="{path}"><title>{escape(each.words)}</title></path>')
    parts += [
        f'<text x="{_short(label.x)}" y="{_short(label.y)}" font-size="{label.height:g}" fill="{label.colour}">'
        f"{escape(label.text)}</text>"
        for label in drawing.labels
    ]
    return "\n".join([*parts, "</svg>\n"])


def write_png(drawing: Drawing, path: Path) -> None:
    """The drawing as a PNG file of `PNG_SCALE` times its size. Raises ImportError without matplotlib, and OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(drawing.width / 72, drawing.height / 72), dpi=72 * PNG_SCALE, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height, 0)
    squares = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * drawing.sides[:, None, None]
    colours = np.array([each.on_paper for each in FREE_CLASSES])[drawing.classes]
    axes.add_collection(
        PolyCollection(list(drawing.corners[:, None, :] + squares), facecolors=colours.tolist(), antialiaseds=False)
    )
    for label in drawing.labels:
        axes.text(label.x, label.y, label.text, fontsize=label.height, color=label.colour, parse_math=False)
    figure.savefig(path, format="png")


@dataclass(frozen=True, slots=True)
class _Blocks:
    """How large a rack's block is, and how many stand in a line."""

    cell: float
    beside: float
    block_width: float
    line_heights: tuple[float, ...]
    in_line: int

    @classmethod
    def of(cls, cluster: ClusterMap, cell: float, beside: float) -> _Blocks:
        widest = max(float(_places(cluster).max(initial=0)) + 1, 1)
        nodes = np.diff(cluster.first_node)
        longest = max((len(name) for name in cluster.rack_names), default=0) if cluster.racks <= NAMED_RACKS_MAX else 0
        block_width = max(beside + widest * cell, longest * LETTER_WIDTH * SMALL) + max(12.0, cell)
        tallest = int(nodes.max(initial=1)) * cell + 2 * SMALL + 8
        in_line = max(1, min(cluster.racks, round(math.sqrt(ASPECT * cluster.racks * tallest / block_width))))
        lines = [nodes[first : first + in_line].max() for first in range(0, cluster.racks, in_line)]
        heights = tuple(float(rows) * cell + 2 * SMALL + 8 for rows in lines)
        return cls(cell, beside, block_width, heights, in_line)

    @property
    def width(self) -> float:
        return self.in_line * self.block_width

    @property
    def height(self) -> float:
        return sum(self.line_heights)

    def place(
        self, cluster: ClusterMap, left: float, top: float, names: tuple[str, ...]
    ) -> tuple[npt.NDArray[np.float64], list[Label]]:
        """Each device's corner, and the names of racks, and of nodes where there are ``names``."""
        line_tops = top + np.cumsum([0.0, *self.line_heights])
        labels = []
        node_x, node_y = np.zeros(cluster.nodes), np.zeros(cluster.nodes)
        for rack, name in enumerate(cluster.rack_names):
            x = left + (rack % self.in_line) * self.block_width
            y = float(line_tops[rack // self.in_line]) + SMALL
            if cluster.racks <= NAMED_RACKS_MAX:
                labels.append(Label(x, y, name, SMALL, FAINT))
            nodes = slice(int(cluster.first_node[rack]), int(cluster.first_node[rack + 1]))
            node_x[nodes] = x + self.beside
            node_y[nodes] = y + SMALL / 2 + self.cell * np.arange(nodes.stop - nodes.start)
            baseline = (self.cell + SMALL * 0.7) / 2
            labels += [
                Label(x, float(node_y[node]) + baseline, names[node], SMALL)
                for node in range(nodes.start, nodes.stop if names else nodes.start)
            ]
        corners = np.stack([node_x[cluster.node_of] + self.cell * _places(cluster), node_y[cluster.node_of]], axis=1)
        return corners, labels


def _places(cluster: ClusterMap) -> npt.NDArray[np.float64]:
    """How far from its node's name each device stands, in cells, with a gap between islands."""
    first = cluster.first_device[cluster.node_of]
    islands_before = cluster.island_of - cluster.island_of[first]
    places: npt.NDArray[np.float64] = np.arange(cluster.devices) - first + ISLAND_GAP * islands_before
    return places


def _legend(left: float, top: float, height: float) -> tuple[npt.NDArray[np.float64], list[Label]]:
    corners, labels = [], []
    x = left
    for each in reversed(FREE_CLASSES):
        corners.append((x, top))
        labels.append(Label(x + 1.6 * height, top + 0.9 * height, each.words, height))
        x += (len(each.words) * LETTER_WIDTH + 3) * height
    return np.array(corners), labels


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
