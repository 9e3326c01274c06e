"""Daemons that lead in turn, with a real etcd: whoever leads may be killed while streams run, and while nothing runs."""

import time

import httpx
import pytest
from cluster_streams import PROMPTS, Streams, completion
from daemons import daemons
from real_etcd import running_etcd
from tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.slow

FAILOVER_S_MAX = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    model = write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", layers=4)
    options = ("--devices", "cpu:2", "--threads", "1", "--nodes", "3", "--stages", "3")
    with (
        running_etcd(tmp_path_factory.mktemp("etcd")) as (etcd,),
        daemons(model, tmp_path_factory.mktemp("cluster"), *options, "--etcd", etcd.endpoint, joins=False) as made,
    ):
        for name in ("n1", "n2", "n3"):
            made.start(name)
        made.wait_ready()
        yield made


@pytest.fixture(scope="module")
def expected(cluster):
    return {prompt: completion(cluster.each["n1"].url, prompt) for prompt in PROMPTS}


def leader_of(cluster):
    """The name of who leads, as those who live see it."""
    heard = [event for daemon in cluster.living() for event in daemon.events("leader_attached")]
    return max(heard, key=lambda event: event["term"])["leader"]


def test_streams_go_on_at_the_next_leader_when_theirs_is_killed(cluster, expected):
    lost = leader_of(cluster)
    others = [daemon.url for name, daemon in cluster.each.items() if name != lost]
    streams = Streams(others)
    streams.wait_begun()
    cluster.each[lost].kill()
    assert streams.end() == expected
    assert leader_of(cluster) != lost


def test_a_leader_that_is_stopped_hands_over(cluster, expected):
    again = next(name for name, daemon in cluster.each.items() if daemon.process.poll() is not None)
    cluster.start(again).wait_url()
    leaving = leader_of(cluster)
    others = [daemon for name, daemon in cluster.each.items() if name != leaving]
    streams = Streams([daemon.url for daemon in others])
    streams.wait_begun()
    assert cluster.each[leaving].stop() == 0
    assert streams.end() == expected


def test_with_one_node_left_it_serves_alone(cluster, expected):
    living = cluster.living()
    last = living[0]
    for daemon in living[1:]:
        daemon.kill()
    deadline = time.monotonic() + FAILOVER_S_MAX
    while not (httpx.get(f"{last.url}/ready").json()["ready"] and all(d.startswith(last.name) for d in last.devices())):
        assert time.monotonic() < deadline
    assert completion(last.url, PROMPTS[0]) == expected[PROMPTS[0]]
