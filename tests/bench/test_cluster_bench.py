"""The cluster bench refuses what it cannot measure, and says what it measured."""

import pytest
from flexpipe.actors.config import ConfigError
from flexpipe.bench import cluster
from flexpipe.bench.cluster_load import Waits
from flexpipe.bench.cluster_words import case_rows, sentences
from flexpipe.commands.bench import cluster_command

RESULT = {
    "cases": {
        "kill a stage": {
            "answered": 800,
            "lost": 0,
            "altered": 0,
            "retried": 2,
            "longest_wait_s": 1.5,
            "noticed_s": 0.05,
            "full_capacity_s": None,
        }
    },
    "across": {
        "tpot_cabled_ms": 24.0,
        "ratio": 1.2,
        "arithmetic_ms": 20.0,
        "tpot_free_ms": 16.0,
        "change": {"pause_p99_ms": 30.0, "requests": 8, "step_ms": 60.0, "lost": 0, "altered": 0},
    },
}


def test_a_case_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no case 'flood'; choose from: kill a stage"):
        cluster_command("smollm2", 1, 1, ["flood"], as_json=True)


def test_a_machine_without_namespaces_is_told_what_is_missing(monkeypatch):
    monkeypatch.setattr(cluster, "missing", lambda: "run as root")
    with pytest.raises(ConfigError, match="run as root"):
        cluster_command("smollm2", 1, 1, [], as_json=True)


def test_a_row_says_what_is_not_known():
    assert case_rows(RESULT)[1] == ("kill a stage", "800", "0", "0", "2", "1.50 s", "0.05 s", "-")


def test_the_change_is_held_against_a_step():
    assert "0.50 of a step of 60 ms" in sentences(RESULT)[1]


def test_only_waits_that_ended_after_the_harm_count():
    waits = Waits([1.0, 5.0, 9.0], [4.0, 2.0, 3.0])
    assert waits.longest_after(4.0) == 3.0
    assert Waits().longest_after(0.0) == 0.0
