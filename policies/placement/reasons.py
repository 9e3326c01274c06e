"""Why there is no plan: the tightest constraint, and what is missing.

Owns the order in which constraints are blamed: from what no cut could mend to what only the search says. Every sentence but
the last kind is proved by arithmetic that needs no search.
"""

from __future__ import annotations

import numpy as np

from ..cluster.cluster_map import ClusterMap
from .pricing import effective_speed, free_bytes
from .values import NoPlacement, PlacementRequest

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def explain(cluster: ClusterMap, request: PlacementRequest, replicas: int, *, proved: bool) -> NoPlacement:
    """Why so many replicas have no place. ``proved`` is whether the search knows that they have none."""
    return (
        _no_device(cluster, request)
        or _largest_atom(cluster, request)
        or _too_many_stages(cluster, request, replicas)
        or _memory(cluster, request, replicas)
        or _time(cluster, request)
        or _packing(request, replicas, proved=proved)
    )


def size(count: int) -> str:
    """Bytes for people."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def _open_rows(cluster: ClusterMap, request: PlacementRequest) -> list[int]:
    return [row for row in range(cluster.devices) if row not in request.occupied]


def _free(cluster: ClusterMap, request: PlacementRequest, row: int) -> int:
    """What is free of a device, at most: whichever replica asks."""
    return max(free_bytes(cluster, request, replica, row) for replica in range(max(len(request.present), 1)))


def _rooms(cluster: ClusterMap, request: PlacementRequest) -> dict[int, int]:
    """Bytes for weights and KV by row, for devices that have any."""
    rooms = {row: _free(cluster, request, row) - request.workspace_bytes for row in _open_rows(cluster, request)}
    return {row: room for row, room in rooms.items() if room > 0}


def _no_device(cluster: ClusterMap, request: PlacementRequest) -> NoPlacement | None:
    if not cluster.devices:
        return NoPlacement("the map has no devices")
    if not _open_rows(cluster, request):
        return NoPlacement(f"each of the {cluster.devices} devices holds a stage of this model already")
    return None


def _largest_atom(cluster: ClusterMap, request: PlacementRequest) -> NoPlacement | None:
    needs = [request.memory_bytes(atom) for atom in request.atoms]
    number = int(np.argmax(needs))
    free = max(_free(cluster, request, row) for row in _open_rows(cluster, request))
    need = needs[number] + request.workspace_bytes
    if free >= need:
        return None
    kv = f" with KV for {request.kv_tokens:,} tokens" if request.kv_tokens else ""
    workspace = f" and {size(request.workspace_bytes)} of workspace" if request.workspace_bytes else ""
    return NoPlacement(
        f"the largest free device has {size(free)} and atom {request.atoms[number].name}{kv}{workspace} needs {size(need)}",
        need - free,
    )


def _too_many_stages(cluster: ClusterMap, request: PlacementRequest, replicas: int) -> NoPlacement | None:
    if request.stages_min > len(request.atoms):
        return NoPlacement(
            f"{request.stages_min} stages are wanted, but the model can be cut into {len(request.atoms)} at most"
        )
    have, wanted = len(_rooms(cluster, request)), request.stages_min * replicas
    if have < wanted:
        return NoPlacement(
            f"{_replicas(replicas)} of {request.stages_min} stages or more are wanted, but only {have} devices have any room:"
            f" {wanted - have} more devices are needed"
        )
    return None


def _memory(cluster: ClusterMap, request: PlacementRequest, replicas: int) -> NoPlacement | None:
    need = replicas * sum(request.memory_bytes(atom) for atom in request.atoms)
    smallest = min(request.memory_bytes(atom) for atom in request.atoms)
    rooms = [room for room in _rooms(cluster, request).values() if room >= smallest]
    usable = sorted(rooms, reverse=True)[: request.stages_max * replicas]
    have = sum(usable)
    if have >= need:
        return None
    takes = "takes" if replicas == 1 else "take"
    return NoPlacement(
        f"{size(need - have)} more on devices of at least {size(smallest + request.workspace_bytes)} are needed:"
        f" {_replicas(replicas)} with KV for {request.kv_tokens:,} tokens {takes} {size(need)},"
        f" and the {len(usable)} largest free devices, for {request.stages_max} stages each at most, have {size(have)} for them",
        need - have,
    )


def _time(cluster: ClusterMap, request: PlacementRequest) -> NoPlacement | None:
    speeds = sorted((effective_speed(cluster, row) for row in _rooms(cluster, request)), reverse=True)
    work = [atom.compute_ns for atom in request.atoms]
    slowest = max(range(len(work)), key=work.__getitem__)
    least = round(work[slowest] / speeds[0])
    if request.step_ns_max is not None and least > request.step_ns_max:
        return NoPlacement(
            f"atom {request.atoms[slowest].name} takes {_ms(least)} on the fastest device with room, and a stage's step may"
            f" take {_ms(request.step_ns_max)}"
        )
    shared = round(sum(work) / sum(speeds[: request.stages_max]))
    if request.step_ns_max is not None and shared > request.step_ns_max + 1:
        return NoPlacement(
            f"a stage's step takes {_ms(shared)} even on the {request.stages_max} fastest devices with room, and"
            f" {_ms(request.step_ns_max)} are allowed: allow more stages or more time"
        )
    way = round(sum(work) / speeds[0]) - request.stages_max
    if request.tpot_ns_max is not None and way > request.tpot_ns_max:
        return NoPlacement(
            f"a token's way takes {_ms(way)} even on the fastest device with room, and {_ms(request.tpot_ns_max)} are allowed"
        )
    return None


def _packing(request: PlacementRequest, replicas: int, *, proved: bool) -> NoPlacement:
    limits = [
        f"{name} of {_ms(limit)}"
        for name, limit in (("step", request.step_ns_max), ("token's way", request.tpot_ns_max))
        if limit is not None
    ]
    within = f" within a {' and a '.join(limits)}" if limits else ""
    sentence = (
        f"no cut of {_replicas(replicas)} into {request.stages_min} to {request.stages_max} stages fits the free"
        f" devices{within}, although they have enough in all"
    )
    return NoPlacement(sentence if proved else f"the search found {sentence}; it did not try every one", proved=proved)


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.2f} ms"
