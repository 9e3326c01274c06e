"""How much free memory a cluster has that nobody can use: expected fragmentation over the stages that may be asked for.

The measure is that of "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent"
(Weng et al., USENIX ATC 2023), with memory in place of compute shares: draw a demand from the mix, and what of a node's free
memory cannot serve it is fragment. So fragmentation is relative to what is asked for, and small stages make less of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .cluster_map import ClusterMap, Integers, Numbers


class MixError(ValueError):
    """A mix of demands that cannot be; the sentence says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class StageDemand:
    """Something that may be asked for: ``free_bytes`` on each of ``devices`` devices of one node.

    ``share`` is how often, relative to the other demands of the mix.
    """

    free_bytes: int
    share: float = 1.0
    devices: int = 1


@dataclass(frozen=True, slots=True)
class StageMix:
    """What is expected to be asked for. Shares need not add up to 1. Raises `MixError` for what cannot be."""

    demands: tuple[StageDemand, ...]

    def __post_init__(self) -> None:
        """Refuse a mix that weighs nothing, or weighs what cannot be."""
        if not self.demands:
            raise MixError("a mix of stage sizes needs one size at least")
        for demand in self.demands:
            if demand.free_bytes < 1 or demand.devices < 1:
                raise MixError(
                    f"nobody asks for {demand.devices} devices with {demand.free_bytes} bytes; ask for 1 or more"
                )
            if not (math.isfinite(demand.share) and demand.share > 0):
                raise MixError(f"a demand has share {demand.share}; a share is a positive number")

    @classmethod
    def of_sizes(cls, sizes: Sequence[int]) -> StageMix:
        """Stages of these bytes, each as likely as the others, each on one device."""
        return cls(tuple(StageDemand(size) for size in sizes))

    def weighed(self) -> tuple[tuple[float, StageDemand], ...]:
        """Each demand with its probability."""
        total = sum(demand.share for demand in self.demands)
        return tuple((demand.share / total, demand) for demand in self.demands)


def node_fragmentation(cluster: ClusterMap, mix: StageMix) -> Numbers:
    """Expected bytes of each node's free memory that cannot serve a demand drawn from ``mix``, float64 per node.

    Where a node cannot serve the demand at all, everything that it has free is fragment; where it can, the devices are that
    have less free than the demand wants. O(devices x demands).
    """
    free, node_of = cluster.free_bytes, cluster.node_of
    all_free = _per_node(cluster, free)
    expected = np.zeros(cluster.nodes, np.float64)
    for probability, demand in mix.weighed():
        fits = free >= demand.free_bytes
        serves = np.bincount(node_of[fits], minlength=cluster.nodes) >= demand.devices
        expected += probability * np.where(serves, _per_node(cluster, np.where(fits, 0, free)), all_free)
    return expected


def fragmentation(cluster: ClusterMap, mix: StageMix) -> float:
    """Expected bytes of the cluster's free memory that cannot serve a demand drawn from ``mix``."""
    return float(node_fragmentation(cluster, mix).sum())


def fragmented_share(cluster: ClusterMap, mix: StageMix) -> float:
    """`fragmentation` as a share of all that is free, 0 to 1; 0 where nothing is free."""
    free = int(cluster.rack_free_bytes.sum())
    return fragmentation(cluster, mix) / free if free else 0.0


def fragmentation_growth(cluster: ClusterMap, mix: StageMix, row: int, taken_bytes: int) -> float:
    """By how many bytes `fragmentation` would grow were ``taken_bytes`` of the device in ``row`` taken; less than 0 where it falls.

    O(devices of the node x demands). ``taken_bytes`` must not be more than the device has free.
    """
    mates = cluster.devices_of_node(int(cluster.node_of[row]))
    before = cluster.free_bytes[mates]
    after = before.copy()
    after[row - mates.start] -= taken_bytes
    return _of_node(after, mix) - _of_node(before, mix)


def _of_node(free: Integers, mix: StageMix) -> float:
    """Expected fragment of one node whose devices have ``free`` bytes."""
    expected = 0.0
    for probability, demand in mix.weighed():
        fits = free >= demand.free_bytes
        wasted = free[~fits] if np.count_nonzero(fits) >= demand.devices else free
        expected += probability * float(wasted.sum())
    return expected


def _per_node(cluster: ClusterMap, values: Integers) -> Integers:
    """Sums of ``values`` over each node's devices."""
    return np.add.reduceat(values, cluster.first_device[:-1]) if cluster.nodes else np.zeros(0, np.int64)
