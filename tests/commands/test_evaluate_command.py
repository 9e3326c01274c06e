"""`flexpipe evaluate` from the outside: what it prints, writes and refuses."""

import json

import pytest
from flexpipe.actors.config import ConfigError
from flexpipe.cli import app
from flexpipe.policies.cluster.device_facts import MapError
from flexpipe.sim.arrival_trace import TraceError
from flexpipe.sim.evaluation.readme import NoBlockError
from flexpipe.sim.evaluation.setup import SetupError

HEAD = "arrival_s,input_tokens,output_tokens\n"


def evaluate(*arguments):
    return app(["evaluate", *map(str, arguments)], result_action="return_value", exit_on_error=False)


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text(HEAD + "".join(f"{second},200,20\n" for second in range(40)), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEAD + "2,10,10\n1,10,10\n", "not in the order of arrival"),
        (HEAD + "-1,10,10\n", "before time 0"),
        (HEAD + "1,0,10\n", "without tokens"),
        ("arrival_s,input_tokens\n1,10\n", "has no columns"),
        (HEAD, "holds no request"),
        (HEAD + "1,ten,10\n", "line 2 does not hold three numbers"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_in_a_sentence(tmp_path, text, sentence):
    file = tmp_path / "bad.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TraceError, match=sentence):
        evaluate("trace", file)


def test_a_map_without_devices_and_an_unknown_model_are_refused(tmp_path, trace):
    empty = tmp_path / "map.csv"
    empty.write_text("node,model,gpu_idx,free_milli\n", encoding="utf-8")
    with pytest.raises(MapError, match=r"map\.csv is an empty map"):
        evaluate("trace", trace, "--map", empty)
    with pytest.raises(MapError, match="cannot be read"):
        evaluate("trace", trace, "--map", tmp_path / "missing.csv")
    with pytest.raises(SetupError, match="no model is called"):
        evaluate("trace", trace, "--model", "gpt-9")


def test_a_model_that_fits_nowhere_is_refused_in_a_sentence(tmp_path, trace):
    small = tmp_path / "map.csv"
    small.write_text("node,model,gpu_idx,free_milli\nn0,T4,0,1000\nn0,T4,1,1000\n", encoding="utf-8")
    with pytest.raises(SetupError, match="fits nowhere"):
        evaluate("trace", trace, "--map", small)


def test_a_file_without_a_place_for_the_block_is_refused_before_anything_is_run(tmp_path):
    readme = tmp_path / "README.md"
    with pytest.raises(ConfigError, match=r"README\.md cannot be read"):
        evaluate("paper", "--quick", "--markdown", readme)
    readme.write_text("# Nothing\n", encoding="utf-8")
    with pytest.raises(NoBlockError, match="each once and in this order"):
        evaluate("paper", "--quick", "--markdown", readme)
    assert readme.read_text(encoding="utf-8") == "# Nothing\n"


def test_a_trace_is_evaluated_reported_and_taken_from_the_folder_the_second_time(tmp_path, trace, capsys):
    folder = tmp_path / "out"
    assert evaluate("trace", trace, "--seeds", 1, "--jobs", 1, "--out", folder, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["flaws"] == []
    systems = first["places"][0]["systems"]
    assert {"fluid", "paper", "alpaserve", "best-static", "oracle"} <= set(systems)
    assert "mine.csv" in (folder / "report.html").read_text(encoding="utf-8")
    assert json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["runs"] == first["runs"]
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["places"][0]["seeds"] == 1
    runs = (folder / "runs.jsonl").read_text(encoding="utf-8")
    assert evaluate("trace", trace, "--seeds", 1, "--jobs", 1, "--out", folder) == 0
    assert (folder / "runs.jsonl").read_text(encoding="utf-8") == runs
    assert "Where we lose" in capsys.readouterr().out
