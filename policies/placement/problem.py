"""One replica's placement on a few dozen candidate devices, as integer tables that reference and kernels both search.

Owns the translation from map and request to tables, and the floors under what any completion costs. Knows no search.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..cluster.cluster_map import CLUSTER, ISLAND, NODE, RACK, ClusterMap
from .pricing import load_ns, move_bytes_ns
from .values import WHOLE_PPM, PlacementRequest

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

CANDIDATES_MAX = 62
"""Devices of one search: a set of them is one machine word."""
NEVER = 1 << 62
"""A cost above all costs: of what must not be, and the limit where there is none."""


class ReplicaProblem(NamedTuple):
    """Tables over C candidates and L atoms. Sums run over atoms ``[0, i)``, so that a run's value is a difference.

    ``work`` [L+1]: sums of compute_ns at speed 1. ``need`` [L+1]: sums of weights and KV bytes. ``send`` [4, L+1]: ns of a
    hop at a cut, by distance. ``room`` [C]: bytes for weights and KV. ``free`` [C]: the same with the workspace.
    ``speed`` [C]. ``distance`` [C, C]. ``node`` [C]. ``load`` and ``move`` [C, L+1]: sums of load ns and of move ns.
    ``fit`` [C, L]: the last end that memory allows a run from an atom. ``share`` [C]: the most work of any run that fits.
    ``by_room`` and ``by_speed`` [C] order candidates, largest first. ``equals`` and ``larger`` [C] are sets of candidates, a
    bit each: of its island, speed and loading, and of the same memory but earlier, or of at least as much.
    ``nearest`` [C, L+1]: the cheapest hop from a candidate at a cut. ``nearest_after`` [L+1]: the cheapest of all at any later
    cut. ``least_load`` [1]: ns of loading all atoms, each where it loads fastest. ``extras`` [S+1]: the least weighted move and
    fragmentation of up to so many stages. ``fee`` [C]: what a candidate's use costs beside
    (`together`). ``mix_bytes``, ``mix_ppm``: the fragment mix. ``weights`` [5]: tpot, bottleneck,
    startup, move, fragmentation. ``limits`` [4]: stages_min, stages_max, step_ns_max, tpot_ns_max.
    """

    work: Integers
    need: Integers
    send: Integers
    room: Integers
    free: Integers
    speed: Numbers
    distance: Integers
    node: Integers
    load: Integers
    move: Integers
    fit: Integers
    share: Integers
    by_room: Integers
    by_speed: Integers
    equals: Integers
    larger: Integers
    nearest: Integers
    nearest_after: Integers
    least_load: Integers
    extras: Integers
    fee: Integers
    mix_bytes: Integers
    mix_ppm: Integers
    weights: Integers
    limits: Integers


class ProblemMaker:
    """Makes problems of one request on one map. What depends on the model alone is made once."""

    def __init__(self, cluster: ClusterMap, request: PlacementRequest) -> None:
        atoms, weights = request.atoms, request.weights
        self._cluster, self._request = cluster, request
        self.work = _sums([atom.compute_ns for atom in atoms])
        self.need = _sums([request.memory_bytes(atom) for atom in atoms])
        hops = [[link.send_ns(atom.activation_bytes) for atom in atoms[:-1]] for link in cluster.links.by_distance()]
        self._send = np.array([[0, *each, 0] for each in hops], np.int64)
        self._mix_bytes = np.array([size for size, _ in request.fragment_mix], np.int64)
        self._mix_ppm = np.array([share for _, share in request.fragment_mix], np.int64)
        self._weights = np.array(
            [weights.tpot, weights.bottleneck, weights.startup, weights.move, weights.fragmentation], np.int64
        )
        slowest, longest = request.step_ns_max, request.tpot_ns_max
        self._limits = np.array(
            [
                request.stages_min,
                request.stages_max,
                NEVER if slowest is None else slowest,
                NEVER if longest is None else longest,
            ],
            np.int64,
        )
        self._loads: dict[tuple[int, int, int, float], Integers] = {}

    def problem(self, replica: int, rows: Integers) -> ReplicaProblem:
        """The tables of replica number ``replica`` over the devices in ``rows``, at most `CANDIDATES_MAX`, in this order."""
        cluster, request = self._cluster, self._request
        free = cluster.free_bytes[rows].copy()
        present = request.present[replica] if replica < len(request.present) else ()
        for stage in present:
            free[rows == stage.device] += stage.held_bytes
        room = np.maximum(free - request.workspace_bytes, 0)
        speed = cluster.speed[rows] / (1.0 + cluster.slowdown[rows])
        last = np.searchsorted(self.need, (self.need[None, :-1] + room[:, None]).ravel(), side="right") - 1
        fit = last.reshape(len(rows), -1).astype(np.int64)
        classes, load = self._load_tables(replica, rows)
        move = self._moves(replica, rows)
        distance = _distances(cluster, rows)
        nearest, nearest_after = _nearest(self._send, distance)
        equals, larger = _neighbours(list(zip(cluster.island_of[rows], speed, classes, strict=True)), free)
        saved = np.sort(-request.weights.fragmentation * expected_kib(self._mix_bytes, self._mix_ppm, free))
        return ReplicaProblem(
            work=self.work,
            need=self.need,
            send=self._send,
            room=room,
            free=room + request.workspace_bytes,
            speed=speed,
            distance=distance,
            node=cluster.node_of[rows],
            load=load,
            move=move,
            fit=fit,
            share=(self.work[fit] - self.work[None, :-1]).max(axis=1),
            by_room=np.argsort(-room, kind="stable"),
            by_speed=np.argsort(-speed, kind="stable"),
            equals=equals,
            larger=larger,
            nearest=nearest,
            nearest_after=nearest_after,
            least_load=np.array([np.diff(load, axis=1).min(axis=0).sum()], np.int64),
            extras=_extras(saved, request.stages_max),
            fee=np.zeros(len(rows), np.int64),
            mix_bytes=self._mix_bytes,
            mix_ppm=self._mix_ppm,
            weights=self._weights,
            limits=self._limits,
        )

    def _load_tables(self, replica: int, rows: Integers) -> tuple[list[tuple[int, int, float]], Integers]:
        """Each device's class of loading, and its sums of `load_ns`: alike but for warm nodes and devices that serve."""
        cluster, request = self._cluster, self._request
        serving = {stage.device for stage in (request.present[replica] if replica < len(request.present) else ())}
        classes = []
        for row in map(int, rows):
            node = int(cluster.node_of[row])
            special = row if row in serving else -1
            kind = special, node if node in request.warm else -1, float(cluster.network_bytes_per_s[node])
            if (replica, *kind) not in self._loads:
                atoms = range(len(request.atoms))
                self._loads[replica, *kind] = _sums(load_ns(cluster, request, replica, row, atoms))
            classes.append(kind)
        return classes, np.array([self._loads[replica, *kind] for kind in classes], np.int64)

    def _moves(self, replica: int, rows: Integers) -> Integers:
        cluster, request = self._cluster, self._request
        atoms = range(len(request.atoms))
        if replica >= len(request.present) or not request.held_kv_tokens:
            return np.zeros((len(rows), len(atoms) + 1), np.int64)
        moves = [[ns for _, ns in move_bytes_ns(cluster, request, replica, row, atoms)] for row in map(int, rows)]
        return np.array([_sums(each) for each in moves], np.int64)


def _sums(values: Sequence[int]) -> Integers:
    return np.concatenate([[0], np.cumsum(np.array(values, np.int64))]).astype(np.int64)


def _distances(cluster: ClusterMap, rows: Integers) -> Integers:
    island, node = cluster.island_of[rows], cluster.node_of[rows]
    rack = cluster.rack_of[node]
    same_rack, same_node, same_island = (ids[:, None] == ids[None, :] for ids in (rack, node, island))
    table = np.where(same_island, ISLAND, np.where(same_node, NODE, np.where(same_rack, RACK, CLUSTER)))
    return table.astype(np.int64)


def _neighbours(kinds: Sequence[Hashable], free: Integers) -> tuple[Integers, Integers]:
    """For each candidate, which of its kind come before it: with the same memory, and with more or the same."""
    members: dict[Hashable, list[int]] = {}
    for number, kind in enumerate(kinds):
        members.setdefault(kind, []).append(number)
    equals, larger = np.zeros(len(kinds), np.int64), np.zeros(len(kinds), np.int64)
    for numbers in members.values():
        before, same, last = 0, 0, -1
        for number in sorted(numbers, key=lambda number: (-free[number], number)):
            if free[number] != last:
                same, last = 0, free[number]
            equals[number], larger[number] = same, before
            before |= 1 << number
            same |= 1 << number
    return equals, larger


def _nearest(send: Integers, distance: Integers) -> tuple[Integers, Integers]:
    """The cheapest hop from each candidate at each cut, and from any at any later cut; 0 where there is no other."""
    count = len(distance)
    others = distance + (CLUSTER + 1) * np.eye(count, dtype=np.int64)
    reachable = np.stack([(others == kind).any(axis=1) for kind in range(len(send))], axis=1)
    hops = np.where(reachable[:, :, None], send[None], NEVER).min(axis=1)
    hops[hops == NEVER] = 0
    cheapest = hops.min(axis=0)
    after = np.zeros_like(cheapest)
    after[:-2] = np.minimum.accumulate(cheapest[-2:0:-1])[::-1]
    return hops, after


def _extras(saved: Integers, stages_max: int) -> Integers:
    """[S+1]: the least that move and fragmentation of 1..s stages can add together: nothing moves, and all waste ends."""
    least = np.zeros(stages_max + 1, np.int64)
    used = np.minimum(np.arange(1, stages_max + 1), len(saved)) - 1
    least[1:] = np.minimum(np.cumsum(saved), 0)[used]
    return least


def expected_kib(mix_bytes: Integers, mix_ppm: Integers, free: Integers) -> Integers:
    """Expected fragmentation of devices with so much free, in KiB; see `pricing.fragmentation_growth`."""
    larger = (mix_bytes[None, :] > free[:, None]) * mix_ppm[None, :]
    kib: Integers = (free >> 10) * larger.sum(axis=1) // WHOLE_PPM
    return kib
