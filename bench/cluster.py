"""A real cluster under kills and cut cables: four daemons on hosts of their own, clients at two gateways, every text checked.

Each case starts a load, harms the cluster, and tells what became of the requests, how long the longest wait was, and how soon the
cluster noticed and had all stages again. It also holds a pipeline across hosts against the arithmetic of its cables.
"""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from ..client import AsyncClient
from .cluster_load import ClusterLoad, LoadOutcome
from .daemon_processes import API_KEY, Cluster, DaemonProcess, cluster, has_etcd, on_hosts
from .namespaces import Host, HostNetwork, host_network, missing
from .virtual_switch import Shape

NAMES = ("n1", "n2", "n3", "n4")
CABLE = Shape(rate_bit_s=1e9, delay_s=0.0005)
"""1 Gbit/s, and 1 ms from host to host: two cables."""
STORE = "store"
"""The host of etcd."""
STAGES = 3
HIDDEN_BYTES_PER_ROW = 576 * 4
"""A row of SmolLM2's hidden state in fp32, as it crosses from host to host."""
LOOK_S = 0.05
"""How often a gateway is asked whether the cluster serves: no time is known more exactly."""
CAPACITY_S_MAX = 120.0
"""How long a cluster may take to have all stages again."""
PROMPTS = tuple(
    f"{start} {rest}"
    for start in ("The capital of France is", "Once upon a time", "To bake bread", "The sky is blue because")
    for rest in ("", "and then")
)


class UnmeasurableError(Exception):
    """This machine cannot run it; the sentence says what is missing."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A cluster that serves, as harm sees it.

    ``victim`` holds a stage, process ``stage_pid``, and does not lead; the ``gateways`` of the clients are on the other two nodes.
    """

    network: HostNetwork
    cluster: Cluster
    gateways: tuple[str, ...]
    victim: DaemonProcess
    stage_pid: int

    def host_of(self, daemon: DaemonProcess) -> Host:
        """Where a daemon runs."""
        return next(host for host in self.network.hosts if host.name == daemon.place.name)


Harm = Callable[[Scene], Awaitable[None]]


async def kill_stage(scene: Scene) -> None:
    """SIGKILL to the process of a stage."""
    os.kill(scene.stage_pid, signal.SIGKILL)


async def kill_daemon(scene: Scene) -> None:
    """SIGKILL to the daemon of a node that holds a stage."""
    scene.victim.kill()


async def kill_leader(scene: Scene) -> None:
    """SIGKILL to the daemon that leads."""
    scene.cluster.leader().kill()


async def kill_gateway(scene: Scene) -> None:
    """SIGKILL to the daemon of the second gateway; it may hold a stage as well."""
    next(daemon for daemon in scene.cluster.daemons.values() if daemon.place.url == scene.gateways[1]).kill()


async def lose_etcd(scene: Scene) -> None:
    """SIGKILL to etcd; nothing starts it again."""
    scene.cluster.kill_etcd()


def cut_host(seconds: float, *, leader: bool) -> Harm:
    """The cable of a host is cut for so long: the leader's, or that of another one with a stage."""

    async def harm(scene: Scene) -> None:
        scene.network.cut(scene.host_of(scene.cluster.leader() if leader else scene.victim))
        await trio.sleep(seconds)
        scene.network.mend()

    return harm


async def flap(scene: Scene) -> None:
    """The cable of a host with a stage is cut and mended every half second, ten times."""
    for _ in range(10):
        scene.network.cut(scene.host_of(scene.victim))
        await trio.sleep(0.5)
        scene.network.mend()
        await trio.sleep(0.5)


CASES: dict[str, Harm] = {
    "kill a stage": kill_stage,
    "kill a node's daemon": kill_daemon,
    "kill the leader": kill_leader,
    "kill a gateway": kill_gateway,
    "kill etcd": lose_etcd,
    "cut a stage's host for 5 s": cut_host(5, leader=False),
    "cut a stage's host for 60 s": cut_host(60, leader=False),
    "cut the leader's host for 30 s": cut_host(30, leader=True),
    "flapping cable": flap,
}


def run(
    model: str, requests_each: int, tokens: int, cases: Sequence[str], report: Callable[[str], None]
) -> dict[str, Any]:
    """Every case on a cluster of its own, then the arithmetic of hops. Raises `UnmeasurableError`, `NamespaceError`."""
    if sentence := missing():
        raise UnmeasurableError(sentence)
    if not has_etcd():
        raise UnmeasurableError("the cluster's state is kept in etcd: install etcd-server")
    results = {}
    for name in cases:
        report(name)
        results[name] = _case(model, CASES[name], requests_each, tokens)
    report("hops and a change across hosts")
    return {"cores": len(os.sched_getaffinity(0)), "cases": results, "across": _across(model, tokens)}


def _case(model: str, harm: Harm, requests_each: int, tokens: int) -> dict[str, Any]:
    with _scene(model, CABLE) as scene:
        return trio.run(_under_load, scene, harm, model, requests_each, tokens)


@contextmanager
def _scene(model: str, shape: Shape) -> Iterator[Scene]:
    """A cluster of daemons that serve; etcd has a host of its own, so that no cut cable takes it from everybody."""
    with host_network((*NAMES, STORE), shape) as network:
        *places, store = on_hosts(network.hosts)
        options = ("--deterministic", "--threads", "1", "--devices", "cpu:2", "--stages", str(STAGES), "--nodes", "4")
        with cluster(model, places, *options, etcd_on=store) as made:
            for name in NAMES:
                made.start(name)
            made.wait_ready()
            leader = made.leader().place.name
            stages = trio.run(_stages, made.places[leader].url)
            victim, pid = next(stage for stage in stages if stage[0] != leader)
            gateways = tuple(place.url for place in places if place.name not in (leader, victim))
            yield Scene(network, made, gateways, made.daemons[victim], pid)


async def _stages(url: str) -> list[tuple[str, int]]:
    """The node and the process of each stage that serves now."""
    async with AsyncClient(url, api_key=API_KEY) as client:
        status = await client.status()
    return [(stage["device"].partition("/")[0], stage["pid"]) for stage in status["stages"]]


async def _under_load(scene: Scene, harm: Harm, model: str, requests_each: int, tokens: int) -> dict[str, Any]:
    load = ClusterLoad(scene.gateways, API_KEY, model, PROMPTS, tokens)
    await load.learn()
    times: dict[str, float] = {}
    async with trio.open_nursery() as nursery:

        async def strike() -> None:
            await load.until(len(PROMPTS) * requests_each // 4)
            times["harm"] = trio.current_time()
            nursery.start_soon(_watch_capacity, scene, times)
            await harm(scene)

        nursery.start_soon(strike)
        outcome = await load.run(requests_each)
        times.setdefault("end", trio.current_time())
    return _facts(outcome, times)


async def _watch_capacity(scene: Scene, times: dict[str, float]) -> None:
    """Note when the first gateway says that the cluster does not serve, and when it serves again."""
    with trio.move_on_after(CAPACITY_S_MAX):
        async with AsyncClient(scene.gateways[0], api_key=API_KEY) as client:
            while "ready" not in times:
                await trio.sleep(LOOK_S)
                if not await client.ready():
                    times.setdefault("noticed", trio.current_time())
                elif "noticed" in times:
                    times["ready"] = trio.current_time()
                elif "end" in times:
                    return


def _facts(outcome: LoadOutcome, times: dict[str, float]) -> dict[str, Any]:
    harm_s = times["harm"]
    seconds = {name: round(times[name] - harm_s, 2) for name in ("noticed", "ready") if name in times}
    return outcome.as_facts() | {
        "longest_wait_s": round(outcome.waits.longest_after(harm_s), 2),
        "noticed_s": seconds.get("noticed"),
        "full_capacity_s": seconds.get("ready"),
    }


def _across(model: str, tokens: int) -> dict[str, Any]:
    """TPOT of one stream across three hosts against the same hosts with cables that cost nothing, and a change across hosts."""
    tpots, change = {}, {}
    for name, shape in (("free", Shape()), ("cabled", CABLE)):
        with _scene(model, shape) as scene:
            tpots[name] = trio.run(_tpot, scene, model, tokens)
            if name == "cabled":
                change = trio.run(_change, scene, model, tokens)
    hops = STAGES + 1  # plan to the first stage, on through the others, result to the leader
    hop_s = 2 * CABLE.delay_s + 2 * HIDDEN_BYTES_PER_ROW * 8 / CABLE.rate_bit_s
    arithmetic_s = tpots["free"] + hops * hop_s
    return {
        "tpot_free_ms": tpots["free"] * 1e3,
        "tpot_cabled_ms": tpots["cabled"] * 1e3,
        "arithmetic_ms": arithmetic_s * 1e3,
        "ratio": tpots["cabled"] / arithmetic_s,
        "change": change,
    }


async def _tpot(scene: Scene, model: str, tokens: int) -> float:
    """Seconds per token of one stream, median."""
    load = ClusterLoad(scene.gateways, API_KEY, model, PROMPTS[:1], max(tokens, 64))
    await load.learn()
    outcome = await load.run(3)
    return statistics.median(outcome.token_gaps_s)


async def _change(scene: Scene, model: str, tokens: int) -> dict[str, Any]:
    """A refactoring to two stages while clients stream: its pauses against a step."""
    load = ClusterLoad(scene.gateways, API_KEY, model, PROMPTS, max(tokens, 256))
    await load.learn()
    facts: dict[str, Any] = {}

    async def change() -> None:
        await load.until(1)
        async with AsyncClient(scene.gateways[0], api_key=API_KEY) as client:
            refactoring = await client.refactor(stages=2)
            report = await refactoring.wait()
        facts.update(
            pause_p99_ms=report.pauses.p99_ms, pause_max_ms=report.pauses.max_ms, requests=report.pauses.requests
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        outcome = await load.run(2)
    step_ms = statistics.median(outcome.token_gaps_s) * 1e3
    return facts | {"step_ms": step_ms, "lost": len(outcome.lost), "altered": outcome.altered}
