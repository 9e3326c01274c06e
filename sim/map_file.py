"""Cluster maps in files: as `flexpipe map --json` writes them, or as tables of GPUs with their free share.

A table is a CSV file, gzipped or not, with the columns ``node``, ``model``, ``gpu_idx`` and ``free_milli`` (thousandths of the
GPU that are free) and, where it has one, ``rack``; others are ignored. Reads no more than a map may hold, and believes nothing
unchecked.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from ..policies.cluster.cluster_map import MAP_DEVICES_MAX, ClusterMap, cluster_map
from ..policies.cluster.device_facts import DeviceFacts, MapError, NodeFacts
from .gpu_models import GPU_MODELS, GpuModel

COLUMNS = ("node", "model", "gpu_idx", "free_milli")
FILE_BYTES_MAX = 256 << 20
"""Uncompressed size of a map's file."""
NODES_OF_A_RACK = 32
"""Nodes of a rack, in the order of the file, where the file names no racks."""


class MapDocument(msgspec.Struct, frozen=True):
    """A map as JSON. Whatever else such a file says about the map is derived and ignored."""

    devices: tuple[DeviceFacts, ...]
    nodes: tuple[NodeFacts, ...] = ()


def read_map(
    path: Path, gpu_memory: Mapping[str, int] | None = None, nodes_of_a_rack: int = NODES_OF_A_RACK
) -> ClusterMap:
    """The map in ``path``. ``gpu_memory`` is bytes by GPU model, before what `GPU_MODELS` knows.

    Raises `MapError`: no such file, no map, or a device that cannot be, with the line where there are lines.
    """
    text = _text(path)
    if text.lstrip().startswith("{"):
        return _from_json(path, text)
    return _from_table(path, text, gpu_memory or {}, nodes_of_a_rack)


def document(cluster: ClusterMap) -> MapDocument:
    """What `read_map` makes the same map of."""
    islands = [str(island) for island in cluster.island_of.tolist()]
    devices = zip(
        cluster.device_names,
        (cluster.node_names[node] for node in cluster.node_of.tolist()),
        cluster.total_bytes.tolist(),
        cluster.free_bytes.tolist(),
        cluster.models,
        islands,
        cluster.speed.tolist(),
        cluster.slowdown.tolist(),
        strict=True,
    )
    nodes = zip(
        cluster.node_names,
        (cluster.rack_names[rack] for rack in cluster.rack_of.tolist()),
        cluster.host_bytes_per_s.tolist(),
        cluster.network_bytes_per_s.tolist(),
        strict=True,
    )
    return MapDocument(tuple(DeviceFacts(*facts) for facts in devices), tuple(NodeFacts(*facts) for facts in nodes))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            plain = gzip.GzipFile(fileobj=file) if is_packed else file
            data = plain.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise MapError(f"{path} is larger than {FILE_BYTES_MAX >> 20} MiB; no map is")
        return data.decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise MapError(f"{path} cannot be read as a map: {getattr(error, 'strerror', None) or error}") from error


def _from_json(path: Path, text: str) -> ClusterMap:
    try:
        found = msgspec.json.decode(text, type=MapDocument)
    except msgspec.MsgspecError as error:
        raise MapError(f"{path} is no map: {error}; write one with flexpipe map --json") from error
    return cluster_map(found.devices, found.nodes)


def _from_table(path: Path, text: str, gpu_memory: Mapping[str, int], nodes_of_a_rack: int) -> ClusterMap:
    rows = csv.DictReader(io.StringIO(text))
    lacking = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if lacking:
        raise MapError(f"{path} is no map: it lacks the columns {', '.join(lacking)}; it needs {', '.join(COLUMNS)}")
    devices: list[DeviceFacts] = []
    racks: dict[str, str] = {}
    for line, row in _bounded(path, rows):
        try:
            devices.append(_device(row, gpu_memory))
        except (MapError, ValueError) as error:
            raise MapError(f"{path} line {line}: {error}") from error
        node = row["node"]
        rack = row.get("rack") or racks.get(node) or f"rack-{len(racks) // nodes_of_a_rack}"
        if racks.setdefault(node, rack) != rack:
            raise MapError(f"{path} line {line}: node {node} is in {racks[node]} and in {rack}; a node is in one rack")
    if not devices:
        raise MapError(f"{path} is an empty map: it has columns and no devices")
    return cluster_map(devices, [NodeFacts(node, rack) for node, rack in racks.items()])


def _bounded(path: Path, rows: csv.DictReader[str]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        for count, row in enumerate(rows):
            if count == MAP_DEVICES_MAX:
                raise MapError(f"{path} has more than {MAP_DEVICES_MAX} devices; no map may")
            yield rows.line_num, row
    except csv.Error as error:
        raise MapError(f"{path} line {rows.line_num}: {error}") from error


def _device(row: Mapping[str, str | None], gpu_memory: Mapping[str, int]) -> DeviceFacts:
    node, model, place, free_milli = (row[name] for name in COLUMNS)
    if not node or not model or not place or not free_milli:
        raise MapError(f"a row needs {', '.join(COLUMNS)}")
    known = GPU_MODELS.get(model)
    if model in gpu_memory:
        known = GpuModel(gpu_memory[model], known.bytes_per_s) if known else GpuModel(gpu_memory[model])
    if known is None:
        raise MapError(f"nobody knows how much memory a {model} has; say it with --gpu-memory {model}=24GiB")
    if not 0 <= float(free_milli) <= 1000:
        raise MapError(f"free_milli is {free_milli}; it must be a number from 0 (all taken) to 1000 (all free)")
    return DeviceFacts(
        name=f"{node}/{place}",
        node=node,
        total_bytes=known.memory_bytes,
        free_bytes=int(known.memory_bytes * float(free_milli) / 1000),
        model=model,
        speed=known.speed,
    )
