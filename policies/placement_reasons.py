"""Why there is no plan: the tightest constraint, and what is missing.

Owns the order in which constraints are blamed: from what no cut could mend to what only the search says. Every sentence but
the last kind is proved by arithmetic that needs no search.
"""

from __future__ import annotations

import numpy as np

from .cluster_map import ClusterMap
from .placement_pricing import effective_speed, free_bytes
from .placement_values import NoPlacement, PlacementRequest

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def explain(
    cluster: ClusterMap, request: PlacementRequest, replica: int, taken: frozenset[int], *, proved: bool
) -> NoPlacement:
    """Why replica number ``replica`` has no place beside the devices in ``taken``. ``proved`` is what the search knows."""
    found = (
        _no_device(cluster, request, taken)
        or _largest_atom(cluster, request, replica, taken)
        or _too_many_stages(request, replica, cluster, taken)
        or _memory(cluster, request, replica, taken)
        or _time(cluster, request, replica, taken)
        or _packing(request, proved=proved)
    )
    wanted = max(request.replicas, 1)
    if wanted == 1:
        return found
    return NoPlacement(f"replica {replica + 1} of {wanted}: {found.reason}", found.missing_bytes, found.proved)


def size(count: int) -> str:
    """Bytes for people."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def _open_rows(cluster: ClusterMap, request: PlacementRequest, taken: frozenset[int]) -> list[int]:
    return [row for row in range(cluster.devices) if row not in taken and row not in request.occupied]


def _rooms(cluster: ClusterMap, request: PlacementRequest, replica: int, taken: frozenset[int]) -> dict[int, int]:
    """Bytes for weights and KV by row, for devices that have any."""
    rooms = {
        row: free_bytes(cluster, request, replica, row) - request.workspace_bytes
        for row in _open_rows(cluster, request, taken)
    }
    return {row: room for row, room in rooms.items() if room > 0}


def _no_device(cluster: ClusterMap, request: PlacementRequest, taken: frozenset[int]) -> NoPlacement | None:
    if not cluster.devices:
        return NoPlacement("the map has no devices")
    if not _open_rows(cluster, request, taken):
        return NoPlacement(f"each of the {cluster.devices} devices holds a stage of this model already")
    return None


def _largest_atom(
    cluster: ClusterMap, request: PlacementRequest, replica: int, taken: frozenset[int]
) -> NoPlacement | None:
    needs = [request.memory_bytes(atom) for atom in request.atoms]
    number = int(np.argmax(needs))
    free = max(free_bytes(cluster, request, replica, row) for row in _open_rows(cluster, request, taken))
    need = needs[number] + request.workspace_bytes
    if free >= need:
        return None
    kv = f" with KV for {request.kv_tokens:,} tokens" if request.kv_tokens else ""
    workspace = f" and {size(request.workspace_bytes)} of workspace" if request.workspace_bytes else ""
    return NoPlacement(
        f"the largest free device has {size(free)} and atom {request.atoms[number].name}{kv}{workspace} needs {size(need)}",
        need - free,
    )


def _too_many_stages(
    request: PlacementRequest, replica: int, cluster: ClusterMap, taken: frozenset[int]
) -> NoPlacement | None:
    if request.stages_min > len(request.atoms):
        return NoPlacement(
            f"{request.stages_min} stages are wanted, but the model can be cut into {len(request.atoms)} at most"
        )
    have = len(_rooms(cluster, request, replica, taken))
    if have < request.stages_min:
        return NoPlacement(
            f"{request.stages_min} stages are wanted, but only {have} devices have any room: {request.stages_min - have} more"
            " devices are needed"
        )
    return None


def _memory(cluster: ClusterMap, request: PlacementRequest, replica: int, taken: frozenset[int]) -> NoPlacement | None:
    need = sum(request.memory_bytes(atom) for atom in request.atoms)
    smallest = min(request.memory_bytes(atom) for atom in request.atoms)
    rooms = [room for room in _rooms(cluster, request, replica, taken).values() if room >= smallest]
    have = sum(sorted(rooms, reverse=True)[: request.stages_max])
    if have >= need:
        return None
    least = size(smallest + request.workspace_bytes)
    return NoPlacement(
        f"{size(need - have)} more on devices of at least {least}: weights and KV for {request.kv_tokens:,} tokens need"
        f" {size(need)}, and the {min(len(rooms), request.stages_max)} largest free devices, of {request.stages_max} stages at"
        f" most, have {size(have)} for them",
        need - have,
    )


def _time(cluster: ClusterMap, request: PlacementRequest, replica: int, taken: frozenset[int]) -> NoPlacement | None:
    speeds = [effective_speed(cluster, row) for row in _rooms(cluster, request, replica, taken)]
    fastest = max(speeds)
    work = [atom.compute_ns for atom in request.atoms]
    slowest = max(range(len(work)), key=work.__getitem__)
    if request.step_ns_max is not None:
        least = round(work[slowest] / fastest)
        if least > request.step_ns_max:
            return NoPlacement(
                f"atom {request.atoms[slowest].name} takes {least / 1e6:.2f} ms on the fastest device with room, and a stage's step"
                f" may take {request.step_ns_max / 1e6:.2f} ms"
            )
        together = round(sum(work) / sum(sorted(speeds, reverse=True)[: request.stages_max]))
        if together > request.step_ns_max:
            return NoPlacement(
                f"a stage's step takes {together / 1e6:.2f} ms even on the {request.stages_max} fastest devices with room, and"
                f" {request.step_ns_max / 1e6:.2f} ms are allowed: allow more stages or more time"
            )
    if request.tpot_ns_max is not None and sum(work) / fastest - request.stages_max > request.tpot_ns_max:
        return NoPlacement(
            f"a token's way takes {sum(work) / fastest / 1e6:.2f} ms even on the fastest device with room, and"
            f" {request.tpot_ns_max / 1e6:.2f} ms are allowed"
        )
    return None


def _packing(request: PlacementRequest, *, proved: bool) -> NoPlacement:
    limits = [
        f"{name} of {limit / 1e6:.2f} ms"
        for name, limit in (("step", request.step_ns_max), ("token's way", request.tpot_ns_max))
        if limit is not None
    ]
    within = f" within a {' and a '.join(limits)}" if limits else ""
    enough = (
        f"no cut into {request.stages_min} to {request.stages_max} stages fits the free devices{within}, although they have"
        " enough in all"
    )
    if proved:
        return NoPlacement(enough)
    return NoPlacement(f"the search found that {enough}; it did not try every cut", proved=False)
