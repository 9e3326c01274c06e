"""`flexpipe doctor` on this machine, which runs the tests and so has what is needed."""

import json

from flexpipe.commands.doctor import CHECKS, doctor_command


def test_every_check_speaks_and_nothing_is_wrong_here(capsys):
    code = doctor_command(as_json=True)
    findings = json.loads(capsys.readouterr().out)
    assert code == 0, [finding for finding in findings if finding["level"] == "wrong"]
    assert len({finding["check"] for finding in findings}) == len(CHECKS)
