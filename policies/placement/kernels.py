"""`search.search` as machine code: the same states in the same order with the same answer.

Owns nothing that the reference does not say; read that first. Numba keeps the code between processes; it sees changes of this
file only, so all kernels stand here. Import it late: numba takes a moment.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from .problem import NEVER, Integers, Numbers, ReplicaProblem
from .search import Effort, Found
from .survey import Floors, floor_of

# Without numba's reference counts, which took seven eighths of the time: these functions make no arrays, they fill some.
_njit: Any = numba.njit
_compiled = _njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
_inlined = _njit(inline="always", error_model="numpy", _nrt=False)
_allocating = _njit(cache=True, nogil=True, error_model="numpy")

_KEY, _ORDER, _PARENT, _DEVICE, _END = range(5)
"""Columns of a child in the heap."""
_TIME, _SLOWEST, _LAST, _STARTUP, _EXTRA, _TAKEN = range(6)
"""Columns of a chain; ``_TAKEN`` is the set of its devices, a bit each."""
_BEST, _STATES, _DROPPED, _STAGES, _SIZE, _SHED = range(6)
"""The score: the best cost, states so far, the least floor given up, the best chain's stages; and of the present level, how many
children the heap holds and the least floor that found no place in it."""


class _Room(NamedTuple):
    """Arrays to work in. ``chains``, ``devices`` and ``ends`` hold two levels of up to ``width`` chains in turn."""

    chains: Integers
    devices: Integers
    ends: Integers
    heap: Integers
    child: Integers
    run_ends: Integers
    best_devices: Integers
    best_ends: Integers
    score: Integers


def search(
    problem: ReplicaProblem, guesses: Integers, effort: Effort, incumbent: int = NEVER, order: tuple[int, ...] = ()
) -> Found:
    """As `search.search`."""
    width, levels = effort.width, len(order) or int(problem.limits[1])
    room = _Room(
        chains=np.zeros((2, width, 6), np.int64),
        devices=np.zeros((2, width, levels), np.int64),
        ends=np.zeros((2, width, levels), np.int64),
        heap=np.zeros((width, 5), np.int64),
        child=np.zeros(6, np.int64),
        run_ends=np.zeros(max(min(effort.every_end_max, len(problem.work)), len(guesses)), np.int64),
        best_devices=np.zeros(levels, np.int64),
        best_ends=np.zeros(levels, np.int64),
        score=np.array([incumbent, 0, NEVER, 0, 0, NEVER], np.int64),
    )
    fixed = np.array([sum(1 << device for device in order if device >= 0), *(order or [-1] * levels)], np.int64)
    _search(problem, guesses, effort.every_end_max, effort.every_device, fixed, len(order), room)
    cost, states, dropped, stages = (int(number) for number in room.score[:4])
    devices, ends = room.best_devices[:stages].tolist(), room.best_ends[:stages].tolist()
    return Found(cost, tuple(devices), tuple(ends), states, min(cost, dropped))


@_compiled
def _search(
    problem: ReplicaProblem,
    guesses: Integers,
    every_end_max: int,
    every_device: bool,
    fixed: Integers,
    ordered: int,
    room: _Room,
) -> None:
    """Fill ``room`` with the answer. ``fixed``: the set of devices that the order names, then the order, -1 for any."""
    heap, score = room.heap, room.score
    kept = 1
    for level in range(len(room.best_devices)):
        now, into = level % 2, (level + 1) % 2
        chains, devices, ends = room.chains[now], room.devices[now], room.ends[now]
        score[_SIZE], score[_SHED] = 0, NEVER
        for parent in range(kept):
            chain, path, stops = chains[parent], devices[parent], ends[parent]
            first = stops[level - 1] if level > 0 else 0
            complete = True
            for device in range(len(problem.room)):
                wanted = _is_next(problem, device, chain[_TAKEN] | fixed[0], fixed[level + 1], every_device)
                if wanted == _LATER:
                    complete = False
                if wanted != _NOW:
                    continue
                tried, all_ends = _run_ends(problem, guesses, every_end_max, device, first, room.run_ends)
                complete = complete and all_ends
                for number in range(tried):
                    _try_run(problem, room, chain, path, stops, level, parent, device, first, number, ordered)
            if not complete:
                score[_DROPPED] = min(score[_DROPPED], _floor(problem, chain, path, level, first))
        if score[_SHED] < score[_BEST]:
            score[_DROPPED] = min(score[_DROPPED], score[_SHED])
        kept = _next_level(
            problem, heap, score, level, chains, devices, ends, room.chains[into], room.devices[into], room.ends[into]
        )


_NEVER, _LATER, _NOW = range(3)
"""Whether a device is to be the next stage's: not here; not before a larger one; yes."""


@_inlined
def _is_next(problem: ReplicaProblem, device: int, taken: int, only: int, every_device: bool) -> int:
    if only >= 0:
        return _NOW if device == only else _NEVER
    if taken >> device & 1 or problem.equals[device] & ~taken:
        return _NEVER
    return _NOW if every_device or not problem.larger[device] & ~taken else _LATER


@_inlined
def _try_run(
    problem: ReplicaProblem,
    room: _Room,
    chain: Integers,
    path: Integers,
    stops: Integers,
    level: int,
    parent: int,
    device: int,
    first: int,
    number: int,
    ordered: int,
) -> None:
    """One state: a whole plan to be compared with the best, or a child to be kept or not."""
    end, child, score, heap = room.run_ends[number], room.child, room.score, room.heap
    score[_STATES] += 1
    _extend(problem, chain, path, stops, level, first, device, end, child)
    if end == len(problem.work) - 1:
        cost = _whole_cost(problem, child, level + 1, ordered)
        if cost < score[_BEST]:
            score[_BEST], score[_STAGES] = cost, level + 1
            for stage in range(level):
                room.best_devices[stage], room.best_ends[stage] = path[stage], stops[stage]
            room.best_devices[level], room.best_ends[level] = device, end
    else:
        rough = _rough_floor(problem, child, level + 1, end)
        full = score[_SIZE] == len(heap)
        if rough < score[_BEST] and not (full and rough >= heap[0, _KEY] and rough >= score[_SHED]):
            path[level] = device
            least = _floor(problem, child, path, level + 1, end)
            if least < score[_BEST]:
                _keep(heap, score, least, parent, device, end)


@_compiled
def _next_level(
    problem: ReplicaProblem,
    heap: Integers,
    score: Integers,
    level: int,
    chains: Integers,
    devices: Integers,
    ends: Integers,
    new_chains: Integers,
    new_devices: Integers,
    new_ends: Integers,
) -> int:
    """The heap's children as chains, lowest floor first, those that the best plan outdoes left out; how many there are."""
    for last in range(score[_SIZE] - 1, -1, -1):  # heap sort: the highest floor goes last
        _swap(heap, 0, last)
        _sift_down(heap, last)
    kept = 0
    for number in range(score[_SIZE]):
        if heap[number, _KEY] >= score[_BEST]:
            break
        parent, device, end = heap[number, _PARENT], heap[number, _DEVICE], heap[number, _END]
        first = ends[parent, level - 1] if level > 0 else 0
        _extend(problem, chains[parent], devices[parent], ends[parent], level, first, device, end, new_chains[kept])
        for stage in range(level):
            new_devices[kept, stage], new_ends[kept, stage] = devices[parent, stage], ends[parent, stage]
        new_devices[kept, level], new_ends[kept, level] = device, end
        kept += 1
    return kept


@_compiled
def _run_ends(
    problem: ReplicaProblem, guesses: Integers, every_end_max: int, device: int, first: int, out: Integers
) -> tuple[int, bool]:
    last = problem.fit[device, first]
    if last - first <= every_end_max:
        for number in range(last - first):
            out[number] = last - number
        return last - first, True
    tried = 0
    for guess in guesses:
        low, high = first + 1, last  # the latest end within the guess, found by halving: compute grows with the end
        while low < high:
            middle = (low + high + 1) // 2
            if _compute_ns(problem, device, first, middle) <= guess:
                low = middle
            else:
                high = middle - 1
        if tried == 0 or low < out[tried - 1]:
            out[tried] = low
            tried += 1
    return tried, False


@_inlined
def _compute_ns(problem: ReplicaProblem, device: int, first: int, end: int) -> np.int64:
    return np.int64(np.rint((problem.work[end] - problem.work[first]) / problem.speed[device]))


@_inlined
def _extend(
    problem: ReplicaProblem,
    chain: Integers,
    path: Integers,
    stops: Integers,
    stages: int,
    first: int,
    device: int,
    end: int,
    out: Integers,
) -> None:
    hop = problem.send[problem.distance[path[stages - 1], device], first] if stages > 0 else 0
    compute = _compute_ns(problem, device, first, end)
    out[_TIME] = chain[_TIME] + hop + compute
    out[_SLOWEST] = max(chain[_SLOWEST], chain[_LAST] + hop)
    out[_LAST] = compute
    load = problem.load[device, end] - problem.load[device, first]
    begin = 0
    for number in range(stages):
        other = path[number]
        if problem.node[other] == problem.node[device]:
            load += problem.load[other, stops[number]] - problem.load[other, begin]
        begin = stops[number]
    out[_STARTUP] = max(chain[_STARTUP], load)
    out[_EXTRA] = chain[_EXTRA] + _extra(problem, device, first, end)
    out[_TAKEN] = chain[_TAKEN] | (np.int64(1) << device)


@_inlined
def _extra(problem: ReplicaProblem, device: int, first: int, end: int) -> int:
    extra = problem.fee[device] + problem.weights[3] * (problem.move[device, end] - problem.move[device, first])
    if len(problem.mix_bytes) == 0:
        return extra
    before = problem.free[device]
    after = problem.room[device] - (problem.need[end] - problem.need[first])
    return extra + problem.weights[4] * (_expected(problem, after) - _expected(problem, before))


@_inlined
def _expected(problem: ReplicaProblem, free: int) -> np.int64:
    larger = np.int64(0)
    for number in range(len(problem.mix_bytes)):
        if problem.mix_bytes[number] > free:
            larger += problem.mix_ppm[number]
    return (free >> 10) * larger // 1_000_000


@_inlined
def _weighted(problem: ReplicaProblem, time: int, slowest: int, startup: int) -> int:
    return problem.weights[0] * time + problem.weights[1] * slowest + problem.weights[2] * startup


@_inlined
def _whole_cost(problem: ReplicaProblem, chain: Integers, stages: int, fixed: int) -> int:
    slowest = max(chain[_SLOWEST], chain[_LAST])
    if stages < max(problem.limits[0], fixed) or slowest > problem.limits[2] or chain[_TIME] > problem.limits[3]:
        return NEVER
    return _weighted(problem, chain[_TIME], slowest, chain[_STARTUP]) + chain[_EXTRA]


@_inlined
def _rough_floor(problem: ReplicaProblem, chain: Integers, stages: int, first: int) -> int:
    """No more than `_floor`, and cheap: the rest on the fastest device of all, without a hop."""
    further_max = problem.limits[1] - stages
    compute = np.int64((problem.work[-1] - problem.work[first]) / problem.speed[problem.by_speed[0]]) - 1 - further_max
    time, slowest = chain[_TIME] + max(compute, 0), max(chain[_SLOWEST], chain[_LAST])
    return _weighted(problem, time, slowest, chain[_STARTUP]) + chain[_EXTRA] + problem.extras[max(further_max, 0)]


@_inlined
def _floor(problem: ReplicaProblem, chain: Integers, path: Integers, stages: int, first: int) -> int:
    taken = chain[_TAKEN]
    further_max = problem.limits[1] - stages
    left, further, enough = problem.need[-1] - problem.need[first], 0, False
    for device in problem.by_room:
        if further == further_max:
            break
        if not taken >> device & 1:
            left -= problem.room[device]
            further += 1
            if left <= 0:
                enough = True
                break
    further = max(further, problem.limits[0] - stages)
    if not enough or further > len(problem.work) - 1 - first:
        return NEVER
    work = problem.work[-1] - problem.work[first]
    hop = problem.nearest[path[stages - 1], first] if stages > 0 else 0
    before = max(chain[_SLOWEST], chain[_LAST] + hop)
    after = problem.nearest_after[first]
    least, left, counted, compute, rate = NEVER, work, 0, 0.0, 0.0
    for device in problem.by_speed:
        if left == 0 and counted == further_max:
            break
        if not taken >> device & 1:
            part = min(left, problem.share[device])
            compute += part / problem.speed[device]
            left -= part
            if counted < further_max:
                rate += problem.speed[device]
                counted += 1
                slowest = max(before, np.int64(work / rate) - 1)
                if counted >= further and slowest <= problem.limits[2]:
                    startup = max(chain[_STARTUP], problem.least_load[0] // (stages + counted))
                    least = min(least, _weighted(problem, (counted - further) * after, slowest, startup))
    time = chain[_TIME] + hop + (further - 1) * after + max(np.int64(compute) - further_max, 0)
    if left > 0 or least == NEVER or time > problem.limits[3]:
        return NEVER
    return least + problem.weights[0] * time + chain[_EXTRA] + problem.extras[further_max]


@_compiled
def _keep(heap: Integers, score: Integers, floor: int, parent: int, device: int, end: int) -> None:
    """Put a child into the heap, whose top is the first to be dropped; a full one drops it."""
    place = score[_SIZE]
    if place == len(heap):
        if floor >= heap[0, _KEY]:
            score[_SHED] = min(score[_SHED], floor)
            return
        score[_SHED] = min(score[_SHED], heap[0, _KEY])
        place = 0
    heap[place, _KEY], heap[place, _ORDER], heap[place, _PARENT] = floor, score[_STATES], parent
    heap[place, _DEVICE], heap[place, _END] = device, end
    if score[_SIZE] == len(heap):
        _sift_down(heap, len(heap))
        return
    score[_SIZE] += 1
    while place > 0 and _above(heap, place, (place - 1) // 2):
        _swap(heap, place, (place - 1) // 2)
        place = (place - 1) // 2


@_compiled
def _above(heap: Integers, a: int, b: int) -> bool:
    """Whether child ``a`` is to be dropped before child ``b``."""
    if heap[a, _KEY] != heap[b, _KEY]:
        return heap[a, _KEY] > heap[b, _KEY]
    return heap[a, _ORDER] > heap[b, _ORDER]


@_compiled
def _swap(heap: Integers, a: int, b: int) -> None:
    for column in range(5):
        kept = heap[a, column]
        heap[a, column] = heap[b, column]
        heap[b, column] = kept


@_compiled
def _sift_down(heap: Integers, size: int) -> None:
    place = 0
    while True:
        above = place
        for below in (2 * place + 1, 2 * place + 2):
            if below < size and _above(heap, below, above):
                above = below
        if above == place:
            return
        _swap(heap, place, above)
        place = above


_floor_of = _allocating(floor_of)


@_allocating
def _floors(
    bounds: Integers, room: Integers, share: Integers, speed: Numbers, node: Integers, totals: Integers, hops: Integers
) -> Integers:
    found = np.zeros(len(bounds) - 1, np.int64)
    for rack in range(len(bounds) - 1):
        first, end = bounds[rack], bounds[rack + 1]
        found[rack] = _floor_of(room[first:end], share[first:end], speed[first:end], node[first:end], totals, hops)
    return found


floors: Floors = _floors
"""As `survey.floors`."""
