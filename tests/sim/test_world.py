"""The simulated world: one seed, one history; faults that can be found, and a protocol that survives them."""

import os
import subprocess
import sys

import pytest
from flexpipe.actors.config import ConfigError
from flexpipe.sim.world.campaign import Findings, fault_kinds, hunt, run_seed, run_seeds
from flexpipe.sim.world.mutations import MUTATIONS
from flexpipe.sim.world.scenario import FAULTS, PAIRS, PHASES, draw

ALL = fault_kinds("all")

HISTORIES = """
from flexpipe.sim.world.campaign import fault_kinds, run_seed
for seed in (2, 19, 51):
    print(run_seed(seed, fault_kinds("all"), log=True).log)
"""


def test_without_faults_every_request_is_served_as_by_a_pipeline_that_never_changes():
    findings = run_seeds(range(12), ())
    assert findings.violations == []
    assert findings.changes["done"] >= 10
    assert findings.visits["served"] >= 20
    assert findings.visits["failed"] == findings.visits["cut off"] == 0


def test_no_history_with_faults_breaks_a_rule():
    findings = run_seeds(range(0, len(PAIRS), 2), ALL)
    assert findings.violations == []
    assert findings.faulted >= 0.8 * findings.histories
    assert len(findings.injected) >= 0.4 * len(PAIRS)


@pytest.mark.parametrize("seed", [2, 51])
def test_the_same_seed_writes_the_same_log_byte_for_byte_twenty_times(seed):
    logs = {run_seed(seed, ALL, log=True).log for _ in range(20)}
    assert len(logs) == 1
    assert len(logs.pop().splitlines()) > 50


def test_a_history_does_not_depend_on_what_python_makes_of_hashes():
    logs = {
        subprocess.run(
            [sys.executable, "-c", HISTORIES],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1")
    }
    assert len(logs) == 1


def test_whether_anybody_reads_the_log_changes_nothing():
    silent, told = run_seed(19, ALL), run_seed(19, ALL, log=True)
    assert (silent.virtual_s, silent.injected, silent.visits) == (told.virtual_s, told.injected, told.visits)


@pytest.mark.parametrize(
    ("mutation", "seeds"),
    [
        (name, 40)
        for name in ("commit-before-journal", "release-early", "deliver-twice", "skip-delta", "lose-dirty-bit")
    ],
)
def test_a_planted_bug_is_found(mutation, seeds):
    found = hunt(mutation, range(seeds), ALL)
    assert found is not None


def test_a_dozen_bugs_and_more_can_be_planted_and_each_says_what_it_does():
    assert len(MUTATIONS) >= 12
    assert all(mutation.rule.endswith(".") for mutation in MUTATIONS.values())


def test_each_pair_of_phase_and_fault_is_aimed_at_in_turn():
    aimed = {(aim.phase, aim.kind) for seed in range(len(PAIRS)) for aim in draw(seed, ALL).aims}
    assert aimed == set(PAIRS)


def test_kinds_of_fault_are_chosen_by_name_and_by_family():
    assert fault_kinds("all") == tuple(FAULTS)
    assert fault_kinds("none") == ()
    assert fault_kinds("crash, disk-full") == ("crash-old", "crash-new", "crash-both", "disk-full")
    with pytest.raises(ConfigError, match="'flood' is no kind of fault"):
        fault_kinds("flood")


def test_what_was_not_covered_is_told():
    findings = Findings()
    assert findings.uncovered(["slow"]) == [(phase, "slow") for phase in PHASES]
    findings.merge(run_seeds(range(3), ("slow",)))
    assert 0 < len(findings.uncovered(["slow"])) < len(PHASES)
