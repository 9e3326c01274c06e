"""Small placement problems for hypothesis, and the optimum by trying everything."""

from itertools import combinations, permutations

from flexpipe.policies.cluster.cluster_map import cluster_map
from flexpipe.policies.cluster.device_facts import DeviceFacts, LinkClasses, NodeFacts
from flexpipe.policies.placement.effort import Engine
from flexpipe.policies.placement.pricing import price, verify
from flexpipe.policies.placement.search import search
from flexpipe.policies.placement.survey import floors
from flexpipe.policies.placement.values import ObjectiveWeights, PlacementRequest, PresentStage
from flexpipe.policies.types import AtomCost, Link
from hypothesis import strategies as st

REFERENCE = Engine(search, floors)
LINKS = LinkClasses(Link(5, 1e9), Link(20, 0.5e9), Link(60, 0.2e9), Link(200, 0.1e9))


@st.composite
def cluster_maps(draw, devices_max=6):
    facts, nodes = [], []
    wanted = draw(st.integers(1, devices_max))
    while len(facts) < wanted:
        name = f"n{len(nodes)}"
        nodes.append(NodeFacts(name, f"r{draw(st.integers(0, 1))}", 2e9, draw(st.sampled_from([0.5e9, 1e9]))))
        facts += [
            DeviceFacts(
                f"{name}/{place}",
                name,
                total_bytes=100,
                free_bytes=draw(st.integers(0, 100)),
                island=str(place // 2),
                speed=draw(st.sampled_from([0.5, 1.0, 2.0])),
                slowdown=draw(st.sampled_from([0.0, 0.25])),
            )
            for place in range(min(draw(st.integers(1, 3)), wanted - len(facts)))
        ]
    return cluster_map(facts, nodes, LINKS)


atom_costs = st.builds(
    AtomCost,
    name=st.just("atom"),
    compute_ns=st.integers(0, 200),
    weight_bytes=st.integers(1, 40),
    kv_bytes_per_token=st.integers(0, 2),
    activation_bytes=st.integers(0, 40),
)


@st.composite
def requests(draw, atoms_max=5, replicas_max=1, stages_max=4):
    atoms = draw(st.lists(atom_costs, min_size=1, max_size=atoms_max).map(tuple))
    most = draw(st.integers(1, stages_max))
    return PlacementRequest(
        atoms,
        stages_max=most,
        stages_min=draw(st.integers(1, min(2, most))),
        kv_tokens=draw(st.integers(0, 5)),
        workspace_bytes=draw(st.integers(0, 5)),
        replicas=draw(st.integers(1, replicas_max)),
        warm={0: frozenset(range(len(atoms) // 2))} if draw(st.booleans()) else {},
        present=((PresentStage(0, 0, len(atoms), draw(st.integers(0, 20))),),) if draw(st.booleans()) else (),
        held_kv_tokens=draw(st.integers(0, 3)),
        fragment_mix=draw(st.sampled_from([(), ((20, 500_000), (60, 500_000))])),
        weights=ObjectiveWeights(fragmentation=draw(st.sampled_from([0, 5_000_000]))),
        step_ns_max=draw(st.none() | st.integers(50, 500)),
        tpot_ns_max=draw(st.none() | st.integers(100, 2000)),
    )


def every_plan(cluster, request):
    """All plans of one replica that break no limit, straight from the definition."""
    count = len(request.atoms)
    for stages in range(request.stages_min, min(request.stages_max, count, cluster.devices) + 1):
        for cuts in combinations(range(1, count), stages - 1):
            for devices in permutations(range(cluster.devices), stages):
                replica = price(cluster, request, 0, list(zip(devices, [*cuts, count], strict=True)))
                try:
                    verify(cluster, request, [replica])
                except ValueError:
                    continue
                yield replica
