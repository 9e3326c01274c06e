"""Daemons on loopback, as real processes: a pipeline across them, the loss of one while streams run, a stop that costs nothing."""

import json
import threading

import httpx
import pytest
from daemons import daemons
from served import wait_gone
from tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.slow

PROMPTS = ("The pipeline", "A cache of keys", "When the demand", "Text is more")
TOKENS = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", layers=4)


def completion(url, prompt, tokens=TOKENS):
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    answer.raise_for_status()
    return answer.json()["choices"][0]["text"]


def port_of(address):
    return int(address.rpartition(":")[2])


class Streams:
    """Several completions at once, from several gateways; ``begun`` once each has some text."""

    def __init__(self, urls):
        self.texts = dict.fromkeys(PROMPTS, "")
        self._begun = {prompt: threading.Event() for prompt in PROMPTS}
        self._threads = [
            threading.Thread(target=self._stream, args=(urls[place % len(urls)], prompt))
            for place, prompt in enumerate(PROMPTS)
        ]
        for thread in self._threads:
            thread.start()

    def _stream(self, url, prompt):
        body = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    self.texts[prompt] += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                    self._begun[prompt].set()

    def wait_begun(self):
        for event in self._begun.values():
            assert event.wait(60)

    def end(self):
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()
        return self.texts


@pytest.fixture(scope="module")
def cluster(model, tmp_path_factory):
    """Three daemons, of which n1 leads, and a pipeline of three stages, one on each."""
    with daemons(model, tmp_path_factory.mktemp("cluster"), "--devices", "cpu:2", "--threads", "1") as made:
        made.start("n1", "--nodes", "3", "--stages", "3")
        made.start("n2")
        made.start("n3")
        made.wait_ready()
        yield made


@pytest.fixture(scope="module")
def expected(cluster):
    """The texts when nothing happens."""
    return {prompt: completion(cluster.each["n1"].url, prompt) for prompt in PROMPTS}


def test_a_pipeline_crosses_the_nodes_and_every_node_answers_for_it(cluster, expected):
    assert cluster.each["n2"].devices() == ["n1/cpu:0", "n2/cpu:0", "n3/cpu:0"]
    for daemon in cluster.each.values():
        assert completion(daemon.url, PROMPTS[0]) == expected[PROMPTS[0]]


def test_streams_outlive_the_kill_of_a_node_and_its_workers_die_with_it(cluster, expected):
    lost = cluster.each["n3"]
    (pid,) = [stage["pid"] for stage in lost.status()["stages"] if stage["device"].startswith("n3/")]
    streams = Streams([cluster.each["n1"].url, cluster.each["n2"].url])
    streams.wait_begun()
    lost.kill()
    assert streams.end() == expected
    wait_gone(pid)
    cluster.each["n1"].wait_devices(lambda devices: sorted(devices) == ["n1/cpu:0", "n1/cpu:1", "n2/cpu:0"])
    (gone,) = cluster.each["n1"].events("node_gone")
    assert gone["node"] == "n3"


def test_a_node_that_comes_back_is_used_again(cluster, expected):
    again = cluster.start("n3")
    again.wait_url()
    report = httpx.post(
        f"{cluster.each['n2'].url}/flexpipe/v1/refactor",
        json={"stages": 4},
        headers={"accept": "application/json"},
        timeout=120,
    )
    assert report.status_code == 200, report.text
    again.wait_devices(lambda devices: "n3/cpu:0" in devices)
    assert completion(again.url, PROMPTS[1]) == expected[PROMPTS[1]]


def test_a_node_that_is_stopped_has_its_stages_moved_first_and_no_stream_notices(cluster, expected):
    streams = Streams([cluster.each["n1"].url, cluster.each["n3"].url])
    streams.wait_begun()
    assert cluster.each["n2"].stop() == 0
    assert streams.end() == expected
    leader = cluster.each["n1"]
    leader.wait_devices(lambda devices: not any(device.startswith("n2/") for device in devices))
    assert [event["sentence"] for event in leader.events("node_gone")][-1] == ""
    assert not leader.events("pipeline_interrupted")[1:]  # only the kill before interrupted


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"calls_itself": "n1"}, "a node named n1 belongs to the cluster already; give each daemon its own --name"),
        ({"bind": "taken"}, "bind: tcp://n9@127.0.0.1:"),
    ],
)
def test_a_daemon_that_cannot_be_says_why_in_one_sentence_and_exits_with_2(cluster, options, sentence):
    if "bind" in options:
        options = {"bind": port_of(cluster.each["n1"].events("node_started")[0]["address"])}
    wrong = cluster.start("n9", **options)
    try:
        assert wrong.process.wait(60) == 2
        assert wrong.said().strip().splitlines()[-1].startswith(sentence)
    finally:
        wrong.end()
        del cluster.each["n9"]


def test_the_end_of_the_leader_is_orderly(cluster):
    leader = cluster.each["n1"]
    pids = [stage["pid"] for stage in leader.status()["stages"]]
    assert leader.stop() == 0
    for pid in pids:
        wait_gone(pid)
