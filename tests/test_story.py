"""A request that is killed and recovered in the middle of a change, by real processes; its story, out of their logs alone."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise

import flexpipe
import httpx
import pytest
from flexpipe.client_errors import RefactorError
from served import served, wait_gone
from text_streams import text_streams
from tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.slow

PROMPT = "A watchword that nobody else would say"
TOKENS = 240
OPTIONS = ("--partition", "4,4", "--deterministic", "--step-tokens", "16", "--drain", "1")
SCREEN_LINES = 40
COMMAND = [sys.executable, "-m", "flexpipe.cli", "story"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """The logs of a server whose second stage was killed while a change copied; three requests were under way."""
    model = write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", layers=8, context_tokens=1024)
    folder = tmp_path_factory.mktemp("logs")
    requests = [{"prompt": f"{PROMPT} {number}", "max_tokens": TOKENS} for number in range(3)]
    with served(model, *OPTIONS, log_folder=folder) as server:
        with text_streams(server.url, requests) as streams:
            streams.wait_flowing()
            kill_in_copy(server)
            streams.texts()
        server.wait_ready()
        httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "ping", "max_tokens": 40})
        assert server.stop()[0] == 0
    return folder


def kill_in_copy(server):
    """Move the second stage to a free device, and kill its old process as soon as pages are copied."""
    stages = server.status()["stages"]
    layers, victim = stages[-1]["layers"], stages[-1]["pid"]
    taken = {stage["device"] for stage in stages}
    free = next(device for number in range(64) if (device := f"cpu:{number}") not in taken)
    killed = False
    with flexpipe.Client(server.url) as client:
        try:
            for progress in client.refactor(move=f"{layers[0]}-{layers[-1]}:{free}"):
                if progress.phase == "copy" and not killed:
                    os.kill(victim, signal.SIGKILL)
                    killed = True
        except RefactorError:
            pass
    assert killed
    wait_gone(victim)


def story(*arguments):
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "132"}
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def events(folder, *names):
    lines = (line for path in folder.rglob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines())
    return [event for event in map(json.loads, lines) if event["event"] in names]


def interrupted(folder):
    """The id of a request that lost its pipeline while it decoded."""
    numbers = {event["request"] for event in events(folder, "request_requeued")}
    return next(event["trace"] for event in events(folder, "request_queued") if event["request"] in numbers)


def test_the_story_of_a_request_names_the_stage_that_died_and_the_change_that_was_under_way(logs):
    told = story(interrupted(logs), "--logs", str(logs))
    assert len(told.splitlines()) <= SCREEN_LINES
    words = " ".join(told.split())
    assert (
        "stage 1 (worker 1 on cpu:1) was killed (SIGKILL) while the change (precopy) to epoch 2 was in phase" in words
    )
    assert "the recovery to epoch" in words
    print(told)


def test_each_moment_of_a_request_is_in_one_piece_of_its_story(logs):
    told = json.loads(story(interrupted(logs), "--logs", str(logs), "--json"))
    spans = told["spans"]
    assert [span["kind"] for span in spans][:3] == ["queue", "prefill", "decode"]
    assert all(abs(a["end_s"] - b["begin_s"]) < 1e-6 for a, b in pairwise(spans))
    assert sum(told["spent_s"].values()) == pytest.approx(told["end_s"] - told["begin_s"], rel=0.1, abs=0.05)
    assert sum(span["kind"] == "queue" for span in spans) == 2
    assert {stage["stage"] for stage in told["stages"]} == {0, 1}


def test_the_story_of_the_change_says_why_it_did_not_come_about(logs):
    words = " ".join(story("last-refactor", "--logs", str(logs)).split())
    assert "The change (precopy) to epoch 2" in words
    assert "stage 1 (worker 1 on cpu:1) was killed (SIGKILL)" in words
    print(words)


def test_two_requests_are_compared(logs):
    words = " ".join(story("--diff", "last", interrupted(logs), "--logs", str(logs)).split())
    assert "Most of the difference is" in words


def test_no_prompt_is_in_any_log(logs):
    files = [path for path in logs.rglob("*") if path.is_file()]
    assert any(path.name == "worker-1.jsonl" for path in files)
    assert [path for path in files if b"watchword" in path.read_bytes()] == []


def test_no_process_logged_a_fault(logs):
    assert events(logs, "log_fault") == []
