"""A server at its own wheel, with real processes and real weights: it grows under load, shrinks after it, and says why."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import flexpipe
import pytest
from served import served

pytestmark = pytest.mark.slow

REQUESTS, TOKENS = 32, 48


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    options = ("--auto", "--devices", "cpu:1x2GiB,cpu:2x512MiB", "--threads", "1", "--pace", "50", "--deterministic")
    with served("smollm2", *options, log_folder=tmp_path_factory.mktemp("logs")) as running:
        yield running


def test_it_grows_under_load_and_shrinks_after_it_with_every_text_right(server):
    with flexpipe.Client(server.url) as client, ThreadPoolExecutor(REQUESTS) as pool:

        def text_of(number):
            return client.complete(f"Item {number % 4} of the list is", max_tokens=TOKENS, temperature=0.0).text

        alone = [text_of(number) for number in range(4)]
        assert len(client.status()["stages"]) == 1
        answers = list(pool.map(text_of, range(REQUESTS)))
        assert answers == [alone[number % 4] for number in range(REQUESTS)]
        wanted = [event["decision"]["wanted"]["stages"] for event in changes(server)]
        assert wanted
        assert wanted[0] > 1
        while len(client.status()["stages"]) != 1:  # the bursts are forgotten after 18 s at this pace
            pass
        assert all(event["failure"] == "" for event in server.events("autopilot_acted"))


def test_why_tells_the_changes_from_the_logs(server):
    command = [sys.executable, "-m", "flexpipe.cli", "why", "--last", "1000", "--logs", str(server.log_folder)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert told.count("Change to ") == len(changes(server))


def changes(server):
    return [event for event in server.events("autopilot_decided") if event["decision"]["action"] == "change"]
