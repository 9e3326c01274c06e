"""`flexpipe certify` as a person or a script meets it."""

import json

import pytest
from flexpipe.cli import app
from flexpipe.commands.certify_controller import controller_command
from flexpipe.commands.certify_microgrid import microgrid_command
from flexpipe.policies.certificate.serving_certificate import CertificateError
from flexpipe.policies.certificate.serving_facts import ControllerFacts

SOUND = ControllerFacts((1000.0, 600.0), 1400.0, drain_s=60, startup_s=10, lag_s=10, dwell_s=60, growth=1.5)
HASTY = ControllerFacts((1000.0, 600.0), 1400.0, drain_s=20, startup_s=10, lag_s=10, dwell_s=60, growth=1.5)


def words(text):
    return " ".join(text.split())


def test_the_study_is_printed_with_what_is_reconstructed_and_drawn(tmp_path, capsys):
    picture = tmp_path / "new" / "study.png"
    assert microgrid_command(picture, as_json=False) == 0
    said = words(capsys.readouterr().out)
    for part in (
        "reconstruction",
        "droop settings chosen here",
        "it is invariant",
        "not proved",
        "mean angles",
        "slow swing",
    ):
        assert part in said
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_study_gives_its_facts_to_machines(capsys):
    assert microgrid_command(None, as_json=True) == 0
    facts = json.loads(capsys.readouterr().out)
    assert all(row["sampled_worst_rate"] >= row["proved_rate"] for row in facts["regions"])
    assert facts["flat_start"]["holds"]
    assert facts["flat_start"]["disturbance_budget"] == pytest.approx(0.287, abs=0.005)
    assert facts["flat_start"]["equilibrium_distance"] <= facts["flat_start"]["equilibrium_distance_bound"]
    assert facts["pair"]["slowest_rate"] >= facts["pair"]["certified_rate"]
    assert all(row["simulated"] <= row["bound"] and row["stays"] for row in facts["against_simulation"])


def test_a_configuration_that_settles_ends_with_0(capsys):
    assert controller_command(SOUND, as_json=False) == 0
    assert "The certificate holds" in capsys.readouterr().out


def test_one_that_would_swing_ends_with_1_and_says_why(capsys):
    assert controller_command(HASTY, as_json=False) == 1
    said = words(capsys.readouterr().out)
    assert "A change of shape would be refused (drain)" in said


def test_a_certificate_is_json_without_infinities(capsys):
    assert controller_command(HASTY, as_json=True) == 1
    facts = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert facts["refused"] == "drain"
    assert {row["name"]: row["holds"] for row in facts["conditions"]}["drain"] is False


def test_what_is_no_configuration_is_an_error_with_a_sentence():
    with pytest.raises(CertificateError, match="drain_s is 0"):
        controller_command(ControllerFacts((1.0,), 1.0, drain_s=0, startup_s=1, lag_s=1), as_json=False)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("--startup-s 40 --drain-s 30", 1), ("--capacities 1000 --capacities 600 --sharpness-per-s 1 --spread-s 0.5", 0)],
)
def test_settings_come_from_the_command_line(arguments, code, capsys):
    with pytest.raises(SystemExit) as ended:
        app(f"certify controller --json {arguments}")
    assert ended.value.code == code
    assert json.loads(capsys.readouterr().out)["holds"] == (code == 0)
