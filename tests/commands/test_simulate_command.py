"""`flexpipe simulate` as a person or a script meets it."""

import json

import pytest
from flexpipe.actors.config import ConfigError
from flexpipe.commands.simulate import mutate_command, seed_command, seeds_command
from flexpipe.sim.world.campaign import fault_kinds, hunt


def test_a_campaign_says_what_it_covered_and_that_no_rule_was_broken(capsys):
    assert seeds_command(6, 0, "none", 1, as_json=False) == 0
    said = capsys.readouterr().out
    assert "6 histories" in said
    assert "no rule was broken" in said


def test_a_campaign_gives_its_facts_to_machines(capsys):
    assert seeds_command(4, 100, "slow", 1, as_json=True) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["histories"] == 4
    assert facts["violations"] == []
    assert set(facts["injected"]) <= {
        f"{phase}/slow" for phase in ("serving", "plan", "load", "copy", "commit", "switch")
    } | {
        "release/slow",
        "abort/slow",
        "recovery/slow",
    }


def test_a_seed_is_replayed_with_its_log_in_virtual_time(capsys):
    assert seed_command(3, "all", "", trace=True, as_json=False) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["event"] == "change_phase"
    assert lines[0]["time_s"] == 0
    assert [line["time_s"] for line in lines] == sorted(line["time_s"] for line in lines)


def test_a_broken_rule_is_told_and_ends_with_1(capsys):
    found = hunt("skip-delta", range(40), fault_kinds("all"))
    assert found is not None
    assert seed_command(found[0], "all", "skip-delta", trace=False, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["violation"]["rule"] == "each token once and right"


def test_a_planted_bug_is_shown_with_the_seed_and_the_rule_that_caught_it(capsys):
    assert mutate_command("skip-delta", 20, "all", 1, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["skip-delta"]["rule"] == "each token once and right"


def test_an_unknown_bug_or_fault_is_misuse():
    with pytest.raises(ConfigError, match="no planted bug"):
        mutate_command("nothing", 5, "all", 1, as_json=False)
    with pytest.raises(ConfigError, match="no kind of fault"):
        seeds_command(5, 0, "flood", 1, as_json=False)
