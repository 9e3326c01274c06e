"""Where to cut a chain of atoms into stages: least bottleneck under every stage's memory limit, exactly.

Pure: values in, values out. The bottleneck of a stage is its compute plus the sending of its activations. Three dynamic
programmes over (stages, atoms), each O(K L^2) with numpy along one L: the least bottleneck; among the partitions that reach
it, the least fullest stage (as a share of its limit); among those, the earliest cuts. So one input has one answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .types import AtomCost, InfeasiblePartition, Link, Partition, PlanError, StageLimit, stage_cost

IMPOSSIBLE = np.iinfo(np.int64).max
"""Stands for a stage that may not be, larger than any cost."""

FULLNESS_PARTS = 1_000_000
"""Memory shares are compared in integer millionths, so that the same share of two sizes is a tie."""

CostTable = npt.NDArray[np.int64]
"""[stages, atoms, atoms + 1]: entry (k, i, j) is stage k's cost of holding atoms [i, j)."""


@dataclass(frozen=True, slots=True)
class PartitionProblem:
    """What to cut and for which places. ``kv_tokens`` of context must fit at once.

    ``cuts_allowed`` restricts where stages may begin (None: at every atom): the cuts of a finer partition make this one
    nested in it, so that a merge or a split never re-cuts a stage.
    """

    atoms: tuple[AtomCost, ...]
    limits: tuple[StageLimit, ...]
    link: Link
    kv_tokens: int = 0
    cuts_allowed: frozenset[int] | None = None

    def __post_init__(self) -> None:
        """Refuse a problem without atoms or stages."""
        if not self.atoms or not self.limits:
            raise ValueError("a partition needs at least one atom and one stage")


def partition(problem: PartitionProblem) -> Partition:
    """The partition of least bottleneck; ties go to the least full fullest stage, then to the earliest cuts.

    Raises `InfeasiblePartition`, which names the tightest constraint and how much is missing.
    """
    times, memory = step_times(problem), memory_needs(problem)
    limits = np.array([limit.memory_bytes for limit in problem.limits], np.int64)[:, None, None]
    fits = (memory <= limits) & (memory != IMPOSSIBLE)
    bottleneck = least_maximum(np.where(fits, times, IMPOSSIBLE))
    if bottleneck == IMPOSSIBLE:
        raise explain_infeasible(problem)
    fullness = np.where(fits & (times <= bottleneck), _shares(memory, limits), IMPOSSIBLE)
    fullest = least_maximum(fullness)
    return partition_at(problem, _earliest_cuts(fullness <= fullest))


def partition_at(problem: PartitionProblem, cuts: Sequence[int]) -> Partition:
    """The partition with stages beginning at 0 and at ``cuts``, as given: not judged against memory."""
    bounds = [0, *cuts, len(problem.atoms)]
    stages = tuple(
        stage_cost(problem.atoms, bounds[k], bounds[k + 1], limit, problem.link, problem.kv_tokens)
        for k, limit in enumerate(problem.limits)
    )
    return Partition(stages)


def nested_partitions(
    atoms: Sequence[AtomCost], limits: Mapping[int, Sequence[StageLimit]], link: Link, kv_tokens: int
) -> dict[int, Partition]:
    """For each stage count in ``limits`` a partition, coarser ones cutting only where the next finer one does.

    The finest is the true optimum; what nesting costs the coarser ones is theirs to show.
    """
    found: dict[int, Partition] = {}
    allowed: frozenset[int] | None = None
    for count in sorted(limits, reverse=True):
        found[count] = partition(PartitionProblem(tuple(atoms), tuple(limits[count]), link, kv_tokens, allowed))
        allowed = frozenset(found[count].cuts)
    return found


def step_times(problem: PartitionProblem) -> CostTable:
    """Nanoseconds that each stage would be busy with each run of atoms; `IMPOSSIBLE` for empty runs and forbidden cuts."""
    atoms, count = problem.atoms, len(problem.atoms)
    compute = _run_sums([atom.compute_ns for atom in atoms])
    sends = [problem.link.send_ns(atom.activation_bytes) for atom in atoms[:-1]]
    send = np.array([0, *sends, 0], np.int64)[None, :]
    tables = [np.rint(compute / limit.speed).astype(np.int64) + send for limit in problem.limits]
    return np.where(_runs_allowed(problem, count), np.stack(tables), IMPOSSIBLE)


def memory_needs(problem: PartitionProblem) -> CostTable:
    """Bytes that each stage would need for each run of atoms; `IMPOSSIBLE` for empty runs and forbidden cuts."""
    needs = [atom.weight_bytes + problem.kv_tokens * atom.kv_bytes_per_token for atom in problem.atoms]
    tables = [_run_sums(needs) + limit.workspace_bytes for limit in problem.limits]
    return np.where(_runs_allowed(problem, len(needs)), np.stack(tables), IMPOSSIBLE)


def least_maximum(table: CostTable) -> int:
    """The least possible maximum over stages of ``table``, each stage taking a run, all atoms taken in order."""
    best = table[0, 0]
    for costs in table[1:]:
        best = np.maximum(best[:-1, None], costs).min(axis=0)
    return int(best[-1])


def explain_infeasible(problem: PartitionProblem) -> InfeasiblePartition:
    """Why no partition exists: too few places to cut, one atom too large, too little memory in all, or no fitting cuts."""
    stages, atoms = len(problem.limits), len(problem.atoms)
    places = atoms - 1 if problem.cuts_allowed is None else len(problem.cuts_allowed & set(range(1, atoms)))
    if stages > places + 1:
        return _too_few_places(stages, places)
    memory = memory_needs(problem)
    limits = np.array([limit.memory_bytes for limit in problem.limits], np.int64)
    excess = np.where(memory == IMPOSSIBLE, IMPOSSIBLE, np.maximum(memory - limits[:, None, None], 0))
    missing = least_maximum(excess)
    room = max(limit.memory_bytes - limit.workspace_bytes for limit in problem.limits)
    needs = [atom.weight_bytes + problem.kv_tokens * atom.kv_bytes_per_token for atom in problem.atoms]
    largest = max(range(atoms), key=needs.__getitem__)
    total = sum(needs) + sum(limit.workspace_bytes for limit in problem.limits)
    if needs[largest] > room:
        reason = (
            f"atom {problem.atoms[largest].name} alone needs {needs[largest]} bytes (weights and KV for {problem.kv_tokens}"
            f" tokens), but no stage has more than {max(room, 0)} for it"
        )
    elif total > limits.sum():
        reason = (
            f"weights, KV for {problem.kv_tokens} tokens and workspace need {total} bytes, but the {stages} stages have"
            f" {limits.sum()} together"
        )
    else:
        reason = f"no cut into {stages} stages fits every stage's memory, although there is enough in all"
    return InfeasiblePartition(f"{reason}; the fullest stage lacks at least {missing} bytes", missing)


def check_stage_count(stages: int, atoms: int) -> None:
    """Raise `InfeasiblePartition` for more stages than atoms, before anything as large as ``stages`` is made."""
    if stages > atoms:
        raise _too_few_places(stages, atoms - 1)


def _too_few_places(stages: int, places: int) -> InfeasiblePartition:
    return InfeasiblePartition(
        f"{stages} stages need {stages - 1} cuts, but the model can be cut at {places} places; ask for at most {places + 1}"
    )


def _run_sums(values: Sequence[int]) -> CostTable:
    sums = np.concatenate([[0], np.cumsum(np.array(values, np.int64))])
    table: CostTable = sums[None, :] - sums[:-1, None]
    return table


def _runs_allowed(problem: PartitionProblem, count: int) -> npt.NDArray[np.bool_]:
    first, end = np.arange(count)[:, None], np.arange(count + 1)[None, :]
    allowed: npt.NDArray[np.bool_] = first < end
    if problem.cuts_allowed is not None:
        places = sorted({0, count} | {cut for cut in problem.cuts_allowed if 0 < cut < count})
        allowed = allowed & np.isin(first, places) & np.isin(end, places)
    return allowed[None, :, :]


def _shares(memory: CostTable, limits: CostTable) -> CostTable:
    whole = np.maximum(limits, 1).astype(np.float64)
    held = np.where(memory == IMPOSSIBLE, 0, memory).astype(np.float64)
    shares: CostTable = np.rint(held / whole * FULLNESS_PARTS).astype(np.int64)
    return shares


def _earliest_cuts(admissible: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """The lexicographically least cuts that use only runs marked in ``admissible`` [stages, atoms, atoms + 1]."""
    stages, count = admissible.shape[0], admissible.shape[1]
    # completes[k, i]: atoms [i, count) can be shared out to stages k, k + 1, ...
    completes = np.zeros((stages + 1, count + 1), np.bool_)
    completes[stages, count] = True
    for k in range(stages - 1, -1, -1):
        completes[k, :count] = (admissible[k] & completes[k + 1][None, :]).any(axis=1)
    cuts = [0]
    for k in range(stages):
        cuts.append(int(np.argmax(admissible[k, cuts[-1]] & completes[k + 1])))
    return tuple(cuts[1:-1])


def parse_partition(text: str, atoms: Sequence[AtomCost]) -> tuple[int, ...]:
    """The cuts that a user's ``text`` asks for. Raises `PlanError`.

    Two forms. ``7,9,8,6``: decoder layers per stage; the embedding goes with the first stage, the head with the last.
    ``0:15,15:33,33:50``: ranges of atoms, first included, end not, one per stage, covering all atoms in order; so a stage
    may begin between a layer's attention and its MLP.
    """
    parts = [part.strip() for part in text.split(",")]
    if all(part.isdecimal() for part in parts):
        return _cuts_by_layers([int(part) for part in parts], atoms)
    if all(":" in part for part in parts):
        return _cuts_by_ranges(parts, len(atoms))
    raise PlanError(f"partition {text!r} is neither layers per stage (7,9,8,6) nor ranges of atoms (0:15,15:33)")


def _cuts_by_layers(layers: Sequence[int], atoms: Sequence[AtomCost]) -> tuple[int, ...]:
    blocks = sorted({block for atom in atoms for block in atom.blocks})
    if sum(layers) != len(blocks) or min(layers) < 1:
        raise PlanError(
            f"partition {','.join(map(str, layers))} has {sum(layers)} layers in {len(layers)} stages, but the model has"
            f" {len(blocks)} and each stage needs at least one"
        )
    cuts = []
    for done in np.cumsum(layers)[:-1]:
        block = blocks[int(done)]
        cut = next(i for i, atom in enumerate(atoms) if block in atom.blocks)
        if atoms[cut].blocks[0] != block:
            raise PlanError(f"a stage cannot begin at layer {block}: {atoms[cut].name} is one piece")
        cuts.append(cut)
    return tuple(cuts)


def _cuts_by_ranges(parts: Collection[str], count: int) -> tuple[int, ...]:
    expected, cuts = 0, []
    for part in parts:
        first, _, end = part.partition(":")
        if not (first.isdecimal() and end.isdecimal()):
            raise PlanError(f"{part!r} is not a range of atoms such as 0:15")
        if int(first) != expected or int(end) <= int(first):
            raise PlanError(f"range {part} must begin at atom {expected} and hold at least one atom")
        cuts.append(int(first))
        expected = int(end)
    if expected != count:
        raise PlanError(f"the ranges end at atom {expected}, but the model has atoms 0 to {count - 1}: end at {count}")
    return tuple(cuts[1:])
