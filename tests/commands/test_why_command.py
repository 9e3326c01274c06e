"""`flexpipe why` as a process of its own: from a server, from logs, and from where there is nothing."""

import json
import subprocess
import sys
from functools import partial

import pytest
import trio
from flexpipe.actors.decision_journal import DecisionJournal
from flexpipe.actors.event_log import EventLog, LogFile
from flexpipe.policies.control.controller import decide
from flexpipe.policies.control.decision import ControllerMemory, Limits
from flexpipe.policies.control.granularity import Shape
from flexpipe.policies.control.granularity_fluid import FluidPolicy
from flexpipe.policies.control.observation import Observation
from gateway_harness import running_gateway

COMMAND = [sys.executable, "-m", "flexpipe.cli", "why"]
HANG_S = 60


def decisions(log, count=3):
    journal = DecisionJournal(log)
    for stages in range(1, count + 1):
        present = Shape(stages, 1, tpot_s=0.1, capacity_tokens_per_s=100)
        seen = Observation(1.0, observed_s=100.0)
        journal.write(decide(ControllerMemory(), seen, present, [], FluidPolicy(), Limits())[1])
    return journal


@pytest.fixture
def logs(tmp_path):
    with LogFile(tmp_path / "daemon.jsonl") as stream:
        decisions(EventLog(stream, process="daemon"))
    return tmp_path


def why(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=HANG_S, check=False)


async def test_the_decisions_of_a_server_are_told_in_words():
    async with running_gateway(decisions=decisions(EventLog(sys.stderr, process="daemon"))) as gateway:
        done = await trio.to_thread.run_sync(partial(why, "--url", gateway.url, "--last", "2"))
    assert done.returncode == 0
    assert "Keep 1 stage:" not in done.stdout
    assert "Keep 2 stages:" in done.stdout
    assert "Keep 3 stages:" in done.stdout


def test_the_logs_of_a_server_tell_the_same_after_its_end(logs):
    with (logs / "daemon.jsonl").open("a") as stream:
        stream.write('{"event": "autopilot_decided", cut')
    done = why("--logs", str(logs), "--json")
    assert done.returncode == 0
    assert [written["decision"]["present"]["stages"] for written in json.loads(done.stdout)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--logs", "/nonexistent"), "daemon.jsonl"), (("--last", "0", "--logs", "."), "last is 0")],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(arguments, says):
    done = why(*arguments)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
