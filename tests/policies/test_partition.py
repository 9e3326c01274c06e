"""The exact partition against brute force, its tie rules, its refusals, and the paper's objective beside it."""

from dataclasses import replace
from itertools import combinations

import pytest
from flexpipe.policies.partition import PartitionProblem, nested_partitions, parse_partition, partition, partition_at
from flexpipe.policies.partition_paper import PaperWeights, paper_objective, paper_partition
from flexpipe.policies.types import AtomCost, InfeasiblePartition, Link, Partition, StageLimit
from hypothesis import assume, given, settings
from hypothesis import strategies as st

LINK = Link(latency_ns=3, bytes_per_s=1e9)

atom_costs = st.builds(
    AtomCost,
    name=st.just("atom"),
    compute_ns=st.integers(0, 20),
    weight_bytes=st.integers(0, 20),
    kv_bytes_per_token=st.integers(0, 3),
    activation_bytes=st.integers(0, 10),
)
problems = st.builds(
    PartitionProblem,
    atoms=st.lists(atom_costs, min_size=1, max_size=8).map(tuple),
    limits=st.lists(
        st.builds(
            StageLimit,
            memory_bytes=st.integers(10, 120),
            workspace_bytes=st.integers(0, 5),
            speed=st.sampled_from([0.5, 1.0, 2.0]),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
    link=st.just(LINK),
    kv_tokens=st.integers(0, 4),
    cuts_allowed=st.none() | st.frozensets(st.integers(1, 7), max_size=5),
)


def all_partitions(problem):
    """Every way to cut, feasible or not, straight from the definition."""
    places = [
        cut for cut in range(1, len(problem.atoms)) if problem.cuts_allowed is None or cut in problem.cuts_allowed
    ]
    return [partition_at(problem, cuts) for cuts in combinations(places, len(problem.limits) - 1)]


def fits(problem, candidate):
    return all(s.memory_bytes <= limit.memory_bytes for s, limit in zip(candidate.stages, problem.limits, strict=True))


def fullness(problem, candidate):
    pairs = zip(candidate.stages, problem.limits, strict=True)
    return max(round(stage.memory_bytes / limit.memory_bytes * 1e6) for stage, limit in pairs)


@given(problems)
@settings(max_examples=300, deadline=None)
def test_the_partition_is_the_best_of_all_by_every_rule(problem):
    candidates = [candidate for candidate in all_partitions(problem) if fits(problem, candidate)]
    if not candidates:
        with pytest.raises(InfeasiblePartition):
            partition(problem)
        return
    best = min(candidates, key=lambda c: (c.bottleneck_ns, fullness(problem, c), c.cuts))
    found = partition(problem)
    assert found == best
    found.verify(problem.atoms, problem.limits, problem.link, problem.kv_tokens)


@given(problems)
@settings(max_examples=200, deadline=None)
def test_an_infeasible_problem_says_exactly_how_much_memory_is_missing(problem):
    problem = replace(problem, limits=tuple(replace(limit, memory_bytes=10) for limit in problem.limits))
    candidates = all_partitions(problem)
    assume(candidates)
    assume(not any(fits(problem, candidate) for candidate in candidates))
    overloads = [
        max(s.memory_bytes - limit.memory_bytes for s, limit in zip(c.stages, problem.limits, strict=True))
        for c in candidates
    ]
    with pytest.raises(InfeasiblePartition) as refusal:
        partition(problem)
    assert refusal.value.missing_bytes == min(overloads)


@given(problems, st.integers(0, 30), st.sampled_from([None, 15.0]))
@settings(max_examples=200, deadline=None)
def test_the_papers_objective_is_minimised_exactly(problem, boundary, cycle):
    weights = PaperWeights(bytes_per_s=2e9, cycle_ns=cycle, boundary_ns=boundary)
    candidates = [candidate for candidate in all_partitions(problem) if fits(problem, candidate)]
    assume(candidates)
    found = paper_partition(problem, weights)
    assert fits(problem, found)
    least = min(paper_objective(problem, weights, candidate) for candidate in candidates)
    assert paper_objective(problem, weights, found) == pytest.approx(least)


def chain(times, weights=None, blocks=None):
    weights = weights or [1] * len(times)
    blocks = blocks or [()] * len(times)
    return tuple(
        AtomCost(f"a{i}", time, weight, 0, 0, block)
        for i, (time, weight, block) in enumerate(zip(times, weights, blocks, strict=True))
    )


def decoder(layers):
    """Embedding, attention and MLP of each layer, head."""
    blocks = [(), *((layer,) for layer in range(layers) for _ in range(2)), ()]
    return chain([1] * len(blocks), blocks=blocks)


def solve(atoms, stages, memory=10**9, link=LINK, **options):
    return partition(PartitionProblem(atoms, (StageLimit(memory),) * stages, link, **options))


def test_ties_prefer_balanced_memory_then_early_cuts():
    free = Link(0, 1e9)
    assert solve(chain([9, 0, 0, 0], [1, 1, 1, 1]), 2, memory=100, link=free).cuts == (2,)
    assert solve(chain([9, 0, 0, 0], [3, 0, 0, 3]), 2, memory=100, link=free).cuts == (1,)


def test_sending_counts_into_the_bottleneck():
    atoms = (AtomCost("a", 5, 1, 0, 100), AtomCost("b", 5, 1, 0, 1), AtomCost("c", 5, 1, 0, 0))
    assert solve(atoms, 2).cuts == (2,)


def test_a_faster_device_takes_more_atoms():
    limits = (StageLimit(100), StageLimit(100, speed=3.0))
    assert partition(PartitionProblem(chain([10] * 8), limits, Link(0, 1e9))).cuts == (2,)


def test_kv_room_moves_a_cut_that_weights_alone_would_not():
    atoms = tuple(AtomCost(f"a{i}", 1, 10, kv, 0) for i, kv in enumerate([4, 4, 0, 0, 0, 0]))
    free = Link(0, 1e9)
    assert solve(atoms, 2, memory=60, link=free).cuts == (3,)
    assert solve(atoms, 2, memory=60, link=free, kv_tokens=5).cuts == (2,)
    with pytest.raises(InfeasiblePartition, match="lacks at least 30 bytes"):
        solve(atoms, 2, memory=60, link=free, kv_tokens=10)


def test_coarser_partitions_are_nested_in_finer_ones():
    atoms = chain([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [1] * 12)
    found = nested_partitions(atoms, {count: [StageLimit(100)] * count for count in (1, 2, 4, 8)}, LINK, 0)
    assert set(found[1].cuts) < set(found[2].cuts) < set(found[4].cuts) < set(found[8].cuts)
    assert found[8] == solve(atoms, 8, memory=100)


@pytest.mark.parametrize(
    ("weights", "stages", "memory", "sentence"),
    [
        ([1, 1], 3, 100, "3 stages need 2 cuts, but the model can be cut at 1 places"),
        ([5, 50, 5], 2, 40, "atom a1 alone needs 50 bytes .* no stage has more than 40 .* lacks at least 15 bytes"),
        ([30, 30, 30], 2, 40, "need 90 bytes, but the 2 stages have 80 together; .* lacks at least 20 bytes"),
        ([30, 30, 30], 2, 50, "no cut into 2 stages fits .* lacks at least 10 bytes"),
    ],
)
def test_a_refusal_names_the_tightest_constraint(weights, stages, memory, sentence):
    with pytest.raises(InfeasiblePartition, match=sentence):
        solve(chain([1] * len(weights), weights), stages, memory=memory)


def test_the_paper_and_the_bottleneck_disagree_where_weights_and_times_do():
    atoms = chain([10, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 30, 30, 30])
    problem = PartitionProblem(atoms, (StageLimit(100),) * 2, Link(0, 1e9))
    paper = paper_partition(problem, PaperWeights(bytes_per_s=1e9))
    ours = partition(problem)
    assert ours.bottleneck_ns < paper.bottleneck_ns
    weights = PaperWeights(bytes_per_s=1e9)
    assert paper_objective(problem, weights, paper) < paper_objective(problem, weights, ours)


def test_the_papers_boundary_term_keeps_layers_whole():
    atoms = chain([1] * 8, blocks=[(), (0,), (0,), (1,), (1,), (2,), (2,), ()])
    problem = PartitionProblem(atoms, (StageLimit(100),) * 2, Link(0, 1e9))
    assert paper_partition(problem, PaperWeights(1e12)).cuts == (4,)
    assert paper_partition(problem, PaperWeights(1e12, boundary_ns=100.0)).cuts in {(3,), (5,)}


@pytest.mark.parametrize(
    ("text", "cuts"),
    [("4", ()), ("1,3", (3,)), ("2, 1, 1", (5, 7)), ("0:4,4:10", (4,)), ("0:1,1:2,2:10", (1, 2))],
)
def test_a_users_partition_is_read(text, cuts):
    assert parse_partition(text, decoder(4)) == cuts


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1,2", "has 3 layers in 2 stages, but the model has 4"),
        ("4,0", "each stage needs at least one"),
        ("two,2", "neither layers per stage"),
        ("", "neither layers per stage"),
        ("1.5,2.5", "neither layers per stage"),
        ("2,0:4", "neither layers per stage"),
        ("0:4,5:10", "must begin at atom 4"),
        ("0:4,4:4", "at least one atom"),
        ("0:4,4:9", "end at 10"),
        ("0:x,4:10", "not a range"),
    ],
)
def test_a_wrong_partition_is_refused_in_one_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_partition(text, decoder(4))


def test_layers_that_share_a_value_cannot_be_parted_by_a_user():
    atoms = chain([1] * 4, blocks=[(), (0,), (1, 2), ()])
    with pytest.raises(ValueError, match="cannot begin at layer 2: a2 is one piece"):
        parse_partition("2,1", atoms)


def test_verify_notices_every_kind_of_wrong_partition():
    atoms, limits = chain([1, 2, 3]), (StageLimit(10),) * 2
    good = partition(PartitionProblem(atoms, limits, LINK))
    good.verify(atoms, limits, LINK, 0)
    first, second = good.stages
    for wrong in (Partition((first,)), Partition((second, first)), Partition((first, first))):
        with pytest.raises(ValueError, match="stage"):
            wrong.verify(atoms, limits, LINK, 0)
    with pytest.raises(ValueError, match="costs that its atoms do not have"):
        good.verify(chain([1, 2, 4]), limits, LINK, 0)
    with pytest.raises(ValueError, match="bytes of 1"):
        good.verify(atoms, (StageLimit(1),) * 2, LINK, 0)


def test_a_deep_model_on_many_stages_is_solved_exactly():
    atoms = chain([5, *([7, 9] * 96), 20])
    found = solve(atoms, 64, memory=10**6)
    assert len(found.stages) == 64
    assert sum(stage.compute_ns for stage in found.stages) == 5 + 16 * 96 + 20
    assert found.bottleneck_ns == 32 + LINK.latency_ns
