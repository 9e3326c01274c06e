"""The search for one replica, to be read: a beam over chains of stages, ordered by what their completions cost at least.

Owns the order in which plans are tried, and the floor that lets one be dropped unseen. `kernels` does the same in
machine code: the same states in the same order with the same answer, only faster. Pure.

A state is a chain of stages that holds atoms ``[0, j)``. Its floor adds to what the chain costs already: the remaining work
on the fastest devices that are left, each with no more than its memory allows; as many further hops as the largest devices
that are left must have; the slowest stage that then must exist. A level keeps the ``width`` lowest floors; states whose floor
is no less than the best plan so far go at once. Where no level overflows and every cut is tried, the answer is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .problem import CANDIDATES_MAX, NEVER, Integers, ReplicaProblem


class Effort(NamedTuple):
    """How hard to search: states kept per level, and up to how many ends of a stage all of them are tried.

    Beyond that, a stage ends where its memory does, or where its work would pass one of the problem's bottleneck guesses.
    Unless ``every_device``, of an island's devices that differ in memory alone the largest that is left comes first.
    """

    width: int
    every_end_max: int
    every_device: bool


class Found(NamedTuple):
    """The best chain: its cost (`NEVER` without one), devices as candidates, and ends. ``states`` were looked at.

    No chain costs less than ``floor`` unless it is the incumbent's: equal to ``cost`` where the search was exhaustive.
    """

    cost: int
    devices: tuple[int, ...]
    ends: tuple[int, ...]
    states: int
    floor: int


@dataclass(frozen=True, slots=True)
class Chain:
    """Stages so far.

    ``time_ns`` is their way but for the last hop, ``slowest_ns`` their slowest but for the last stage, whose compute is
    ``last_ns``; ``extra`` is weighted move and fragmentation, and fees.
    """

    devices: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    time_ns: int = 0
    slowest_ns: int = 0
    last_ns: int = 0
    startup_ns: int = 0
    extra: int = 0

    @property
    def end(self) -> int:
        """The first atom that it does not hold."""
        return self.ends[-1] if self.ends else 0


def search(
    problem: ReplicaProblem, guesses: Integers, effort: Effort, incumbent: int = NEVER, order: tuple[int, ...] = ()
) -> Found:
    """The best chain that costs less than ``incumbent``. ``order`` fixes the devices of its stages (-1: any)."""
    atoms = len(problem.work) - 1
    best, states = Found(incumbent, (), (), 0, NEVER), 0
    dropped = NEVER
    level = [Chain()]
    for _ in range(len(order) or int(problem.limits[1])):
        children: list[tuple[int, int, Chain]] = []
        for chain in level:
            devices, all_devices = _next_devices(problem, chain, effort.every_device, order)
            if not all_devices:
                dropped = min(dropped, floor(problem, chain))
            for device in devices:
                ends, all_ends = run_ends(problem, guesses, effort.every_end_max, device, chain.end)
                if not all_ends:
                    dropped = min(dropped, floor(problem, chain))
                for end in ends:
                    states += 1
                    child = extended(problem, chain, device, end)
                    if end == atoms:
                        cost = whole_cost(problem, child, order)
                        if cost < best.cost:
                            best = Found(cost, child.devices, child.ends, 0, NEVER)
                    else:
                        least = floor(problem, child)
                        if least < best.cost:
                            children.append((least, states, child))
        children = sorted((child for child in children if child[0] < best.cost), key=lambda child: child[:2])
        if len(children) > effort.width:
            dropped = min(dropped, children[effort.width][0])
        level = [chain for _, _, chain in children[: effort.width]]
    return best._replace(states=states, floor=min(best.cost, dropped))


def run_ends(
    problem: ReplicaProblem, guesses: Integers, every_end_max: int, device: int, first: int
) -> tuple[list[int], bool]:
    """Where a stage that begins at ``first`` may end, latest first, and whether these are all that memory allows."""
    last = int(problem.fit[device, first])
    if last - first <= every_end_max:
        return list(range(last, first, -1)), True
    ends: list[int] = []
    for guess in guesses:
        end = last
        while end > first + 1 and compute_ns(problem, device, first, end) > guess:
            end -= 1
        if not ends or end < ends[-1]:
            ends.append(end)
    return ends, False


def compute_ns(problem: ReplicaProblem, device: int, first: int, end: int) -> int:
    """What atoms ``[first, end)`` take on the device, as `types.stage_cost` has it."""
    return round(int(problem.work[end] - problem.work[first]) / float(problem.speed[device]))


def extended(problem: ReplicaProblem, chain: Chain, device: int, end: int) -> Chain:
    """The chain with one more stage."""
    first = chain.end
    hop = int(problem.send[problem.distance[chain.devices[-1], device], first]) if chain.devices else 0
    compute = compute_ns(problem, device, first, end)
    return Chain(
        devices=(*chain.devices, device),
        ends=(*chain.ends, end),
        time_ns=chain.time_ns + hop + compute,
        slowest_ns=max(chain.slowest_ns, chain.last_ns + hop),
        last_ns=compute,
        startup_ns=max(chain.startup_ns, _node_load(problem, chain, device, end)),
        extra=chain.extra + _extra(problem, device, first, end),
    )


def whole_cost(problem: ReplicaProblem, chain: Chain, order: tuple[int, ...]) -> int:
    """The weighted cost of a chain that holds all atoms; `NEVER` where it breaks a limit or leaves devices of ``order`` out."""
    stages_min, _, step_max, tpot_max = (int(limit) for limit in problem.limits)
    slowest = max(chain.slowest_ns, chain.last_ns)
    if len(chain.devices) < max(stages_min, len(order)) or slowest > step_max or chain.time_ns > tpot_max:
        return NEVER
    return _weighted(problem, chain.time_ns, slowest, chain.startup_ns) + chain.extra


def floor(problem: ReplicaProblem, chain: Chain) -> int:
    """What every completion of the chain costs at least; `NEVER` where none can be within the limits."""
    stages_min, stages_max, step_max, tpot_max = (int(limit) for limit in problem.limits)
    free = set(range(len(problem.room))) - set(chain.devices)
    further_max = stages_max - len(chain.devices)
    further = _stages_by_memory(problem, chain.end, free, further_max)
    if further is None:
        return NEVER
    further = max(further, stages_min - len(chain.devices))
    if further > len(problem.work) - 1 - chain.end:
        return NEVER
    compute, rates = _compute_floor(problem, chain.end, free, further_max)
    if compute is None:
        return NEVER
    hop = int(problem.nearest[chain.devices[-1], chain.end]) if chain.devices else 0
    after, work = int(problem.nearest_after[chain.end]), int(problem.work[-1] - problem.work[chain.end])
    time = chain.time_ns + hop + (further - 1) * after + max(int(compute) - further_max, 0)
    if time > tpot_max:
        return NEVER
    least = NEVER
    for count, rate in enumerate(rates, start=1):  # that many further stages
        slowest = max(chain.slowest_ns, chain.last_ns + hop, int(work / rate) - 1)
        startup = max(chain.startup_ns, int(problem.least_load[0]) // (len(chain.devices) + count))
        if count >= further and slowest <= step_max:
            least = min(least, _weighted(problem, time + (count - further) * after, slowest, startup))
    return NEVER if least == NEVER else least + chain.extra + int(problem.extras[further_max])


def _next_devices(
    problem: ReplicaProblem, chain: Chain, every_device: bool, order: tuple[int, ...]
) -> tuple[list[int], bool]:
    """Devices for the next stage, and whether these are all that matter.

    Where one is fixed, only that. Of equal ones that are left only the first is tried.
    """
    fixed = order[len(chain.devices)] if order else -1
    if fixed >= 0:
        return [fixed], True
    taken = {*chain.devices, *order}
    devices = [device for device in range(len(problem.room)) if device not in taken]
    first = [device for device in devices if not _members(problem.equals[device]) - taken]
    largest = [device for device in devices if not _members(problem.larger[device]) - taken]
    return (first, True) if every_device else (largest, len(largest) == len(first))


def _members(devices: np.int64) -> set[int]:
    return {number for number in range(CANDIDATES_MAX) if int(devices) >> number & 1}


def _stages_by_memory(problem: ReplicaProblem, first: int, free: set[int], stages_max: int) -> int | None:
    """How many of the free devices the rest needs at least, if the largest are taken; None where all are too few."""
    left = int(problem.need[-1] - problem.need[first])
    count = 0
    for device in map(int, problem.by_room):
        if device in free and count < stages_max:
            left -= int(problem.room[device])
            count += 1
            if left <= 0:
                return count
    return None


def _compute_floor(
    problem: ReplicaProblem, first: int, free: set[int], stages_max: int
) -> tuple[float | None, list[float]]:
    """The least compute ns of the rest, on the fastest free devices; and the joint speed of one, two... of them."""
    left = int(problem.work[-1] - problem.work[first])
    compute, rate, rates = 0.0, 0.0, list[float]()
    for device in map(int, problem.by_speed):
        if device in free:
            part = min(left, int(problem.share[device]))
            compute += part / float(problem.speed[device])
            left -= part
            if len(rates) < stages_max:
                rate += float(problem.speed[device])
                rates.append(rate)
    return (compute if left == 0 else None), rates


def _weighted(problem: ReplicaProblem, time_ns: int, slowest_ns: int, startup_ns: int) -> int:
    tpot, bottleneck, startup, _, _ = (int(weight) for weight in problem.weights)
    return tpot * time_ns + bottleneck * slowest_ns + startup * startup_ns


def _node_load(problem: ReplicaProblem, chain: Chain, device: int, end: int) -> int:
    """How long the node of ``device`` loads, this stage and those of the chain that stand there."""
    node = problem.node[device]
    total = int(problem.load[device, end] - problem.load[device, chain.end])
    first = 0
    for other, other_end in zip(chain.devices, chain.ends, strict=True):
        if problem.node[other] == node:
            total += int(problem.load[other, other_end] - problem.load[other, first])
        first = other_end
    return total


def _extra(problem: ReplicaProblem, device: int, first: int, end: int) -> int:
    move = int(problem.weights[3]) * int(problem.move[device, end] - problem.move[device, first])
    workspace = int(problem.free[device] - problem.room[device])
    taken = int(problem.need[end] - problem.need[first]) + workspace
    before, after = int(problem.free[device]), int(problem.free[device]) - taken
    growth = _expected(problem, after) - _expected(problem, before)
    return int(problem.fee[device]) + move + int(problem.weights[4]) * growth


def _expected(problem: ReplicaProblem, free: int) -> int:
    larger = sum(int(share) for size, share in zip(problem.mix_bytes, problem.mix_ppm, strict=True) if size > free)
    return (free >> 10) * larger // 1_000_000
