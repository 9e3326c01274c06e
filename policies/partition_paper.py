"""The FlexPipe paper's partition objective (arXiv 2510.11938, Eq. 2), kept beside ours to be compared with it.

    min over {S_k}  sum_k | t_c(S_k) + s_p(S_k) / B - C | + lambda * R(S_k)     subject to  max_k s_p(S_k) <= M

t_c is compute time, s_p parameter bytes, B inter-stage bandwidth, C the target cycle; R favours cuts at block boundaries.
The paper gives neither the recurrence nor values of C and lambda, nor R's form: here R counts stages that end inside a
decoder layer, and C defaults to the mean of t_c + s_p / B, which makes the sum a measure of imbalance. Its communication
term is parameters, not activations: the load time of a stage, not what recurs in each step (see `policies.partition`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .partition import PartitionProblem, explain_infeasible, memory_needs, partition_at
from .types import NS_PER_S, Partition


@dataclass(frozen=True, slots=True)
class PaperWeights:
    """``bytes_per_s`` is B; ``cycle_ns`` is C, None for the mean; ``boundary_ns`` is lambda, in nanoseconds per inner cut."""

    bytes_per_s: float
    cycle_ns: float | None = None
    boundary_ns: float = 0.0


def paper_partition(problem: PartitionProblem, weights: PaperWeights) -> Partition:
    """The partition that minimises Eq. 2 under the memory limits; ties go to the earliest last cuts.

    Raises `InfeasiblePartition`.
    """
    costs = _stage_costs(problem, weights)
    stages, count = costs.shape[0], costs.shape[1]
    best = costs[0, 0]
    choices = []
    for k in range(1, stages):
        sums = best[:-1, None] + costs[k]
        choices.append(np.argmin(sums, axis=0))
        best = sums.min(axis=0)
    if not np.isfinite(best[count]):
        raise explain_infeasible(problem)
    cuts = [count]
    for choice in reversed(choices):
        cuts.append(int(choice[cuts[-1]]))
    return partition_at(problem, cuts[:0:-1])


def paper_objective(problem: PartitionProblem, weights: PaperWeights, partition: Partition) -> float:
    """Eq. 2 of ``partition``, in nanoseconds."""
    costs = _stage_costs(problem, weights)
    return float(sum(costs[k, stage.first_atom, stage.end_atom] for k, stage in enumerate(partition.stages)))


def _stage_costs(problem: PartitionProblem, weights: PaperWeights) -> np.ndarray:
    """[stages, atoms, atoms + 1] the summand of Eq. 2 for stage k holding atoms [i, j); infinite where it may not."""
    atoms, memory = problem.atoms, memory_needs(problem)
    limits = np.array([limit.memory_bytes for limit in problem.limits], np.int64)[:, None, None]
    speeds = np.array([limit.speed for limit in problem.limits])[:, None, None]
    compute = np.concatenate([[0], np.cumsum([atom.compute_ns for atom in atoms])])
    loading = np.concatenate([[0], np.cumsum([atom.weight_bytes for atom in atoms])]) * NS_PER_S / weights.bytes_per_s
    work = (compute[None, :] - compute[:-1, None]) / speeds + loading[None, :] - loading[:-1, None]
    mean = (compute[-1] + loading[-1]) / len(problem.limits)
    cycle = mean if weights.cycle_ns is None else weights.cycle_ns
    costs = np.abs(work - cycle) + weights.boundary_ns * _ends_inside_block(problem)[None, None, :]
    return np.where(memory <= limits, costs, np.inf)


def _ends_inside_block(problem: PartitionProblem) -> np.ndarray:
    """[atoms + 1] 1.0 where a cut before that atom parts a decoder layer."""
    atoms = problem.atoms
    inside = [bool(set(before.blocks) & set(after.blocks)) for before, after in pairwise(atoms)]
    return np.array([False, *inside, False], np.float64)
