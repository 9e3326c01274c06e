"""Daemons on loopback, as real processes: a pipeline across them, the loss of one while streams run, a stop that costs nothing."""

import json
import subprocess
import sys

import httpx
import pytest
from cluster_streams import PROMPTS, Streams, completion
from daemons import daemons
from served import wait_gone
from tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", layers=4)


def port_of(address):
    return int(address.rpartition(":")[2])


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


def flexpipe(*arguments):
    command = [sys.executable, "-m", "flexpipe.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_operators_see_the_nodes_and_let_one_go_while_streams_run(cluster, expected):
    url = cluster.each["n2"].url
    listed = flexpipe("nodes", "--json", "--url", url)
    nodes = {node["node"]: node for node in json.loads(listed.stdout)}
    assert [(name, node["leads"], node["state"]) for name, node in nodes.items()] == [
        ("n1", True, "here"),
        ("n2", False, "here"),
        ("n3", False, "here"),
    ]
    assert any(device["in_use"] for device in nodes["n3"]["devices"])
    assert "n1    leads  127.0.0.1" in flexpipe("nodes", "--url", url).stdout

    streams = Streams([url])
    streams.wait_begun()
    drained = flexpipe("drain", "n3", "--url", url)
    assert (drained.returncode, drained.stderr) == (0, "")
    assert streams.end() == expected
    assert cluster.each["n3"].process.wait(30) == 0
    assert "n3/cpu:0" not in cluster.each["n2"].devices()
    cluster.start("n3").wait_url()


@pytest.mark.parametrize(
    ("node", "sentence"), [("n1", "node n1 leads the cluster"), ("n7", "no node named n7 belongs")]
)
def test_a_node_that_cannot_be_let_go_is_refused_in_one_sentence(cluster, node, sentence):
    refused = flexpipe("drain", node, "--url", cluster.each["n2"].url)
    assert refused.returncode == 1
    assert refused.stderr.startswith(sentence)


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
