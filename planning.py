"""A plan for a model, before any weight is read: its atoms, where it may be cut, and what each stage would cost.

Owns the joining of a captured program, its costs and the partition policy into one value that can be printed or sent as
JSON. Knows no torch, so that ``flexpipe plan`` stays light.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from .policies.partition import (
    PartitionProblem,
    check_stage_count,
    explain_infeasible,
    parse_partition,
    partition,
    partition_at,
)
from .policies.types import NS_PER_S, AtomCost, Link, Partition, PlanError, StageCost, StageLimit
from .runtime.costing.costs import DTYPE_BYTES, DeviceRates, StepLoad, atom_costs, estimated_seconds
from .runtime.program import Dim, Program

LOCAL_LINK = Link(latency_ns=50_000, bytes_per_s=2e9)
"""A hop between two processes of one host, the doorbell and one copy, as an order of magnitude."""


class PlannedAtom(msgspec.Struct, frozen=True):
    """One atom. ``graph`` is the number of the computation that it shares with its equals; ``step_s`` is compute only."""

    name: str
    graph: int
    layers: tuple[int, ...]
    weight_bytes: int
    kv_bytes_per_token: int
    step_s: float


class CutPoint(msgspec.Struct, frozen=True):
    """A place where stages may meet: before atom ``atom``. ``shape`` is what crosses, ``bytes_per_token`` of it."""

    atom: int
    after: str
    shape: tuple[Dim, ...]
    bytes_per_token: int


class PlannedStage(msgspec.Struct, frozen=True):
    """Atoms ``[first_atom, end_atom)``. ``activation_bytes`` leave the stage each step; ``step_s`` is compute plus sending.

    ``layers`` are those whose KV it keeps; ``memory_bytes`` is weights, KV for the planned tokens and workspace.
    """

    first_atom: int
    end_atom: int
    atoms: tuple[str, ...]
    layers: tuple[int, ...]
    weight_bytes: int
    kv_bytes_per_token: int
    memory_bytes: int
    activation_bytes: int
    compute_s: float
    step_s: float


class DuplicatedWeight(msgspec.Struct, frozen=True):
    """A weight that two stages hold because the checkpoint ties them."""

    name: str
    tied_to: str
    weight_bytes: int
    stages: tuple[int, int]


class Plan(msgspec.Struct, frozen=True):
    """What ``flexpipe plan`` says. ``times_from`` is "roofline" (estimated) or "profile" (measured)."""

    model: str
    architecture: str
    dtype: str
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    context_tokens: int
    load: StepLoad
    times_from: str
    atoms: tuple[PlannedAtom, ...]
    graphs: int
    cut_points: tuple[CutPoint, ...]
    stages: tuple[PlannedStage, ...]
    bottleneck_stage: int
    bottleneck_s: float
    latency_s: float
    tokens_per_s: float
    duplicated_weights: tuple[DuplicatedWeight, ...]

    def to_json(self) -> bytes:
        """The plan as JSON, for ``--json`` and for other programs."""
        return msgspec.json.encode(self)


def make_plan(
    program: Program,
    *,
    load: StepLoad,
    rates: DeviceRates,
    stages: int | None = None,
    partition_text: str | None = None,
    memory_bytes: Sequence[int] | None = None,
    workspace_bytes: int = 0,
    kv_tokens: int | None = None,
    link: Link = LOCAL_LINK,
    dtype: str = "float32",
    measured_s: Sequence[float] | None = None,
) -> Plan:
    """Cut ``program`` into ``stages`` of least bottleneck, or as ``partition_text`` says (see `parse_partition`).

    ``memory_bytes`` are the stages' limits in order, None for no limits; ``kv_tokens`` of context must fit, by default what
    ``load`` needs; ``measured_s`` are the atoms' measured times under ``load`` in order, else ``rates`` estimate them.
    Raises `PlanError` for a wrong request and `InfeasiblePartition` where no partition fits.
    """
    costs = costs_under(program, load, rates, dtype, measured_s)
    cuts = None if partition_text is None else parse_partition(partition_text, costs)
    count = _stage_count(stages, cuts, partition_text)
    check_stage_count(count, len(costs))
    tokens = load.requests * load.context if kv_tokens is None else kv_tokens
    everything = sum(cost.weight_bytes + tokens * cost.kv_bytes_per_token for cost in costs) + workspace_bytes
    sizes = (everything,) * count if memory_bytes is None else memory_bytes[:count]
    limits = tuple(StageLimit(min(size, everything), workspace_bytes) for size in sizes)
    problem = PartitionProblem(costs, limits, link, tokens)
    chosen = partition(problem) if cuts is None else _as_told(problem, cuts)
    chosen.verify(costs, problem.limits, link, tokens)
    return _describe(program, load, dtype, costs, chosen, "roofline" if measured_s is None else "profile")


def costs_under(
    program: Program,
    load: StepLoad,
    rates: DeviceRates,
    dtype: str = "float32",
    measured_s: Sequence[float] | None = None,
) -> tuple[AtomCost, ...]:
    """What each atom costs under ``load``: in ``measured_s`` seconds, or as ``rates`` let estimate. Raises `PlanError`."""
    if dtype not in DTYPE_BYTES:
        raise PlanError(f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
    seconds = estimated_seconds(program, load, rates, dtype) if measured_s is None else list(measured_s)
    return atom_costs(program, load, seconds, dtype)


def _stage_count(stages: int | None, cuts: Sequence[int] | None, text: str | None) -> int:
    if cuts is None:
        if stages is None or stages < 1:
            raise PlanError("say how many stages (at least 1) or give a partition")
        return stages
    if stages is not None and stages != len(cuts) + 1:
        raise PlanError(f"partition {text} has {len(cuts) + 1} stages, not the {stages} asked for")
    return len(cuts) + 1


def _as_told(problem: PartitionProblem, cuts: tuple[int, ...]) -> Partition:
    told = partition_at(problem, cuts)
    over = any(
        stage.memory_bytes > limit.memory_bytes for stage, limit in zip(told.stages, problem.limits, strict=True)
    )
    if over:
        fixed = PartitionProblem(problem.atoms, problem.limits, problem.link, problem.kv_tokens, frozenset(cuts))
        raise explain_infeasible(fixed)
    return told


def _describe(
    program: Program, load: StepLoad, dtype: str, costs: Sequence[AtomCost], chosen: Partition, times_from: str
) -> Plan:
    stages = tuple(_planned_stage(program, costs, stage) for stage in chosen.stages)
    bottleneck = max(range(len(stages)), key=lambda number: stages[number].step_s)
    return Plan(
        model=program.model,
        architecture=program.architecture,
        dtype=dtype,
        parameters=sum(
            math.prod(spec.shape) for spec in program.weights.values() if spec.value is None and spec.tied_to is None
        ),
        weight_bytes=sum(cost.weight_bytes for cost in costs),
        kv_bytes_per_token=sum(cost.kv_bytes_per_token for cost in costs),
        context_tokens=program.context_tokens,
        load=load,
        times_from=times_from,
        atoms=tuple(
            PlannedAtom(
                cost.name,
                atom.graph,
                atom.layers,
                cost.weight_bytes,
                cost.kv_bytes_per_token,
                cost.compute_ns / NS_PER_S,
            )
            for atom, cost in zip(program.atoms, costs, strict=True)
        ),
        graphs=len(program.graphs),
        cut_points=tuple(
            CutPoint(index + 1, atom.name, shape, _bytes_per_token(shape, dtype))
            for index, atom in enumerate(program.atoms[:-1])
            for shape, _ in atom.carries
        ),
        stages=stages,
        bottleneck_stage=bottleneck,
        bottleneck_s=chosen.bottleneck_ns / NS_PER_S,
        latency_s=chosen.latency_ns / NS_PER_S,
        tokens_per_s=load.sampled / max(chosen.bottleneck_ns / NS_PER_S, 1 / NS_PER_S),
        duplicated_weights=_duplicated(program, chosen, dtype),
    )


def _planned_stage(program: Program, costs: Sequence[AtomCost], stage: StageCost) -> PlannedStage:
    held = program.atoms[stage.first_atom : stage.end_atom]
    return PlannedStage(
        first_atom=stage.first_atom,
        end_atom=stage.end_atom,
        atoms=tuple(atom.name for atom in held),
        layers=tuple(layer for atom in held for layer in atom.layers),
        weight_bytes=stage.weight_bytes,
        kv_bytes_per_token=stage.kv_bytes_per_token,
        memory_bytes=stage.memory_bytes,
        activation_bytes=costs[stage.end_atom - 1].activation_bytes,
        compute_s=stage.compute_ns / NS_PER_S,
        step_s=stage.step_ns / NS_PER_S,
    )


def _duplicated(program: Program, chosen: Partition, dtype: str) -> tuple[DuplicatedWeight, ...]:
    holder = {
        name: number
        for number, stage in enumerate(chosen.stages)
        for atom in program.atoms[stage.first_atom : stage.end_atom]
        for name in atom.weights
    }
    return tuple(
        DuplicatedWeight(
            name, spec.tied_to, math.prod(spec.shape) * DTYPE_BYTES[dtype], (holder[spec.tied_to], holder[name])
        )
        for name, spec in program.weights.items()
        if spec.tied_to is not None and spec.tied_to in holder and holder[spec.tied_to] != holder[name]
    )


def _bytes_per_token(shape: Sequence[Dim], dtype: str) -> int:
    return math.prod(dim for dim in shape if isinstance(dim, int)) * DTYPE_BYTES[dtype]
