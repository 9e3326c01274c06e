"""From what a user wants of a running pipeline to stages at workers: the plan of a refactoring.

Owns the joining of a request, what the model's atoms cost and a supply of devices with the policies that decide. Reads nothing,
starts nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from .actors.config import ServeConfig
from .actors.devices import DeviceError
from .actors.refactor import RefactorRefusedError, RefactorRequest, SameShapeRefusedError
from .actors.route import Route, StagePlacement
from .device_supply import DeviceSupply
from .planning import LOCAL_LINK
from .policies.cluster.cluster_map import cluster_map
from .policies.cluster.device_facts import DeviceFacts, LinkClasses
from .policies.memory_fit import no_room, room_of, tightest
from .policies.move import parse_move, stages_after
from .policies.partition import PartitionProblem, check_stage_count, parse_partition, partition
from .policies.placement.effort import readable
from .policies.placement.solver import place
from .policies.placement.values import WHOLE_PPM, NoPlacement, PlacementRequest, PresentStage
from .policies.reassignment import Devices, HeldStage, SameShapeError, WantedStage, reassign
from .policies.types import AtomCost, InfeasiblePartition, PlanError, StageLimit
from .preparation import ModelOnDisk, costs_for, planned_tokens

READABLE_DEVICES_MAX = 8
"""Devices among which the readable search is quick, in some tens of ms; for more its compiled twin is worth loading."""
_MIX = (1, 2, 4, 8)
"""Into how many stages the model may be cut next: what is left free is to be of use for them."""
_ROOM_MAX = 1 << 42
"""A device of which no memory is stated counts as this large."""


class RefactorPlanner:
    """Plans changes of one model's pipeline on the devices of ``supply``. May be called from any thread.

    ``kv_tokens`` of context must find room on devices with a stated memory.
    """

    def __init__(self, atoms: tuple[AtomCost, ...], supply: DeviceSupply, kv_tokens: int = 0) -> None:
        self._atoms = atoms
        self._supply = supply
        self._kv_tokens = kv_tokens

    @classmethod
    def of(cls, model: ModelOnDisk, config: ServeConfig, supply: DeviceSupply) -> RefactorPlanner:
        """The planner of a model that is served. Costs are those that its first plan was made from."""
        return cls(costs_for(model.program, config.dtype), supply, planned_tokens(model.program))

    @property
    def _stated(self) -> Mapping[str, int]:
        return self._supply.stated

    def plan(
        self,
        request: RefactorRequest,
        route: Route,
        *,
        next_worker: int,
        live_tokens: int = 0,
        taken_devices: Collection[str] = (),
    ) -> tuple[StagePlacement, ...]:
        """The stages that ``request`` makes of ``route``: workers that stay keep their ids, new ones count from ``next_worker``.

        ``live_tokens`` of context are held by requests now, so that KV counts for what it weighs; ``taken_devices`` are those
        of other replicas and of workers that are leaving. A stage on a device that may not be used any more leaves it. Raises
        `RefactorRefusedError`.
        """
        present = [
            HeldStage(s.worker, s.first_atom, s.end_atom, s.device) for s in route.stages if self._supply.has(s.device)
        ]
        try:
            devices = self._supply.devices([stage.device for stage in route.stages], frozenset(taken_devices))
            placed = request.stages is not None and bool(self._stated)
            wanted = (
                self._placed(request.stages or 0, present, devices, live_tokens)
                if placed
                else self._wanted(request, present)
            )
            moved_bytes = [atom.weight_bytes + atom.kv_bytes_per_token * live_tokens for atom in self._atoms]
            stages = reassign(present, wanted, moved_bytes, devices, next_worker)
            if not self._fit(stages, live_tokens):
                named = self._within_memory(present, wanted, stages, devices, live_tokens)
                stages = reassign(present, named, moved_bytes, devices, next_worker)
        except SameShapeError as error:
            raise SameShapeRefusedError(str(error)) from error
        except (PlanError, InfeasiblePartition, DeviceError) as error:
            raise RefactorRefusedError(str(error)) from error
        return self._placements(stages, devices.taken)

    def copy(self, route: Route, *, taken_devices: Collection[str]) -> tuple[StagePlacement, ...]:
        """Stages like those of ``route`` for another replica, its workers numbered from 0, on the first free devices.

        ``taken_devices`` are those of all replicas, and of workers that are leaving. Raises `RefactorRefusedError`.
        """
        try:
            devices = self._supply.devices([stage.device for stage in route.stages], frozenset(taken_devices))
        except DeviceError as error:
            raise RefactorRefusedError(str(error)) from error
        free = [device for device in devices.offered if device not in devices.taken]
        if len(free) < len(route.stages):
            raise RefactorRefusedError(
                f"another replica of {len(route.stages)} stages needs as many free devices, and there are {len(free)}; "
                "refactor to fewer stages first, ask for fewer replicas, or start the server with more devices"
            )
        needed = [self._needed_bytes(stage.atoms, 0) for stage in route.stages]
        chosen = tightest(needed, free[: len(needed)], free, self._stated)
        if chosen is None:
            raise RefactorRefusedError(f"another replica does not fit: {no_room(needed, free, self._stated)}")
        stages = [
            HeldStage(worker, stage.first_atom, stage.end_atom, device)
            for worker, (stage, device) in enumerate(zip(route.stages, chosen, strict=True))
        ]
        return self._placements(stages, devices.taken)

    def recover(
        self, wanted: Sequence[StagePlacement], *, next_worker: int, taken_devices: Collection[str]
    ) -> tuple[StagePlacement, ...]:
        """Stages to bring up in the place of ``wanted``: the same where their devices are here, else cut like them on others.

        Where there are too few devices for that, as many stages as there are. Raises `RefactorRefusedError`.
        """
        if all(self._supply.has(stage.device) for stage in wanted):
            return tuple(wanted)
        cuts = ",".join(f"{stage.first_atom}:{stage.end_atom}" for stage in wanted)
        route, refusals = Route(0, tuple(wanted)), []
        for request in (
            RefactorRequest(partition=cuts),
            *(RefactorRequest(stages=count) for count in range(len(wanted) - 1, 0, -1)),
        ):
            try:
                return self.plan(request, route, next_worker=next_worker, taken_devices=taken_devices)
            except RefactorRefusedError as refusal:
                refusals.append(refusal)
        raise refusals[0]

    def _wanted(self, request: RefactorRequest, present: Sequence[HeldStage]) -> tuple[WantedStage, ...]:
        match request:
            case RefactorRequest(stages=int(count), partition=None, move=None, replicas=None):
                return _cut_at(self._best_cuts(count), len(self._atoms))
            case RefactorRequest(stages=None, partition=str(text), move=None, replicas=None):
                return _cut_at(parse_partition(text, self._atoms), len(self._atoms))
            case RefactorRequest(stages=None, partition=None, move=str(text), replicas=None):
                return stages_after(parse_move(text, self._atoms), present, self._atoms)
            case _:
                raise PlanError("give exactly one of stages, partition and move")

    def _best_cuts(self, stages: int) -> tuple[int, ...]:
        """Where stages meet for the least bottleneck, as in the first plan: no memory limit, which the workers will check."""
        if stages < 1:
            raise PlanError(f"{stages} stages cannot serve; ask for 1 or more")
        check_stage_count(stages, len(self._atoms))
        everything = StageLimit(sum(atom.weight_bytes for atom in self._atoms))
        return partition(PartitionProblem(self._atoms, (everything,) * stages, LOCAL_LINK)).cuts

    def _within_memory(
        self,
        present: Sequence[HeldStage],
        wanted: Sequence[WantedStage],
        stages: Sequence[HeldStage],
        devices: Devices,
        live_tokens: int,
    ) -> tuple[WantedStage, ...]:
        """The wanted stages on devices that have the memory for them. Raises `InfeasiblePartition`."""
        usable = _usable(present, devices)
        needed = [self._needed_bytes(range(stage.first_atom, stage.end_atom), live_tokens) for stage in wanted]
        for stage, size in zip(wanted, needed, strict=True):
            if stage.device is not None and size > room_of(stage.device, self._stated):
                raise InfeasiblePartition(f"{no_room([size], [stage.device], self._stated)}; move fewer layers there")
        chosen = tightest(needed, [stage.device for stage in stages], usable, self._stated)
        if chosen is None or any(stage.device not in (None, at) for stage, at in zip(wanted, chosen, strict=True)):
            raise InfeasiblePartition(f"{no_room(needed, usable, self._stated)}; use more stages or a larger device")
        return tuple(WantedStage(w.first_atom, w.end_atom, device) for w, device in zip(wanted, chosen, strict=True))

    def _placed(
        self, count: int, present: Sequence[HeldStage], devices: Devices, live_tokens: int
    ) -> tuple[WantedStage, ...]:
        """Cuts and devices of ``count`` stages, chosen together for devices with a stated memory.

        By what a step takes, what moves, and what is left for other stages. Raises `PlanError`, `InfeasiblePartition`.
        """
        check_stage_count(count, len(self._atoms))
        usable = _usable(present, devices)
        if count > len(usable):
            raise PlanError(f"{count} stages need {count} devices, and {len(usable)} are free for them")
        sizes = [min(room_of(device, self._stated), _ROOM_MAX) for device in usable]
        cluster = cluster_map(
            [DeviceFacts(device, "here", size, size, "cpu") for device, size in zip(usable, sizes, strict=True)],
            links=LinkClasses(LOCAL_LINK, LOCAL_LINK, LOCAL_LINK, LOCAL_LINK),
        )
        held = tuple(PresentStage(cluster.row(s.device), s.first_atom, s.end_atom) for s in present)
        whole = self._needed_bytes(range(len(self._atoms)), live_tokens)
        found = place(
            cluster,
            PlacementRequest(
                self._atoms,
                stages_min=count,
                stages_max=count,
                kv_tokens=max(self._kv_tokens, live_tokens),
                present=(held,),
                held_kv_tokens=live_tokens,
                fragment_mix=tuple((whole // stages, WHOLE_PPM // len(_MIX)) for stages in _MIX),
            ),
            readable() if len(usable) <= READABLE_DEVICES_MAX else None,
        )
        if isinstance(found, NoPlacement):
            raise InfeasiblePartition(found.reason, found.missing_bytes)
        (replica,) = found.replicas
        return tuple(
            WantedStage(stage.cost.first_atom, stage.cost.end_atom, cluster.device_names[stage.device])
            for stage in replica.stages
        )

    def _fit(self, stages: Sequence[HeldStage], live_tokens: int) -> bool:
        return all(
            self._needed_bytes(stage.atoms, live_tokens) <= room_of(stage.device, self._stated) for stage in stages
        )

    def _needed_bytes(self, atoms: Iterable[int], live_tokens: int) -> int:
        """What weights and KV of a stage take: KV of what is live, and of `kv_tokens` at least."""
        tokens = max(self._kv_tokens, live_tokens)
        return sum(self._atoms[atom].weight_bytes + tokens * self._atoms[atom].kv_bytes_per_token for atom in atoms)

    def _placements(self, stages: Sequence[HeldStage], taken: Collection[str]) -> tuple[StagePlacement, ...]:
        """Workers on ``taken`` devices share the cores with these."""
        threads = self._supply.threads([stage.device for stage in stages], taken)
        return tuple(
            StagePlacement(
                worker=stage.worker,
                first_atom=stage.first_atom,
                end_atom=stage.end_atom,
                device=stage.device,
                threads=share,
                first_name=self._atoms[stage.first_atom].name,
                last_name=self._atoms[stage.end_atom - 1].name,
            )
            for stage, share in zip(stages, threads, strict=True)
        )


def _usable(present: Sequence[HeldStage], devices: Devices) -> list[str]:
    """Devices that the stages may lie on: those of the present ones first."""
    free = [device for device in devices.offered if device not in devices.taken]
    return list(dict.fromkeys([*(stage.device for stage in present), *free]))


def _cut_at(cuts: Sequence[int], atoms: int) -> tuple[WantedStage, ...]:
    return tuple(WantedStage(first, end) for first, end in zip((0, *cuts), (*cuts, atoms), strict=True))
