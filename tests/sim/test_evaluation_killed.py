"""An evaluation that is killed goes on where it was: what was finished is taken, the rest is run, and nothing counts twice."""

import json
import os
import signal
import subprocess
import sys

import pytest

RUNS_BEFORE = 5
POLL_S = 0.02


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "mine.csv"
    rows = "".join(f"{second},200,20\n" for second in range(40))
    file.write_text("arrival_s,input_tokens,output_tokens\n" + rows, encoding="utf-8")
    return file


def command(trace, folder):
    program = "from flexpipe.cli import app; app()"
    given = ["evaluate", "trace", str(trace), "--seeds", "1", "--jobs", "2", "--out", str(folder), "--json"]
    return [sys.executable, "-c", program, *given]


def keys(folder):
    """Of the whole lines of the store."""
    data = (folder / "runs.jsonl").read_bytes()
    return [json.loads(line)["key"] for line in data[: data.rfind(b"\n") + 1].splitlines()]


def outcome(text):
    facts = json.loads(text)
    return {name: value for name, value in facts.items() if name != "seconds"}


def test_a_killed_evaluation_goes_on_and_comes_to_what_an_undisturbed_one_does(tmp_path, trace):
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen(command(trace, folder), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while not (folder / "runs.jsonl").exists() or len(keys(folder)) < RUNS_BEFORE:
            with pytest.raises(subprocess.TimeoutExpired):  # else it ended before it could be killed
                process.wait(POLL_S)
        os.kill(process.pid, signal.SIGKILL)
        process.stdout.read()  # ends once its pool's processes, which hold the pipe too, have ended
    before = keys(folder)
    again, alone = (
        subprocess.run(command(trace, where), capture_output=True, text=True, check=True).stdout
        for where in (folder, whole)
    )
    after = keys(folder)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == len(keys(whole))
    assert len(before) < len(after)
    assert outcome(again) == outcome(alone)
