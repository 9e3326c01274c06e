"""Every system that is compared, on a few minutes of load: laws hold, nothing is lost, and ours is the product's policies."""

import ast

import numpy as np
import pytest
from flexpipe.sim.arrival_trace import ArrivalTrace
from flexpipe.sim.cluster.workload import gamma_workload
from flexpipe.sim.evaluation.cells import Cell, Load
from flexpipe.sim.evaluation.run_cell import run_cell
from flexpipe.sim.evaluation.setup import SetupError, cluster_of, model_of, workload_of
from flexpipe.sim.evaluation.store import open_store
from flexpipe.sim.evaluation.sweep import Where, sweep
from flexpipe.sim.systems.catalogue import SYSTEMS
from flexpipe.sim.systems.oracle import most_within
from source_tree import ROOT

SHORT = Load("opt-66b", "azure_llm_2023_conv", cv=4.0, rate_per_s=6.0, duration_s=90.0)


@pytest.mark.parametrize("system", [*SYSTEMS, "static-4@1.5", "static-32@1"])
def test_a_system_loses_no_request_and_breaks_no_law(system):
    facts = run_cell(Cell(system, SHORT, "a100", 3), {})
    assert facts.flaw == ""
    assert sum(facts.counts.values()) == facts.metrics["requests"] > 300
    assert facts.counts["done"] == facts.metrics["requests"]
    assert 0 < facts.metrics["held_mean"] <= 82


def test_the_same_cell_gives_the_same_facts():
    cell = Cell("fluid", SHORT, "a100:random:50", 1)
    assert run_cell(cell, {}) == run_cell(cell, {})


def test_systems_of_one_seed_see_the_same_requests():
    loads = [workload_of(SHORT, 5, {}) for _ in range(2)]
    assert np.array_equal(loads[0].arrival_s, loads[1].arrival_s)
    assert len(workload_of(SHORT, 6, {})) != len(loads[0])


@pytest.mark.parametrize("model", ["llama-2-7b", "bert-21b", "whisper-9b"])
def test_every_model_is_served(model):
    facts = run_cell(Cell("fluid", Load(model, SHORT.trace, 1.0, 6.0, 60.0), "a100", 0), {})
    assert facts.counts["done"] == facts.metrics["requests"]
    assert len(facts.course.gpus) == len(facts.course.at_s)


def test_names_that_stand_for_nothing_are_refused_in_a_sentence():
    with pytest.raises(SetupError, match="no model is called gpt-9; there are: opt-66b"):
        model_of("gpt-9")
    with pytest.raises(SetupError, match="no map is called atlantis"):
        cluster_of("atlantis", 0, {})


def test_the_oracle_keeps_what_is_needed_within_its_window():
    wanted = np.array([1, 1, 5, 1, 1, 1])
    assert most_within(wanted, 1, 2).tolist() == [5, 5, 5, 5, 1, 1]
    assert most_within(wanted, 99, 99).tolist() == [5]


def test_a_sweep_that_was_interrupted_runs_only_what_is_missing(tmp_path):
    cells = [Cell("static-4@1.5", SHORT, "a100", seed) for seed in range(3)]
    told = []
    with open_store(tmp_path) as store:
        first = sweep(cells[:2], {}, store, Where(), told.append)
    assert told == [0, 1, 1]
    told.clear()
    with open_store(tmp_path) as store:
        again = sweep(cells, {}, store, Where(), told.append)
    assert told == [2, 1]
    assert again[:2] == first
    assert [cell for cell, _ in again] == cells


def test_processes_give_what_one_process_gives(tmp_path):
    cells = [Cell("muxserve", SHORT, "a100", seed) for seed in range(2)]
    found = []
    for jobs in (1, 2):
        with open_store(tmp_path / str(jobs)) as store:
            found.append(sweep(cells, {}, store, Where(jobs), lambda _: None))
    assert found[0] == found[1]


def test_no_policy_was_copied_into_the_simulator():
    """The policies that are judged are the product's own: no function of `policies` stands in `sim` again."""
    originals = {body: where for where, body in _functions("policies")}
    copies = [f"{where} is {originals[body]}" for where, body in _functions("sim") if body in originals]
    assert copies == []


def test_ours_asks_the_products_controller_and_placement():
    text = (ROOT / "sim/systems/controlled.py").read_text(encoding="utf-8")
    assert "from ...policies.control.controller import decide, settled" in text
    assert "from ...policies.placement.solver import place" in (ROOT / "sim/systems/placing.py").read_text(
        encoding="utf-8"
    )


def _functions(folder):
    """(where, body without docstring) of every function with more than two statements."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                has_document = ast.get_docstring(node) is not None
                body = node.body[1:] if has_document else node.body
                if len(body) > 2:
                    yield f"{file.relative_to(ROOT)}:{node.name}", ast.dump(ast.Module(body, []))


def test_a_trace_of_one_request_is_served(tmp_path):
    data = b"arrival_s,input_tokens,output_tokens\n0.5,100,10\n"
    facts = run_cell(Cell("fluid", Load("opt-66b", "one.csv", duration_s=0.0), "a100", 0), {"one.csv": data})
    assert facts.counts["done"] == 1


def test_lengths_come_in_pairs_from_the_trace():
    lengths = ArrivalTrace(np.zeros(2), np.array([10, 20]), np.array([1, 2]))
    drawn = gamma_workload(lengths, 10.0, 1.0, 30.0, 0)
    assert set(zip(drawn.input_tokens.tolist(), drawn.output_tokens.tolist(), strict=True)) == {(10, 1), (20, 2)}
