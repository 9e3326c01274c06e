"""Logs as they are found: torn, doubled, interleaved, foreign, of another version, and of clocks that disagree."""

import json
import random

import pytest
from flexpipe.actors.config import ConfigError
from flexpipe.story import log_files
from flexpipe.story.storyteller import story_of
from log_lines_of import BEGIN_S, Writer, request

TRACE = "5a" * 16


@pytest.fixture
def lines():
    daemon = Writer("daemon")
    request(daemon, TRACE, between=[(1.5, "pipeline_up", {"epoch": 1, "stages": 2, "kv_blocks": 8})])
    return daemon.lines()


def told(tmp_path, text):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "daemon.jsonl").write_bytes(data)
    return story_of(TRACE, [tmp_path])


def shape(story):
    return [(span.kind, span.begin_s, span.end_s) for span in story.spans]


@pytest.fixture
def whole(tmp_path, lines):
    return shape(told(tmp_path, "".join(lines)))


@pytest.mark.parametrize(
    ("bad", "note"),
    [
        ('{"time_s": 1795000001.2, "process": "dae\n', "1 torn"),
        ('{"time_s": 1795000001.2, "pro{"time_s": 1795000001.3, "event": "x"}\n', "1 torn"),
        ("panic: a line of somebody else\n", "1 foreign"),
        (b"\xff\xfe\x00\x01 binary\n", "1 foreign"),
        ("[1, 2]\n", "1 foreign"),
        ('{"time_s": 1795000001.2, "event": 7}\n', "1 foreign"),
        ('{"time_s": "soon", "event": "x"}\n', "1 torn"),
        ('{"time_s": 1795000001.2, "event": "x", "replica": "one"}\n', "1 foreign"),
        ('{"time_s": 1795000001.2, "event": "x", "d": ' + "[" * 100_000 + "}\n", "1 torn"),
        ('"tokens": 3, "event": "stage_step"}\n', "1 torn"),
        ('"tokens": 3, "event": "step_sent"}\n', "1 torn"),
    ],
)
def test_a_line_that_is_none_of_ours_is_counted_and_changes_nothing(tmp_path, lines, whole, bad, note):
    bad = bad if isinstance(bad, bytes) else bad.encode()
    story = told(tmp_path, "".join(lines[:2]).encode() + bad + "".join(lines[2:]).encode())
    assert shape(story) == whole
    assert story.notes == [f"Skipped lines: {note}."]


def test_lines_that_are_there_twice_count_once(tmp_path, lines, whole):
    story = told(tmp_path, "".join(line * 2 for line in lines))
    assert shape(story) == whole
    assert story.notes == [f"Skipped lines: {len(lines)} doubled."]


def test_a_last_line_that_was_cut_off_is_torn(tmp_path, lines, whole):
    story = told(tmp_path, "".join(lines) + lines[-1][:40])
    assert shape(story) == whole
    assert story.notes == ["Skipped lines: 1 torn."]


def test_events_of_another_version_are_used_and_told_of(tmp_path, lines, whole):
    newer = json.dumps(
        {"time_s": BEGIN_S + 1.5, "process": "daemon", "pid": 1, "replica": 0, "event": "request_teleported"}
    )
    story = told(tmp_path, "".join([*lines, newer, "\n"]))
    assert shape(story) == whole
    assert story.notes == ["1 events are of another version of flexpipe."]


def test_lines_of_a_wrong_order_are_found(tmp_path, lines, whole):
    random.Random(3).shuffle(lines)
    assert shape(told(tmp_path, "".join(lines))) == whole


def test_a_line_without_end_costs_no_memory_and_hides_nothing_after_it(tmp_path, lines, whole, monkeypatch):
    monkeypatch.setattr(log_files, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(log_files, "LINE_BYTES_MAX", 2000)
    story = told(tmp_path, "x" * 50_000 + "\n" + "".join(lines))
    assert shape(story) == whole
    assert story.notes == ["1 lines were too long to be ours."]


@pytest.mark.parametrize("block_bytes", [1, 7, 100, 1000])
def test_blocks_of_any_size_give_the_same_story(tmp_path, lines, whole, monkeypatch, block_bytes):
    monkeypatch.setattr(log_files, "BLOCK_BYTES", block_bytes)
    assert shape(told(tmp_path, "".join(lines))) == whole


def test_no_logs_at_all_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no logs"):
        story_of("last", [tmp_path])


def two_nodes(tmp_path, ahead_s, *, pairs=True):
    """A leader's folder and a node's, whose clock is ``ahead_s`` ahead."""
    daemon, worker = Writer("daemon"), Writer("worker-1", pid=9, ahead_s=ahead_s)
    worker.at(0.1, "worker_loading", epoch=1, stage=1, first_atom=4, end_atom=8, device="cuda:0")
    if pairs:
        facts = {"weight_bytes": 1, "kept_bytes": 0, "warm_bytes": 0, "peer_bytes": 0, "disk_bytes": 1, "backend": "x"}
        worker.at(0.2, "worker_loaded", epoch=1, **facts)
        daemon.at(0.21, "change_phase", epoch=1, strategy="start", phase="copy")
        daemon.at(0.3, "cut_sent", epoch=1, step=0, abandon=True)
        worker.at(0.31, "worker_switched", epoch=1, step=0, sent_bytes=0, final_bytes=0)
        daemon.at(0.32, "change_phase", epoch=1, strategy="start", phase="release")
    worker.at(2.0, "worker_failed", error="EngineError", sentence="out of memory")
    daemon.at(0.4, "change_ended", epoch=1, outcome="done", sentence="")
    request(daemon, TRACE)
    daemon.save(tmp_path / "a" / "daemon.jsonl")
    worker.save(tmp_path / "b" / "worker-1.jsonl")
    return story_of(TRACE, [tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("ahead_s", [-40.0, 0.5, 3.0])
def test_a_node_s_clock_is_put_right_by_events_that_must_follow_each_other(tmp_path, ahead_s):
    (note,) = two_nodes(tmp_path, ahead_s).notes
    assert f"is {ahead_s * 1e3:+.0f} ms off by 3 pairs of events: corrected" in note


def test_clocks_that_agree_are_left_alone(tmp_path):
    (note,) = two_nodes(tmp_path, 0.0).notes
    assert "agrees, as far as 3 pairs of events can tell" in note


def test_clocks_of_which_nothing_is_known_are_taken_as_they_are(tmp_path):
    (note,) = two_nodes(tmp_path, 3.0, pairs=False).notes
    assert "it is taken as it is" in note
