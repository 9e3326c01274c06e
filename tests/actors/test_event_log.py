"""Events are catalogued, and what they fill stays bounded."""

import errno
import io
import json
import os
import re
import runpy

import pytest
from flexpipe.actors.event_catalogue import BOUND, EVENTS, FIELDS
from flexpipe.actors.event_log import EventCatalogueError, EventLog, LogFile
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
    ("event", "fields"),
    [
        ("no_such_event", {}),
        ("worker_leaving", {}),
        ("worker_leaving", {"reason": "x", "more": 1}),
        ("worker_leaving", {"why": "x"}),
        ("worker_leaving", {"reason": 1}),
        ("worker_exited", {"worker": True, "code": 0}),
    ],
)
def test_an_event_that_is_not_as_catalogued_is_our_bug(event, fields):
    with pytest.raises(EventCatalogueError):
        EventLog(io.StringIO()).emit(event, **fields)


def test_in_production_a_fault_of_ours_is_logged_once_and_ends_nothing():
    stream = io.StringIO()
    log = EventLog(stream, strict=False)
    for _ in range(3):
        log.emit("worker_leaving", reason=1)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["worker_leaving", "log_fault", "worker_leaving", "worker_leaving"]
    assert events[1]["at_event"] == "worker_leaving"
    assert "reason of type int" in events[1]["sentence"]


def test_a_disk_that_was_full_is_told_of_once_there_is_room():
    stream = FullDisk()
    log = EventLog(stream)
    log.emit("worker_leaving", reason="lost")
    stream.is_full = False
    for reason in ("kept", "kept too"):
        log.emit("worker_leaving", reason=reason)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event.get("reason", event.get("at_event")) for event in events] == ["kept", "worker_leaving", "kept too"]
    assert "could not be written: No space left on device" in events[1]["sentence"]


class FullDisk(io.StringIO):
    is_full = True

    def write(self, text):
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


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
    assert [name for name in EVENTS if not re.search(rf'emit\(\s*"{name}"', sources)] == []


def test_every_field_is_used_and_explained_once():
    used = {field for kind in EVENTS.values() for field in kind.fields}
    assert used - set(BOUND) == set(FIELDS)
    assert set(BOUND).isdisjoint(FIELDS)


def test_the_page_of_events_is_made_from_the_catalogue_of_today():
    page = runpy.run_path(str(ROOT / "docs" / "events.py"))["page"]()
    assert (ROOT / "docs" / "events.md").read_text(encoding="utf-8") == page, "run python docs/events.py"
