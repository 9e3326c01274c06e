"""`flexpipe map`: how much of which devices is free, as a picture in the terminal, as JSON, SVG or PNG."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Group, Parameter

from ..actors.config import ConfigError, parse_size
from ..actors.devices import DeviceError
from ..actors.discovery import discover_node
from ..policies.cluster.cluster_map import ClusterMap
from ..policies.cluster.device_facts import DeviceFacts, MapError, NodeFacts
from ..policies.cluster.map_summary import MapSummary, summarise
from ..sim.map_file import NODES_OF_A_RACK, document, read_map
from ..sim.synthetic_map import NODES, SyntheticMap
from .console import err, out
from .map_drawing import draw, svg_text, write_png
from .map_terminal import terminal_picture
from .map_words import summary_lines

_SOURCE = Group("Map (give one at most; without, this machine's GPUs, or else its processor)", sort_key=0)
AsJson = Annotated[bool, Parameter(negative="", help="Print facts as JSON, for machines; --from reads it again.")]


class MapAnswer(msgspec.Struct, frozen=True):
    """What ``--json`` prints."""

    summary: MapSummary
    nodes: tuple[NodeFacts, ...]
    devices: tuple[DeviceFacts, ...]


@dataclass(frozen=True, slots=True)
class MapSource:
    """Where the map comes from: one of a file, a synthetic map and named devices, or this machine where all are None."""

    file: Path | None
    synthetic: str | None
    devices: str | None
    nodes: int
    seed: int
    gpu_memory: tuple[str, ...]
    rack_nodes: int


def show_map(
    *,
    from_file: Annotated[Path | None, Parameter(name="--from", group=_SOURCE)] = None,
    synthetic: Annotated[str | None, Parameter(group=_SOURCE)] = None,
    devices: Annotated[str | None, Parameter(group=_SOURCE)] = None,
    nodes: int = NODES,
    seed: int = 0,
    gpu_memory: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    rack_nodes: int = NODES_OF_A_RACK,
    stage_sizes: str | None = None,
    svg: Path | None = None,
    png: Path | None = None,
    json: AsJson = False,
) -> int:
    """Show which devices there are and how much of each is free: the fragmentation map.

    For example:

        flexpipe map
        flexpipe map --devices cpu:4x2GiB,cpu:2x512MiB
        flexpipe map --synthetic random:90 --nodes 100 --svg map.svg
        flexpipe map --from cluster.csv.gz --stage-sizes 4GiB,16GiB --json

    Args:
        from_file: A map as --json prints it, or a table (CSV, gzipped or not) of node, model, gpu_idx and free_milli.
        synthetic: A drawn cluster: how its tenants were placed and how much they hold, as random:90, bestfit:70 or fgd:50.
        devices: Devices of this machine, as cpu:4x2GiB,cpu:2x512MiB or cuda:0,cuda:1.
        nodes: With --synthetic, how many nodes.
        seed: With --synthetic, from what it is drawn.
        gpu_memory: With --from, the memory of a GPU model in a table, as G2=32GiB; may be given several times.
        rack_nodes: With --from, nodes of a rack where a table names none.
        stage_sizes: For stages of which sizes fragmentation is told, as 4GiB,16GiB.
        svg: File to draw the map to.
        png: File to draw the map to; needs the extra `bench`.
        json: Print facts as JSON, for machines.
    """
    source = MapSource(from_file, synthetic, devices, nodes, seed, gpu_memory, rack_nodes)
    try:
        cluster = found_map(source)
    except (MapError, DeviceError) as error:
        raise ConfigError(str(error)) from error
    summary = summarise(cluster, _sizes(stage_sizes))
    if json:
        written = document(cluster)
        print(msgspec.json.encode(MapAnswer(summary, written.nodes, written.devices)).decode())
    else:
        out.print(terminal_picture(cluster))
        for line in summary_lines(summary):
            out.print(line, highlight=False, soft_wrap=True)
    _draw(cluster, _title(source), summary_lines(summary), svg, png)
    return 0


def found_map(source: MapSource) -> ClusterMap:
    """The map that ``source`` names. Raises `MapError`, `DeviceError` and `ConfigError`."""
    given = [name for name in ("file", "synthetic", "devices") if getattr(source, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"--{' and --'.join(given).replace('file', 'from')} name different maps; give one of them")
    if source.file is not None:
        if source.rack_nodes < 1:
            raise ConfigError(f"rack-nodes is {source.rack_nodes}; it must be at least 1")
        return read_map(source.file, dict(map(_gpu_memory, source.gpu_memory)), source.rack_nodes)
    if source.synthetic is not None:
        return SyntheticMap.parse(source.synthetic, source.nodes, source.seed).draw()
    return discover_node(source.devices)


def _draw(cluster: ClusterMap, title: str, lines: list[str], svg_file: Path | None, png_file: Path | None) -> None:
    if png_file is not None and find_spec("matplotlib") is None:
        raise ConfigError("a PNG needs matplotlib: pip install 'flexpipe-serve[bench]'; --svg needs nothing")
    for file in (svg_file, png_file):
        if file is None:
            continue
        drawing = draw(cluster, title, lines)
        try:
            if file is svg_file:
                file.write_text(svg_text(drawing), encoding="utf-8")
            else:
                write_png(drawing, file)
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror or error}") from error
        err.print(f"drawn: {file}", style="dim", highlight=False, soft_wrap=True)


def _title(source: MapSource) -> str:
    if source.file is not None:
        return source.file.name
    if source.synthetic is not None:
        return f"Synthetic map {source.synthetic}, seed {source.seed}"
    return f"Devices of this machine: {source.devices}" if source.devices else "Devices of this machine"


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    sizes = [parse_size(part) for part in text.split(",")]
    if min(sizes) < 1:
        raise ConfigError(f"stage-sizes is {text!r}; a stage has some bytes at least")
    return sizes


def _gpu_memory(text: str) -> tuple[str, int]:
    model, _, size = text.partition("=")
    if not model or not size:
        raise ConfigError(f"gpu-memory is {text!r}; write a model and its memory, as G2=32GiB")
    return model, parse_size(size)
