"""A cluster map in a few numbers: how much is free, in how large pieces, how near each other, and for whom that is of use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .cluster_map import ClusterMap
from .fragmentation import StageMix, fragmented_share

NEARLY_FREE = 0.85
"""A device with this share of its memory free counts as nearly free: the share that the FlexPipe paper counts (section 2)."""
WIDTHS = (1, 4, 8)
"""For so many nearly free devices in one node `MapSummary.nodes_with` counts nodes."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """The share of all free memory that stages of ``stage_bytes`` cannot use: `fragmentation.fragmented_share`."""

    stage_bytes: int
    share: float


@dataclass(frozen=True, slots=True)
class MapSummary:
    """See the module. ``nodes_with[i]`` is how many nodes have at least ``WIDTHS[i]`` nearly free devices."""

    devices: int
    nodes: int
    racks: int
    total_bytes: int
    free_bytes: int
    wholly_free: int
    nearly_free: int
    largest_free_bytes: int
    nodes_with: tuple[int, ...]
    fragments: tuple[Fragment, ...]


def summarise(cluster: ClusterMap, stage_sizes: Sequence[int] | None = None) -> MapSummary:
    """The summary of ``cluster``, with fragmentation for stages of these bytes: `usual_stage_sizes` where None."""
    shares = free_shares(cluster)
    nearly = shares >= NEARLY_FREE
    per_node = np.bincount(cluster.node_of[nearly], minlength=cluster.nodes)
    return MapSummary(
        devices=cluster.devices,
        nodes=cluster.nodes,
        racks=cluster.racks,
        total_bytes=int(cluster.rack_total_bytes.sum()),
        free_bytes=int(cluster.rack_free_bytes.sum()),
        wholly_free=int(np.count_nonzero((cluster.free_bytes == cluster.total_bytes) & (cluster.total_bytes > 0))),
        nearly_free=int(np.count_nonzero(nearly)),
        largest_free_bytes=int(cluster.free_bytes.max(initial=0)),
        nodes_with=tuple(int(np.count_nonzero(per_node >= width)) for width in WIDTHS),
        fragments=tuple(
            Fragment(size, fragmented_share(cluster, StageMix.of_sizes([size])))
            for size in (usual_stage_sizes(cluster) if stage_sizes is None else stage_sizes)
        ),
    )


def free_shares(cluster: ClusterMap) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The share of each device's memory that is free, 0 to 1; 0 for one without memory."""
    return cluster.free_bytes / np.maximum(cluster.total_bytes, 1)


def usual_stage_sizes(cluster: ClusterMap) -> tuple[int, ...]:
    """A quarter, a half and `NEARLY_FREE` of the memory of the cluster's median device: the same model, cut less and less fine."""
    if not cluster.total_bytes.any():
        return ()
    median = int(np.sort(cluster.total_bytes)[cluster.devices // 2])
    return tuple(int(median * share) for share in (0.25, 0.5, NEARLY_FREE))
