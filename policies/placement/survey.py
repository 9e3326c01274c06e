"""Where in a large cluster a replica may stand well: a floor per rack, and the few devices that are worth a search.

Owns what lets the search skip almost all devices of a map. `floor_of` and `floors` are plain loops over arrays so that
`kernels` compiles these very sources; everything else is numpy over whole maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..cluster.cluster_map import ClusterMap
from ..types import NS_PER_S
from .problem import NEVER, Integers, Numbers, ProblemMaker, expected_kib
from .values import PlacementRequest

FASTEST_ENOUGH = 128
"""Fastest devices among which the floor of a whole map is looked for first."""

FloorOf = Callable[[Integers, Integers, Numbers, Integers, Integers, Integers], int]
Floors = Callable[[Integers, Integers, Integers, Numbers, Integers, Integers, Integers], Integers]


def floor_of(  # noqa: C901 - compiled as it stands, it can call nothing of ours
    room: Integers, share: Integers, speed: Numbers, node: Integers, totals: Integers, hops: Integers
) -> int:
    """What a replica on these devices costs at least, without moves and fragmentation; `NEVER` where none fits.

    ``room``, ``share``, ``speed``, ``node`` [D]: as in `ReplicaProblem`; devices of a node are neighbours. ``totals``: work,
    need, ns of loading, stages_max, the weights of tpot, bottleneck and start-up, step_ns_max, tpot_ns_max. ``hops``: the
    cheapest hop of all, and between nodes.
    """
    work, need, load, stages_max, w_tpot, w_bottleneck, w_startup, step_max, tpot_max = totals
    stages, left = 0, need
    for number in np.argsort(-room)[:stages_max]:
        stages += 1
        left -= room[number]
        if left <= 0:
            break
    if left > 0:
        return NEVER
    capacity = np.zeros(len(room), np.int64)
    nodes = 0
    for number in range(len(room)):
        if number == 0 or node[number] != node[number - 1]:
            nodes += 1
        capacity[nodes - 1] += room[number]
    crossings, left = -1, need
    for number in np.argsort(-capacity[:nodes]):
        crossings += 1
        left -= capacity[number]
        if left <= 0:
            break
    crossings = max(crossings, 0)
    undone, counted, compute, rate, least = work, 0, 0.0, 0.0, NEVER
    for number in np.argsort(-speed):
        part = min(undone, share[number])
        compute += part / speed[number]
        undone -= part
        if counted < stages_max:
            rate += speed[number]
            counted += 1
            slowest = max(int(work / rate) - 1, 0)
            if counted >= stages and slowest <= step_max:
                hop = crossings * hops[1] + (counted - 1 - crossings) * hops[0]
                least = min(least, w_tpot * hop + w_bottleneck * slowest + w_startup * (load // counted))
        elif undone == 0:
            break
    tpot = max(int(compute) - stages_max, 0)
    if undone > 0 or least == NEVER or tpot > tpot_max:
        return NEVER
    return int(least + w_tpot * tpot)


def floors(
    bounds: Integers,
    room: Integers,
    share: Integers,
    speed: Numbers,
    node: Integers,
    totals: Integers,
    hops: Integers,
) -> Integers:
    """`floor_of` for each of the ranges of devices that ``bounds`` divides."""
    found = np.zeros(len(bounds) - 1, np.int64)
    for rack in range(len(bounds) - 1):
        part = slice(bounds[rack], bounds[rack + 1])
        found[rack] = floor_of(room[part], share[part], speed[part], node[part], totals, hops)
    return found


@dataclass(slots=True)
class Survey:
    """One replica's view of a map: devices with any room for it, in the map's order, with what they could hold.

    ``rows`` [D] are rows of the map, ``room``, ``share``, ``speed``, ``node`` [D] as in `ReplicaProblem`; ``bounds`` [R+1] are
    each rack's range of them and ``rack_floor`` [R] what a replica within it costs at least.
    """

    rows: Integers
    room: Integers
    share: Integers
    speed: Numbers
    node: Integers
    bounds: Integers
    rack_floor: Integers

    def worth(self, row: int) -> tuple[int, int, float]:
        """The most work that the device in this row could hold, its room and its speed; nothing for one without room."""
        place = int(np.searchsorted(self.rows, row))
        if place == len(self.rows) or self.rows[place] != row:
            return 0, 0, 0.0
        return int(self.share[place]), int(self.room[place]), float(self.speed[place])

    def has(self, row: int) -> bool:
        """Whether the device in this row has any room."""
        place = int(np.searchsorted(self.rows, row))
        return place < len(self.rows) and int(self.rows[place]) == row

    def replace_rack(self, rack: int, fresh: Survey) -> None:
        """Put a survey of one rack in the place of what is known of it."""
        old = slice(int(self.bounds[rack]), int(self.bounds[rack + 1]))
        for name in ("rows", "room", "share", "speed", "node"):
            mine = getattr(self, name)
            if old.stop - old.start == len(fresh.rows):
                mine[old] = getattr(fresh, name)
            else:
                setattr(self, name, np.concatenate([mine[: old.start], getattr(fresh, name), mine[old.stop :]]))
        self.bounds[rack + 1 :] += len(fresh.rows) - (old.stop - old.start)
        self.rack_floor[rack] = fresh.rack_floor[0]


class Surveyor:
    """Surveys a map for one request; ``floors`` says how, by the reference above or by its compiled twin."""

    def __init__(self, cluster: ClusterMap, request: PlacementRequest, maker: ProblemMaker, floors: Floors) -> None:
        self._cluster, self._request, self._floors = cluster, request, floors
        self._first_of_rack = cluster.first_device[cluster.first_node]
        self._mix = (
            np.array([size for size, _ in request.fragment_mix], np.int64),
            np.array([share for _, share in request.fragment_mix], np.int64),
        )
        self._steps, self._most = _most_work(maker.work, maker.need)
        weights = request.weights
        self._totals = np.array(
            [
                maker.work[-1],
                maker.need[-1],
                _least_load(cluster, request),
                request.stages_max,
                weights.tpot,
                weights.bottleneck,
                weights.startup,
                NEVER if request.step_ns_max is None else request.step_ns_max,
                NEVER if request.tpot_ns_max is None else request.tpot_ns_max,
            ],
            np.int64,
        )
        cuts = [
            min((link.send_ns(atom.activation_bytes) for atom in request.atoms[:-1]), default=0)
            for link in cluster.links.by_distance()
        ]
        self._hops = np.array([min(cuts), min(cuts[2:])], np.int64)

    def rows_at_least(self) -> int:
        """How many devices have room for some atom at least, whoever else may be there; quick."""
        enough = int(
            np.count_nonzero(self._cluster.free_bytes >= self._request.workspace_bytes + max(int(self._steps[0]), 1))
        )
        return enough - len(self._request.occupied)

    def survey(self, replica: int, taken: frozenset[int]) -> Survey:
        """The whole map for replica number ``replica``, without the devices in ``taken``."""
        return self._survey(replica, taken, 0, self._cluster.racks)

    def survey_rack(self, replica: int, taken: frozenset[int], rack: int) -> Survey:
        """One rack of it."""
        return self._survey(replica, taken, rack, rack + 1)

    def floor(self, survey: Survey) -> int:
        """What a replica anywhere in the survey costs at least; what it crosses between nodes is not counted."""
        stages_max = self._request.stages_max
        fastest = _top(survey.speed, max(stages_max, FASTEST_ENOUGH))
        if int(survey.share[fastest].sum()) < int(self._totals[0]):
            chosen = np.arange(len(survey.rows))
        else:
            chosen = np.union1d(fastest, _top(survey.room.astype(np.float64), stages_max))
        bounds, hops = np.array([0, len(chosen)], np.int64), np.array([self._hops[0], self._hops[0]], np.int64)
        facts = survey.room[chosen], survey.share[chosen], survey.speed[chosen], survey.node[chosen]
        return int(self._floors(bounds, *facts, self._totals, hops)[0])

    def discount(self, survey: Survey) -> int:
        """By how much less than a floor a replica may cost where the waste of all its devices ends."""
        request = self._request
        if not request.fragment_mix or not request.weights.fragmentation:
            return 0
        waste = expected_kib(*self._mix, survey.room + request.workspace_bytes)
        most = np.partition(waste, max(len(waste) - request.stages_max, 0))[-request.stages_max :]
        return request.weights.fragmentation * int(most.sum())

    def _survey(self, replica: int, taken: frozenset[int], first_rack: int, end_rack: int) -> Survey:
        cluster, request = self._cluster, self._request
        first, end = int(self._first_of_rack[first_rack]), int(self._first_of_rack[end_rack])
        room = cluster.free_bytes[first:end] - request.workspace_bytes
        for stage in request.present[replica] if replica < len(request.present) else ():
            if first <= stage.device < end:
                room[stage.device - first] += stage.held_bytes
        for row in taken | request.occupied:
            if first <= row < end:
                room[row - first] = 0
        chosen = np.flatnonzero(room >= max(int(self._steps[0]), 1))
        rows, room = chosen + first, room[chosen]
        share = self._most[np.searchsorted(self._steps, room, side="right") - 1]
        speed = cluster.speed[rows] / (1.0 + cluster.slowdown[rows])
        node = cluster.node_of[rows]
        bounds = np.searchsorted(rows, self._first_of_rack[first_rack : end_rack + 1])
        rack_floor = self._floors(bounds, room, share, speed, node, self._totals, self._hops)
        return Survey(rows, room, share, speed, node, bounds, rack_floor)


def choose(survey: Survey, part: slice, wanted: Sequence[int], count: int, stages_max: int) -> Integers:
    """At most ``count`` rows of this part of a survey, ascending: all where they are no more.

    Otherwise those in ``wanted``, then in turn the largest, the fastest of those that hold their part of the model, and whole
    nodes by what their largest devices hold together.
    """
    rows, share, speed, node = survey.rows[part], survey.share[part], survey.speed[part], survey.node[part]
    if len(rows) <= count:
        return rows
    chosen = dict.fromkeys(int(row) for row in wanted if row in set(map(int, rows)))
    orders = (_largest(share, speed, count), _fastest(share, speed, count), _by_node(share, node, count, stages_max))
    for each in zip(*orders, strict=False):
        for number in each:
            if len(chosen) < count:
                chosen[int(rows[number])] = None
    return np.array(sorted(chosen), np.int64)


def _largest(share: Integers, speed: Numbers, count: int) -> Integers:
    top = _top(share.astype(np.float64), count)
    return top[np.lexsort((top, -speed[top], -share[top]))]


def _fastest(share: Integers, speed: Numbers, count: int) -> Integers:
    """By the time for a unit of work, where a device that holds little is slower by the hops that it costs."""
    worth = speed * share / (share + share.mean())
    top = _top(worth, count)
    return top[np.lexsort((top, -worth[top]))]


def _by_node(share: Integers, node: Integers, count: int, stages_max: int) -> Integers:
    first = np.flatnonzero(np.concatenate([[True], node[1:] != node[:-1]]))
    together = np.add.reduceat(share, first)
    order: list[int] = []
    for number in _sorted_top(together, count):
        end = first[number + 1] if number + 1 < len(first) else len(node)
        devices = np.arange(first[number], end)
        order.extend(devices[np.lexsort((devices, -share[devices]))][:stages_max])
        if len(order) >= count:
            break
    return np.array(order[:count], np.int64)


def _sorted_top(values: Integers, count: int) -> Integers:
    top = _top(values.astype(np.float64), count)
    return top[np.lexsort((top, -values[top]))]


def _top(values: Numbers, count: int) -> Integers:
    """The positions of the ``count`` largest values, ties to the first, in no order."""
    if len(values) <= count:
        return np.arange(len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    return np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]])


def _least_load(cluster: ClusterMap, request: PlacementRequest) -> int:
    """Ns of loading all weights where they load fastest; nothing where stages serve already."""
    if request.present or not cluster.nodes:
        return 0
    rate = float(cluster.network_bytes_per_s.max())
    if request.warm:
        rate = max(rate, float(cluster.host_bytes_per_s.max()))
    return int(sum(atom.weight_bytes for atom in request.atoms) * NS_PER_S / rate)


def _most_work(work: Integers, need: Integers) -> tuple[Integers, Integers]:
    """The most work that any run of at most so much need holds, as steps: ascending needs, and the work from each on."""
    first, end = np.triu_indices(len(work), 1)
    needs, works = need[end] - need[first], work[end] - work[first]
    order = np.lexsort((works, needs))
    needs, works = needs[order], np.maximum.accumulate(works[order])
    last = np.concatenate([needs[1:] != needs[:-1], [True]])
    return needs[last], works[last]
