"""Pipelines across nodes in virtual time: streams through the loss of a node, a drain, and a node that comes back."""

from contextlib import asynccontextmanager

import pytest
import trio
from flexpipe.actors.cluster.drainer import Drainer
from flexpipe.actors.cluster.nodes_machine import NodeState
from flexpipe.actors.event_log import EventLog
from flexpipe.actors.generation import GenerationRequest
from flexpipe.actors.refactor import RefactorRequest
from flexpipe.actors.replicas import Replicas
from flexpipe.actors.reshaper import Reshaper
from flexpipe.actors.route import Route
from flexpipe.device_supply import ClusterDevices
from flexpipe.refactor_planning import RefactorPlanner
from flexpipe.runtime.interface import SamplingParams
from flexpipe.sim.modelled_engine import expected_tokens
from flexpipe.transport.memory import MemoryNetwork, Weather
from modelled_cluster import modelled_cluster
from modelled_pipeline import FACTS, MODEL, ModelledFactory, ModelledPlanner

GREEDY = SamplingParams(temperature=0.0)
WAIT_S_MAX = 300.0


class _Recovery:
    """The real planner's recovery, without its thread: virtual time would run on meanwhile."""

    def __init__(self, planner):
        self._planner = planner

    async def recover(self, wanted, next_worker):
        await trio.lowlevel.checkpoint()
        return self._planner.recover(wanted, next_worker=next_worker, taken_devices=())


class Served:
    """A model served by a cluster of nodes n1 to n3, with three stages at first."""

    def __init__(self, cluster, replicas, reshaper):
        self.cluster = cluster
        self.replicas = replicas
        self.reshaper = reshaper

    @property
    def devices(self):
        return [stage.device for stage in self.replicas.present[0].pipeline.route.stages]

    async def ready(self):
        while not self.replicas.status().ready:
            await trio.sleep(0.01)

    async def stream(self, prompt, count, texts):
        request = GenerationRequest(tuple(prompt), GREEDY, count)
        async with self.replicas.open(request) as events:
            texts[prompt] = [event.token.token_id async for event in events]

    async def through(self, act):
        """The tokens of several streams during which ``act`` happens."""
        texts = {}
        async with trio.open_nursery() as nursery:
            for first in (1, 20, 300):
                nursery.start_soon(self.stream, tuple(range(first, first + 12)), 60, texts)
            await trio.sleep(0.3)
            await act()
        return texts


@asynccontextmanager
async def served():
    network = MemoryNetwork(5, Weather(0.0001, 0.0005))
    with trio.fail_after(WAIT_S_MAX):
        async with modelled_cluster(network, "n1", "n2", "n3") as cluster, trio.open_nursery() as nursery:
            planner = ModelledPlanner("cpu:1")
            devices = ClusterDevices(cluster.leader.nodes.usable)
            planner.planner = RefactorPlanner(planner.atoms, devices)
            cluster.leader.recovery = lambda _replica: _Recovery(planner.planner)
            factory = ModelledFactory(nursery, network, None, ground=cluster.leader)
            log = EventLog(cluster.log_text, process="leader")
            replicas = Replicas(FACTS, factory, log)
            reshaper = Reshaper(planner, replicas)
            await nursery.start(reshaper.run)
            drainer = Drainer(cluster.leader.nodes, replicas, reshaper, log)
            nursery.start_soon(drainer.run)
            first = planner.planner.plan(RefactorRequest(stages=3), Route(0, ()), next_worker=0)
            nursery.start_soon(replicas.run, first)
            made = Served(cluster, replicas, reshaper)
            await trio.sleep(0.01)
            await made.ready()
            yield made
            nursery.cancel_scope.cancel()


def expected(texts):
    return {prompt: expected_tokens(MODEL, prompt, GREEDY, 60) for prompt in texts}


async def test_streams_across_nodes_are_right(autojump_clock):
    async with served() as world:
        assert world.devices == ["n1/cpu:0", "n2/cpu:0", "n3/cpu:0"]
        texts = await world.through(trio.lowlevel.checkpoint)
        assert texts == expected(texts)


@pytest.mark.parametrize("how", ["crash", "pause"])
@pytest.mark.parametrize("node", ["n2", "n3"])
async def test_streams_outlive_a_node_on_the_devices_that_are_left(autojump_clock, node, how):
    async with served() as world:

        async def lose():
            getattr(world.cluster.nodes[node], how)()

        texts = await world.through(lose)
        assert texts == expected(texts)
        assert not any(device.startswith(node) for device in world.devices)


async def test_a_node_that_drains_is_emptied_under_streams_and_let_go(autojump_clock):
    async with served() as world:

        async def drain():
            world.cluster.leader.nodes.drain("n2", "maintenance")
            await world.cluster.nodes["n2"].over.wait()

        texts = await world.through(drain)
        assert texts == expected(texts)
        assert not world.cluster.nodes["n2"].left.failed
        assert not any(device.startswith("n2") for device in world.devices)
        assert not world.cluster.events("pipeline_interrupted")


async def test_a_node_whose_stages_have_nowhere_to_go_stays_until_another_comes(autojump_clock):
    async with served() as world:
        nodes = world.cluster.leader.nodes
        for name in ("n1", "n2", "n3"):
            nodes.drain(name, "everything must go")
        await trio.sleep(5)
        assert {name: node.state for name, node in nodes.known.items()} == dict.fromkeys(
            ("n1", "n2", "n3"), NodeState.DRAINING
        )
        assert world.cluster.events("node_stays")
        world.cluster.start("n4")
        for name in ("n1", "n2", "n3"):
            await world.cluster.nodes[name].over.wait()
        assert {device.partition("/")[0] for device in world.devices} == {"n4"}


async def test_without_devices_a_pipeline_waits_for_a_node(autojump_clock):
    async with served() as world:
        for node in list(world.cluster.nodes.values()):
            node.crash()
        await trio.sleep(10)
        assert not world.replicas.status().ready
        assert "device" in world.replicas.status().reason
        world.cluster.start("n4")
        await world.ready()
        assert {device.partition("/")[0] for device in world.devices} == {"n4"}
