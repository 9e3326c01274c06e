"""The judge against the search on a few instances, and the bench's figures and words."""

import json

import pytest
from flexpipe.bench.placement_cases import small_case
from flexpipe.bench.placement_exact import solve_exactly
from flexpipe.bench.placement_maps import NINE, load_maps, tiled
from flexpipe.bench.placement_packing import packing
from flexpipe.bench.placement_plots import draw
from flexpipe.bench.placement_words import packing_rows
from flexpipe.cli import app
from flexpipe.policies.cluster.device_facts import MapError
from flexpipe.policies.placement.pricing import verify
from flexpipe.policies.placement.solver import place
from flexpipe.sim.synthetic_map import SyntheticMap


@pytest.mark.parametrize("seed", [1, 6, 9, 13])
def test_the_exact_judge_and_the_search_agree(seed):
    cluster, request = small_case(seed)
    verdict = solve_exactly(cluster, request)
    assert verdict.closed
    verify(cluster, request, verdict.replicas)
    plan = place(cluster, request)
    assert plan.proved
    assert plan.cost == sum(replica.terms.cost(request.weights) for replica in verdict.replicas)


def test_tiles_are_as_many_devices_as_asked_for_in_racks_of_their_own():
    cluster = tiled(SyntheticMap("random", 0.5, nodes=20).draw(), 500, seed=1)
    assert cluster.devices == 500
    assert cluster.racks == -(-cluster.nodes // 32)


def test_a_folder_that_lacks_a_map_is_refused(tmp_path):
    with pytest.raises(MapError, match="random_50"):
        load_maps(NINE, tmp_path)


def test_each_contender_is_asked_for_the_same_and_drawn(tmp_path):
    rows = packing({"random_90": SyntheticMap("random", 0.9, nodes=40).draw()}, lambda _: None)
    assert len({row["asked"] for row in rows}) == 1
    assert all(0 <= row["stranded_share"] <= row["free_share"] <= 1 for row in rows)
    assert len(packing_rows({"packing": rows})) == len(rows) + 1
    (path,) = draw({"packing": rows}, tmp_path)
    assert path.stat().st_size > 1000


def test_the_command_prints_json(capsys):
    code = app(["bench", "placement", "--part", "gap", "--instances", "2", "--json"], result_action="return_value")
    assert code == 0
    assert json.loads(capsys.readouterr().out)["gap"]["instances"] == 2
