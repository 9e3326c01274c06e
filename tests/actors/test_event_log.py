"""Events are catalogued, and what they fill stays bounded."""

import io
import json
import re

import pytest
from flexpipe.actors.event_log import CATALOGUE, EventCatalogueError, EventLog, LogFile
from source_tree import ROOT, source_files


def test_an_event_is_one_line_with_its_fields_and_what_was_bound():
    stream = io.StringIO()
    EventLog(stream, process="worker-0").emit("worker_leaving", reason="told to")
    event = json.loads(stream.getvalue())
    assert {key: event[key] for key in ("event", "reason", "process")} == {
        "event": "worker_leaving",
        "reason": "told to",
        "process": "worker-0",
    }
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("event", "fields"), [("no_such_event", {}), ("worker_leaving", {}), ("worker_leaving", {"reason": "x", "more": 1})]
)
def test_an_event_that_is_not_as_catalogued_is_our_bug(event, fields):
    with pytest.raises(EventCatalogueError):
        EventLog(io.StringIO()).emit(event, **fields)


def test_a_full_log_file_starts_anew_and_keeps_the_one_before(tmp_path):
    path = tmp_path / "x.jsonl"
    with LogFile(path, bytes_max=100) as file:
        for number in range(50):
            file.write(f"{number:09d}\n")
    kept = [*(tmp_path / "x.jsonl.1").read_text().split(), *path.read_text().split()]
    assert kept == [f"{number:09d}" for number in range(50 - len(kept), 50)]
    assert 10 <= len(kept) <= 20


def test_a_log_file_goes_on_where_an_earlier_process_stopped(tmp_path):
    path = tmp_path / "x.jsonl"
    for _ in range(2):
        with LogFile(path, bytes_max=100) as file:
            file.write("line\n")
    assert path.read_text() == "line\nline\n"


def test_every_catalogued_event_is_emitted_somewhere():
    sources = "".join((ROOT / file).read_text(encoding="utf-8") for file in source_files())
    assert [name for name in CATALOGUE if not re.search(rf'emit\(\s*"{name}"', sources)] == []
