"""The cluster demo: four hosts, a pipeline across them, two gateways; a node is killed while chats stream, then the one that leads.

As root on Linux the hosts are network namespaces joined by 1 Gbit/s cables of 0.5 ms, with keys and etcd; otherwise three daemons
share loopback, and where there is no etcd the one that leads is spared. Run it with `make cluster-demo`.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from chats import MODEL, QUESTIONS, Chat, hold, others, panels
from flexpipe.actors.refactor import RefactorReport
from flexpipe.bench.daemon_processes import API_KEY, Cluster, cluster, has_etcd, on_hosts, on_loopback
from flexpipe.bench.namespaces import host_network, missing
from flexpipe.bench.virtual_switch import Shape
from flexpipe.client import AsyncClient, Client
from flexpipe.client_errors import RefactorAbortedError
from flexpipe.commands.console import err, out, stage_table

CABLE = Shape(rate_bit_s=1e9, delay_s=0.0005)
OPTIONS = ("--deterministic", "--threads", "1", "--devices", "cpu:2", "--stages", "3", "--nodes", "3")
NOETCD = True
TOKENS_BEFORE_LOSS = 40
"""In every chat, before anything is killed."""


@contextmanager
def served() -> Iterator[Cluster]:
    """The cluster, on what this machine allows; the daemons serve."""
    if sentence := missing():
        out.print(f"[yellow]Three daemons on loopback: {sentence}.[/]", highlight=False, soft_wrap=True)
        places = on_loopback(("n1", "n2", "n3"))
        with cluster(MODEL, places, *OPTIONS, etcd_on=places[0] if has_etcd() else None) as made:
            yield from _begun(made)
    else:
        with host_network(("n1", "n2", "n3", "n4"), CABLE) as network:
            places = on_hosts(network.hosts)
            with cluster(MODEL, places, *OPTIONS, etcd_on=places[0] if has_etcd() else None) as made:
                yield from _begun(made)


def _begun(made: Cluster) -> Iterator[Cluster]:
    started_s = time.perf_counter()
    for name in made.places:
        made.start(name)
    with out.status(f"{len(made.places)} daemons start"):
        made.wait_ready()
    out.print(
        f"{len(made.places)} daemons serve {MODEL} after {time.perf_counter() - started_s:.0f} s", highlight=False
    )
    yield made


class Show:
    """The demo's course: the same chats undisturbed and through each loss."""

    def __init__(self, made: Cluster) -> None:
        self._cluster = made
        self._leader = made.leader().place.name if made.has_etcd else next(iter(made.places))
        self._gateways = self._sparing(self._leader)
        self._undisturbed: list[Chat] = []
        self.failed: list[str] = []

    async def run(self) -> None:
        """Hold the chats again and again; `failed` names the questions whose answer changed."""
        self.print_stages("The pipeline crosses the nodes; chats come in at two gateways")
        self._undisturbed = await self._hold(None)
        if not out.is_terminal:
            out.print(panels(self._undisturbed))
        out.print(
            f"[bold]The same chats again, and {self._victim()}, which holds a stage, is killed (SIGKILL) meanwhile[/]"
        )
        self._gateways = self._sparing(self._victim())
        await self._compare(self._kill_a_holder)
        self.print_stages("The stages after the loss")
        out.print("[bold]The same chats again, while the pipeline is refactored around the loss, to 2 stages[/]")
        await self._compare(self._refactor)
        self.print_stages("The stages after the change")
        if self._cluster.has_etcd:
            out.print(f"[bold]The same chats again, and {self._leader}, which leads, is killed (SIGKILL) meanwhile[/]")
            self._gateways = self._sparing(self._leader)
            await self._compare(self._kill_the_leader)
            self.print_stages("The stages of the next leader")

    async def _compare(self, happens: Callable[[list[Chat]], object]) -> None:
        chats = await self._hold(happens)
        self.failed += others(chats, self._undisturbed)

    async def _hold(self, happens: Callable[[list[Chat]], object] | None) -> list[Chat]:
        chats = [Chat(question) for question in QUESTIONS]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, self._gateways, chats, API_KEY)
            if happens is not None:
                while any(len(chat.gaps_s) < TOKENS_BEFORE_LOSS and not chat.over for chat in chats):  # noqa: ASYNC110 - a demo may look
                    await trio.sleep(0.05)
                await happens(chats)
        return chats

    def _sparing(self, victim: str) -> list[str]:
        """Two gateways that live and will: a client whose own gateway dies has to ask another one."""
        living = [daemon.place for daemon in self._cluster.daemons.values() if daemon.is_alive]
        return [place.url for place in living if place.name != victim][:2]

    async def _kill_a_holder(self, _chats: list[Chat]) -> None:
        self._cluster.daemons[self._victim()].kill()
        out.print("  it is gone, with its stage", highlight=False)

    def _victim(self) -> str:
        """A node that holds a stage and does not lead."""
        holders = [str(stage["device"]).partition("/")[0] for stage in self.stages()]
        return next(name for name in reversed(holders) if name != self._leader)

    async def _kill_the_leader(self, _chats: list[Chat]) -> None:
        self._cluster.leader().kill()
        out.print("  it is gone; another one leads", highlight=False)

    async def _refactor(self, _chats: list[Chat]) -> None:
        async with AsyncClient(self._gateways[0], api_key=API_KEY) as client:
            report = await self._changed(client)
        pauses = report.pauses
        out.print(
            f"  3→2 stages, epoch {report.epoch}: {pauses.requests} chats paused, at most {pauses.max_ms or 0:.0f} ms",
            highlight=False,
        )

    async def _changed(self, client: AsyncClient) -> RefactorReport:
        """Go to two stages; what fails meanwhile ends a change, not the streams, and it is asked for again."""
        while True:
            refactoring = await client.refactor(stages=2)
            try:
                return await refactoring.wait()
            except RefactorAbortedError as error:
                out.print(f"  the change was taken back: {error}", highlight=False)
                await trio.sleep(1)

    def stages(self) -> list[dict[str, object]]:
        """The stages that serve now."""
        with Client(self._gateways[0], api_key=API_KEY) as client:
            return list(client.status()["stages"])

    def print_stages(self, title: str) -> None:
        """Show the stages."""
        out.print(f"\n[bold]{title}[/]")
        out.print(stage_table(self.stages()))


def main() -> int:
    """Build the cluster, hold the chats through losses; the exit code."""
    with served() as made:
        show = Show(made)
        trio.run(show.run)
    if show.failed:
        err.print(f"other texts than undisturbed, or none: {show.failed}", style="red")
        return 1
    out.print("\n[bold green]All texts are the same as undisturbed, character by character.[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
