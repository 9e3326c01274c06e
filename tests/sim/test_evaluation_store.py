"""Results on disk: an interruption loses nothing that was finished, and nothing counts twice."""

import msgspec
import pytest
from flexpipe.sim.evaluation.cells import Cell, Load
from flexpipe.sim.evaluation.store import FILE, Run, StoreError, open_store
from flexpipe.sim.evaluation.sweep import SweepError, Where, sweep


def run(key, value=1):
    return Run(key, msgspec.Raw(b'{"system":"x"}'), msgspec.Raw(b'{"value":%d}' % value))


def test_what_was_added_is_there_when_opened_again(tmp_path):
    with open_store(tmp_path / "new" / "folder") as store:
        store.add(run("a", 3))
    with open_store(tmp_path / "new" / "folder") as store:
        assert "a" in store
        assert bytes(store.get("a").outcome) == b'{"value":3}'
        assert store.get("b") is None


def test_a_line_that_an_interruption_tore_is_cut_off_and_run_anew(tmp_path):
    with open_store(tmp_path) as store:
        store.add(run("a"))
        store.add(run("b"))
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-9])
    with open_store(tmp_path) as store:
        assert "a" in store
        assert "b" not in store
        store.add(run("b", 2))
    lines = path.read_bytes().splitlines()
    assert [msgspec.json.decode(line)["key"] for line in lines] == ["a", "b"]


def test_a_run_that_is_there_is_not_written_again_and_the_first_counts(tmp_path):
    with open_store(tmp_path) as store:
        store.add(run("a", 1))
        store.add(run("a", 2))
    path = tmp_path / FILE
    assert len(path.read_bytes().splitlines()) == 1
    path.write_bytes(path.read_bytes() + msgspec.json.encode(run("a", 2)) + b"\n")
    with open_store(tmp_path) as store:
        assert bytes(store.get("a").outcome) == b'{"value":1}'


def test_two_evaluations_do_not_write_to_one_folder(tmp_path):
    with open_store(tmp_path), pytest.raises(StoreError, match="another evaluation writes"), open_store(tmp_path):
        pass


def test_a_line_that_is_no_result_is_named(tmp_path):
    (tmp_path / FILE).write_text('{"key": 1}\n')
    with pytest.raises(StoreError, match="line 1 is no result"), open_store(tmp_path):
        pass


def test_a_folder_that_cannot_be_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="give another folder"), open_store(tmp_path / "file" / "below"):
        pass


def test_a_process_with_other_code_computes_no_run(tmp_path, monkeypatch):
    """What it computed would be kept under the digest of code that did not compute it."""
    monkeypatch.setattr("flexpipe.sim.evaluation.sweep.code_digest", lambda: "of another version")
    load = Load("opt-66b", "azure_llm_2023_conv", 1.0, 5.0, 20.0)
    cells = [Cell("static-4@1", load, "a100", seed) for seed in range(2)]
    with open_store(tmp_path) as store, pytest.raises(SweepError, match="give all the same version"):
        sweep(cells, {}, store, Where(2), lambda _: None)
    assert b"key" not in (tmp_path / FILE).read_bytes()
