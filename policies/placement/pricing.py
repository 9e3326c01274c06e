"""What a plan costs: every stage's time, hop, load, move and fragmentation, recomputed from the map and the request.

Owns the meaning of the objective. Every solver, baseline and judge is priced here, so that none can flatter itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ..cluster.cluster_map import ClusterMap
from ..types import NS_PER_S, Link, StageLimit, stage_cost
from .values import WHOLE_PPM, CostTerms, PlacedReplica, PlacedStage, PlacementRequest, PresentStage

Run = tuple[int, int]
"""A device's row and the atom at which its stage ends: a replica is a sequence of these, the first beginning at atom 0."""


def price(cluster: ClusterMap, request: PlacementRequest, replica: int, runs: Sequence[Run]) -> PlacedReplica:
    """The stages of replica number ``replica`` with their costs. Judges no limit; see `verify`."""
    stages, first = [], 0
    for number, (device, end) in enumerate(runs):
        link = cluster.link(device, runs[number + 1][0]) if number + 1 < len(runs) else Link()
        stages.append(_stage(cluster, request, replica, device, range(first, end), link))
        first = end
    return PlacedReplica(tuple(stages), _terms(cluster, stages))


def free_bytes(cluster: ClusterMap, request: PlacementRequest, replica: int, device: int) -> int:
    """What replica number ``replica`` may use of a device: what is free, and what its own present stage leaves there."""
    held = sum(stage.held_bytes for stage in _present(request, replica) if stage.device == device)
    return int(cluster.free_bytes[device]) + held


def effective_speed(cluster: ClusterMap, device: int) -> float:
    """A device's speed as its co-tenants leave it."""
    return float(cluster.speed[device] / (1.0 + cluster.slowdown[device]))


def load_ns(
    cluster: ClusterMap, request: PlacementRequest, replica: int, device: int, atoms: Iterable[int]
) -> list[int]:
    """How long a node's link is busy with each atom's weights: not where the device has them, less where the host does."""
    here = [stage for stage in _present(request, replica) if stage.device == device]
    node = int(cluster.node_of[device])
    warm = request.warm.get(node, frozenset())
    host, network = float(cluster.host_bytes_per_s[node]), float(cluster.network_bytes_per_s[node])
    return [
        0
        if any(stage.first_atom <= atom < stage.end_atom for stage in here)
        else round(request.atoms[atom].weight_bytes * NS_PER_S / (host if atom in warm else network))
        for atom in atoms
    ]


def move_bytes_ns(
    cluster: ClusterMap, request: PlacementRequest, replica: int, device: int, atoms: Iterable[int]
) -> list[tuple[int, int]]:
    """Of each atom, the KV bytes that come from another device, and the time that they are on their way, latency left out."""
    present = _present(request, replica) if request.held_kv_tokens else ()
    return [_move(cluster, request, present, device, atom) for atom in atoms]


def _move(
    cluster: ClusterMap, request: PlacementRequest, present: Sequence[PresentStage], device: int, atom: int
) -> tuple[int, int]:
    for stage in present:
        if stage.first_atom <= atom < stage.end_atom and stage.device != device:
            size = request.held_kv_tokens * request.atoms[atom].kv_bytes_per_token
            return size, round(size * NS_PER_S / cluster.link(stage.device, device).bytes_per_s)
    return 0, 0


def fragmentation_growth(mix: Sequence[tuple[int, int]], free: int, taken: int) -> int:
    """By how many KiB the expected fragmentation of a device grows when ``taken`` of its ``free`` bytes go.

    Where every task of the mix wants one device, the fragmentation of a node (Weng et al., FGD, ATC'23) is a sum over its
    devices: what is free there, times the share of the mix that is larger.
    """
    return _fragmentation(mix, free - taken) - _fragmentation(mix, free)


def verify(cluster: ClusterMap, request: PlacementRequest, replicas: Sequence[PlacedReplica]) -> None:
    """Raise ValueError unless the plan holds every atom once per replica, in order, within every limit, at these costs."""
    devices = [stage.device for replica in replicas for stage in replica.stages]
    if len(set(devices)) != len(devices) or request.occupied & set(devices):
        raise ValueError("a device holds two stages of one model")
    for number, replica in enumerate(replicas):
        runs = [(stage.device, stage.cost.end_atom) for stage in replica.stages]
        ends = [0, *(end for _, end in runs)]
        if ends[-1] != len(request.atoms) or ends != sorted(set(ends)):
            raise ValueError(f"replica {number} does not hold every atom once, in order")
        if not request.stages_min <= len(runs) <= request.stages_max:
            raise ValueError(f"replica {number} has {len(runs)} stages")
        if price(cluster, request, number, runs) != replica:
            raise ValueError(f"replica {number} states costs that its stages do not have")
        for stage in replica.stages:
            if stage.cost.memory_bytes > free_bytes(cluster, request, number, stage.device):
                raise ValueError(f"device {stage.device} has too little memory for its stage")
        if request.step_ns_max is not None and replica.terms.bottleneck_ns > request.step_ns_max:
            raise ValueError(f"replica {number} has a stage that is too slow")
        if request.tpot_ns_max is not None and replica.terms.tpot_ns > request.tpot_ns_max:
            raise ValueError(f"replica {number} takes too long for a token")


def _present(request: PlacementRequest, replica: int) -> Sequence[PresentStage]:
    return request.present[replica] if replica < len(request.present) else ()


def _stage(
    cluster: ClusterMap, request: PlacementRequest, replica: int, device: int, atoms: range, link: Link
) -> PlacedStage:
    free = free_bytes(cluster, request, replica, device)
    limit = StageLimit(free, request.workspace_bytes, effective_speed(cluster, device))
    cost = stage_cost(request.atoms, atoms.start, atoms.stop, limit, link, request.kv_tokens)
    moves = move_bytes_ns(cluster, request, replica, device, atoms)
    return PlacedStage(
        device=device,
        cost=cost,
        load_ns=sum(load_ns(cluster, request, replica, device, atoms)),
        move_ns=sum(took for _, took in moves),
        moved_bytes=sum(size for size, _ in moves),
        fragmentation_kib=fragmentation_growth(request.fragment_mix, free, cost.memory_bytes),
    )


def _terms(cluster: ClusterMap, stages: Sequence[PlacedStage]) -> CostTerms:
    loads: dict[int, int] = defaultdict(int)
    for stage in stages:
        loads[int(cluster.node_of[stage.device])] += stage.load_ns
    return CostTerms(
        tpot_ns=sum(stage.cost.step_ns for stage in stages),
        bottleneck_ns=max(stage.cost.step_ns for stage in stages),
        startup_ns=max(loads.values()),
        move_ns=sum(stage.move_ns for stage in stages),
        moved_bytes=sum(stage.moved_bytes for stage in stages),
        fragmentation_kib=sum(stage.fragmentation_kib for stage in stages),
    )


def _fragmentation(mix: Sequence[tuple[int, int]], free: int) -> int:
    return (free >> 10) * sum(share for size, share in mix if size > free) // WHOLE_PPM
