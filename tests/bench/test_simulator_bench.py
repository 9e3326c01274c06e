"""The bench of the cluster simulator counts what was simulated."""

import json

from flexpipe.bench import simulator
from flexpipe.commands.bench import simulator_command


def test_every_size_simulates_all_requests(monkeypatch, capsys):
    monkeypatch.setattr(simulator, "PIPELINES", (1, 4))
    assert simulator_command(2000, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert [size["devices"] for size in found["sizes"]] == [8, 32]
    assert all(size["events"] >= 3 * 2000 for size in found["sizes"])


def test_the_table_has_a_row_for_each_size(monkeypatch, capsys):
    monkeypatch.setattr(simulator, "PIPELINES", (2,))
    assert simulator_command(100, as_json=False) == 0
    assert "16" in capsys.readouterr().out
