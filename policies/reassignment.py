"""Who holds what after a change: each wanted stage goes to a worker so that the fewest bytes of weights and KV move.

Pure: values in, values out. A worker that keeps some of its atoms saves their bytes. Present and wanted stages are runs of
one chain, so two pairs that both share atoms never cross: were worker A before worker B, and A's new stage after B's, then
A would end after B's new stage ends, hence after B begins. So the best assignment keeps the order, and a dynamic programme
over (present, wanted), the one of the longest common subsequence, finds it exactly. No general assignment is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from .types import PlanError


class ReassignmentError(PlanError):
    """The stages cannot be changed like this; the sentence says why and what to do instead. Base of the others."""


class SameShapeError(ReassignmentError):
    """Nothing would change."""


class UncoveredError(ReassignmentError):
    """The wanted stages leave atoms out or name them twice."""


class UnknownDeviceError(ReassignmentError):
    """A device is not here, or was not given to this server."""


class DeviceTakenError(ReassignmentError):
    """A device is in use, or would hold two stages."""


class TooFewDevicesError(ReassignmentError):
    """There are more stages than devices."""


@dataclass(frozen=True, slots=True)
class HeldStage:
    """Atoms ``[first_atom, end_atom)`` at ``worker`` on ``device``."""

    worker: int
    first_atom: int
    end_atom: int
    device: str

    @property
    def atoms(self) -> range:
        """The atoms."""
        return range(self.first_atom, self.end_atom)


@dataclass(frozen=True, slots=True)
class WantedStage:
    """Atoms ``[first_atom, end_atom)`` on ``device``, None where any will do."""

    first_atom: int
    end_atom: int
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Devices:
    """What there is beside the devices of the present stages.

    ``offered`` are taken on demand, in this order; ``by_name`` only where a stage is wanted there; ``taken`` not at all, since
    workers that are about to leave, or of other replicas, use them.
    """

    offered: tuple[str, ...]
    by_name: tuple[str, ...] = ()
    taken: frozenset[str] = frozenset()


def reassign(
    present: Sequence[HeldStage],
    wanted: Sequence[WantedStage],
    atom_bytes: Sequence[int],
    devices: Devices,
    next_worker: int,
) -> tuple[HeldStage, ...]:
    """The wanted stages, each at a worker. ``atom_bytes[a]`` is what moving atom a costs: its weights and its live KV.

    A stage wanted on a device goes there. Of the others as many bytes as possible stay where they are, then as many atoms;
    ties go to the earlier ones. The rest go to new workers, numbered from ``next_worker``, on the first free devices; where
    those run out, to workers that keep nothing. Raises a `ReassignmentError`.
    """
    _check_cover(wanted, len(atom_bytes))
    homes = _wanted_homes(present, wanted, devices)
    stay = [stage for stage in present if stage not in homes.values()]
    rest = [place for place in range(len(wanted)) if place not in homes]
    for place, keeper in _keep_most(stay, [wanted[place] for place in rest], atom_bytes):
        homes[rest[place]] = keeper
    _place_rest(present, wanted, devices, homes)
    new_workers = itertools.count(next_worker)
    stages = []
    for place, stage in enumerate(wanted):
        home = homes[place]
        worker, device = (home.worker, home.device) if isinstance(home, HeldStage) else (next(new_workers), home)
        stages.append(HeldStage(worker, stage.first_atom, stage.end_atom, device))
    if tuple(stages) == tuple(present):
        raise SameShapeError("the pipeline already has this shape; nothing was changed")
    return tuple(stages)


def _check_cover(wanted: Sequence[WantedStage], atoms: int) -> None:
    expected = 0
    for place, stage in enumerate(wanted):
        if stage.first_atom != expected or stage.end_atom <= stage.first_atom:
            raise UncoveredError(
                f"stage {place} would hold atoms {stage.first_atom} to {stage.end_atom}; it has to begin at atom {expected} and "
                "to hold one at least"
            )
        expected = stage.end_atom
    if expected != atoms:
        raise UncoveredError(f"the stages would hold {expected} atoms; the model has {atoms}: cover all of them")


def _wanted_homes(
    present: Sequence[HeldStage], wanted: Sequence[WantedStage], devices: Devices
) -> dict[int, HeldStage | str]:
    """Place → the present stage or the free device that it is wanted on, for those wanted somewhere."""
    holders = {stage.device: stage for stage in present}
    homes: dict[int, HeldStage | str] = {}
    named: set[str] = set()
    for place, stage in enumerate(wanted):
        device = stage.device
        if device is None:
            continue
        if device in named:
            raise DeviceTakenError(f"{device} would hold two stages; two stages of one model never share a device")
        if device not in holders and device not in (*devices.offered, *devices.by_name):
            raise UnknownDeviceError(f"there is no device {device} here; there are {_listed(present, devices)}")
        if device in devices.taken:
            raise DeviceTakenError(
                f"{device} is still in use by a worker that is leaving or by another replica; name another device, or try again"
            )
        named.add(device)
        homes[place] = holders.get(device, device)
    return homes


def _keep_most(
    present: Sequence[HeldStage], wanted: Sequence[WantedStage], atom_bytes: Sequence[int]
) -> list[tuple[int, HeldStage]]:
    """Which wanted stage (its place) each worker keeps, so that together they keep most. See the module for why it is exact."""
    kept = [[_shared(held, stage, atom_bytes) for stage in wanted] for held in present]
    # best[i][j]: the most that workers from i on can keep of stages from j on, as (bytes, atoms).
    best = [[(0, 0)] * (len(wanted) + 1) for _ in range(len(present) + 1)]
    for i in reversed(range(len(present))):
        for j in reversed(range(len(wanted))):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], _sum(kept[i][j], best[i + 1][j + 1]))
    pairs, i, j = [], 0, 0
    while i < len(present) and j < len(wanted):
        if kept[i][j] > (0, 0) and best[i][j] == _sum(kept[i][j], best[i + 1][j + 1]):
            pairs.append((j, present[i]))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            i += 1
    return pairs


def _shared(held: HeldStage, stage: WantedStage, atom_bytes: Sequence[int]) -> tuple[int, int]:
    first, end = max(held.first_atom, stage.first_atom), min(held.end_atom, stage.end_atom)
    return (sum(atom_bytes[first:end]), end - first) if first < end else (0, 0)


def _sum(some: tuple[int, int], more: tuple[int, int]) -> tuple[int, int]:
    return some[0] + more[0], some[1] + more[1]


def _place_rest(
    present: Sequence[HeldStage],
    wanted: Sequence[WantedStage],
    devices: Devices,
    homes: dict[int, HeldStage | str],
) -> None:
    """Give every stage that has no home yet a free device, or a worker that keeps nothing where those run out."""
    used = (
        {stage.device for stage in present} | devices.taken | {home for home in homes.values() if isinstance(home, str)}
    )
    free: list[HeldStage | str] = [device for device in devices.offered if device not in used]
    idle = [stage for stage in present if stage not in homes.values()]
    homeless = [place for place in range(len(wanted)) if place not in homes]
    if len(homeless) > len(free) + len(idle):
        raise TooFewDevicesError(
            f"{len(wanted)} stages need {len(wanted)} devices, {len(homeless) - len(free) - len(idle)} more than are here: "
            f"{_listed(present, devices)}; ask for fewer stages, or start the server with more devices"
        )
    homes.update(zip(homeless, [*free, *idle], strict=False))


def _listed(present: Sequence[HeldStage], devices: Devices) -> str:
    names = list(dict.fromkeys([*devices.offered, *devices.by_name, *(stage.device for stage in present)]))
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:4])}, ... {names[-1]}"
