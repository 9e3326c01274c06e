"""Nodes that join, launch workers, are lost and come again, in virtual time: the real agents and roster over a memory network."""

import pytest
import trio
from flexpipe.actors.route import StagePlacement
from flexpipe.actors.worker_pool import ControlPlace, HostLostError
from flexpipe.transport.interface import PeerLostError
from flexpipe.transport.memory import MemoryNetwork, Weather
from modelled_cluster import LEADER, modelled_cluster

DETECTED_S_MAX = 2.0
WAIT_S_MAX = 60.0


@pytest.fixture
async def cluster():
    with trio.fail_after(WAIT_S_MAX):
        async with modelled_cluster(MemoryNetwork(3, Weather(0.0002, 0.001)), "n1", "n2", "n3") as made:
            yield made


async def launched(cluster, device, worker=0):
    """A worker on ``device``, with its control link open; the process and the link."""
    placement = StagePlacement(worker, 0, 1, device, 1)
    control, link = await cluster.leader.doors(0).open(placement, "control")
    process = await cluster.leader.launcher(0).launch(placement, control)
    await link.receive()  # its hello
    return process, link


async def test_a_worker_is_launched_on_the_node_of_its_device_and_reaches_its_pool(autojump_clock, cluster):
    process, _ = await launched(cluster, "n2/cpu:1", worker=4)
    assert process.pid > 0
    assert {name: list(node.launcher.processes) for name, node in cluster.nodes.items()} == {
        "n1": [],
        "n2": [4],
        "n3": [],
    }


async def test_the_end_of_a_worker_is_told_with_its_code(autojump_clock, cluster):
    process, _ = await launched(cluster, "n2/cpu:0")
    process.signal(kill=True)
    assert await process.wait() == -9
    process.signal(kill=True)  # it has ended: nothing


async def test_a_node_that_cannot_start_a_process_says_so(autojump_clock, cluster):
    cluster.nodes["n3"].fails_to_start = True
    with pytest.raises(OSError, match="no more processes"):
        await cluster.leader.launcher(0).launch(
            StagePlacement(0, 0, 1, "n3/cpu:0", 1), ControlPlace(LEADER, "worker:x")
        )


@pytest.mark.parametrize("device", ["n9/cpu:0", "cpu:0"])
async def test_a_device_of_no_node_that_is_here_starts_nothing(autojump_clock, cluster, device):
    with pytest.raises(OSError, match="is not here"):
        await cluster.leader.launcher(0).launch(StagePlacement(0, 0, 1, device, 1), ControlPlace(LEADER, "worker:x"))


@pytest.mark.parametrize("how", ["crash", "pause"])
async def test_the_loss_of_a_node_is_the_end_of_all_its_workers_within_two_seconds(autojump_clock, cluster, how):
    processes = [(await launched(cluster, f"n2/cpu:{number}", number))[0] for number in range(2)]
    other, _ = await launched(cluster, "n3/cpu:0", 2)
    getattr(cluster.nodes["n2"], how)()
    with trio.fail_after(DETECTED_S_MAX):
        for process in processes:
            with pytest.raises(HostLostError, match="node n2 was lost"):
                await process.wait()
    assert set(cluster.leader.nodes.known) == {"n1", "n3"}
    other.signal(kill=True)
    assert await other.wait() == -9


async def test_a_node_that_was_cut_off_ends_its_workers_by_itself_and_joins_again(autojump_clock, cluster):
    await launched(cluster, "n2/cpu:0")
    node = cluster.nodes["n2"]
    for a, b in (("n2", "leader"), ("leader", "n2")):
        cluster.network.cut(a, b)
    await cluster.leader.wait_nodes("n1", "n3")
    with trio.fail_after(DETECTED_S_MAX):
        while node.launcher.processes:
            await trio.sleep(0.01)
    for a, b in (("n2", "leader"), ("leader", "n2")):
        cluster.network.heal(a, b)
    await cluster.leader.wait_nodes("n1", "n2", "n3")
    process, _ = await launched(cluster, "n2/cpu:0", 1)
    assert process.pid > 0


async def test_a_short_cut_costs_nothing(autojump_clock, cluster):
    process, _ = await launched(cluster, "n2/cpu:0")
    for a, b in (("n2", "leader"), ("leader", "n2")):
        cluster.network.cut(a, b)
    await trio.sleep(0.8)
    for a, b in (("n2", "leader"), ("leader", "n2")):
        cluster.network.heal(a, b)
    await trio.sleep(5)
    assert set(cluster.leader.nodes.known) == {"n1", "n2", "n3"}
    process.signal(kill=False)
    assert await process.wait() == -15


async def test_a_second_node_of_a_name_is_refused_in_one_sentence_and_the_first_lives_on(autojump_clock, cluster):
    first = cluster.nodes["n2"]
    second = cluster.start("n2")
    await second.over.wait()
    assert second.left.failed
    assert "a node named n2 belongs to the cluster already" in second.left.reason
    assert set(cluster.leader.nodes.known) == {"n1", "n2", "n3"}
    assert first.left is None


async def test_a_node_that_comes_back_before_its_loss_was_noticed_is_taken(autojump_clock, cluster):
    cluster.nodes["n2"].pause()
    again = cluster.start("n2", process="n2 anew")
    await trio.sleep(4)
    assert again.left is None
    assert set(cluster.leader.nodes.known) == {"n1", "n2", "n3"}


async def test_a_node_with_another_model_is_refused_for_good(autojump_clock, cluster):
    other = cluster.start("n4", model="another")
    await other.over.wait()
    assert "n4 has model another" in other.left.reason
    assert [event["reason"] for event in cluster.events("node_refused")] == ["model", "model"]


async def test_a_node_that_drains_is_released_once_it_is_empty(autojump_clock, cluster):
    nodes = cluster.leader.nodes
    nodes.drain("n3", "maintenance")
    assert set(nodes.usable()) == {"n1", "n2"}
    await trio.sleep(3)
    assert set(nodes.known) == {"n1", "n2", "n3"}
    nodes.emptied("n3")
    await cluster.nodes["n3"].over.wait()
    assert cluster.nodes["n3"].left.reason == "maintenance"
    assert not cluster.nodes["n3"].left.failed
    await cluster.leader.wait_nodes("n1", "n2")
    assert cluster.events("node_gone")[-1]["sentence"] == ""


async def test_a_node_asks_to_leave_by_itself(autojump_clock, cluster):
    cluster.nodes["n2"].agent.ask_to_leave("SIGTERM")
    while set(cluster.leader.nodes.usable()) != {"n1", "n3"}:
        await cluster.leader.nodes.change()
    assert cluster.events("node_drains")[-1]["reason"] == "SIGTERM"


@pytest.mark.parametrize(
    ("node", "purpose", "sentence"),
    [
        ("n3", "worker:1:0:0", "that worker is expected from node n2"),
        ("n2", "worker:1:0:9", "no such worker is expected"),
        ("n2", "worker:0:0:0", "no such worker is expected"),
        ("n2", "burglar", "nothing here is for that purpose"),
    ],
)
async def test_who_is_not_expected_at_the_listener_is_turned_away(autojump_clock, cluster, node, purpose, sentence):
    await cluster.leader.doors(0).open(StagePlacement(0, 0, 1, "n2/cpu:0", 1), "control")
    async with cluster.network.open("somebody", node) as transport:
        link = await transport.connect(LEADER, name="up", purpose=purpose)
        with pytest.raises(PeerLostError):
            await link.receive()
    assert [event["sentence"] for event in cluster.events("link_refused")] == [sentence]
