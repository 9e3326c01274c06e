"""The laws of all runs: a small evaluation keeps them, and each one finds the run that breaks it."""

from dataclasses import replace

import numpy as np
import pytest
from cluster_cases import Fixed, cut, devices, poisson, toy
from flexpipe.sim.cluster.simulator import simulate
from flexpipe.sim.cluster.state import ABSENT
from flexpipe.sim.evaluation.cells import Cell, Load
from flexpipe.sim.evaluation.store import open_store
from flexpipe.sim.evaluation.sweep import Where, sweep

LOADS = (
    Load("opt-66b", "azure_llm_2023_conv", 4.0, 8.0, 120.0),
    Load("whisper-9b", "azure_llm_2023_conv", 8.0, 8.0, 120.0),
)


def test_a_small_evaluation_accounts_for_every_request_and_keeps_every_law(tmp_path):
    cells = [
        Cell(system, load, name, seed, weather)
        for system in ("fluid", "paper", "alpaserve", "serverlessllm", "static-4@1.2")
        for load, name in ((LOADS[0], "a100"), (LOADS[1], "random:90"))
        for weather in ("calm", "failures")
        for seed in range(2)
    ]
    with open_store(tmp_path) as store:
        results = sweep(cells, {}, store, Where(), lambda _: None)
    assert [facts.flaw for _, facts in results] == [""] * len(cells)
    assert all(sum(facts.counts.values()) == facts.metrics["requests"] for _, facts in results)
    for cell, facts in results:  # one seed's load is the same for all systems, in all weathers
        same = [other for at, other in results if (at.load, at.seed) == (cell.load, cell.seed)]
        assert {other.metrics["requests"] for other in same} == {facts.metrics["requests"]}


@pytest.fixture(scope="module")
def record():
    workload = poisson(20.0, 500, outputs=20, prompts=64)
    return simulate(Fixed([cut([0, 1])]), workload, [toy()], devices(2))


def altered(record, name, value, row=3):
    requests = np.copy(record.requests)
    requests[name][row] = value
    return replace(record, requests=requests)


def test_a_run_that_is_well_has_no_flaw(record):
    assert record.flaw() == ""
    assert record.counts()["done"] == 500


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda record: altered(record, "phase", ABSENT), "a request never arrived"),
        (lambda record: altered(record, "made", 19), "another number of tokens"),
        (lambda record: altered(record, "first_s", 0.0), "before its first step"),
        (lambda record: replace(record, over_bytes_max=7), "held 7 bytes more than it has"),
        (lambda record: replace(record, served_tokens=9_000.0), "10000 tokens were delivered, 9000 were computed"),
        (lambda record: replace(record, served_tokens=10_100.0), "10000 tokens were delivered, 10100 were computed"),
        (lambda record: replace(record, prompt_tokens=31_000.0), "prompts of 32000 tokens were answered"),
        (lambda record: replace(record, prompt_tokens=33_000.0), "though nothing was preempted"),
    ],
)
def test_each_law_finds_the_run_that_breaks_it(record, broken, sentence):
    assert sentence in broken(record).flaw()
