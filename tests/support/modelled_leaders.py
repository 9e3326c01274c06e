"""Leaders and gateways in one trio loop: real token servers over modelled replicas, real gateways' sources, an in-memory network.

Each leader has a network of its own for its workers, as if each term's workers were new ones; gateways reach it through
``network``, which has the weather. Killing a leader is what kill -9 of its daemon is: nothing is said, and its workers are gone.
"""

import io
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from flexpipe.actors.cluster.gateway_conversation import ConversationLimits, LeaderServices
from flexpipe.actors.cluster.leader_line import GatewayIdentity, LeaderLine
from flexpipe.actors.cluster.leader_source import LeaderAt
from flexpipe.actors.cluster.remote_control import RemoteDecisions, RemoteRefactorer
from flexpipe.actors.cluster.remote_source import RemoteLimits, RemoteSource
from flexpipe.actors.cluster.token_messages import GATEWAY_LIMITS, GATEWAY_PURPOSE
from flexpipe.actors.cluster.token_server import LeaderIdentity, TokenServer, TokenServerLimits
from flexpipe.actors.cluster.usher import Usher
from flexpipe.actors.event_log import EventLog
from flexpipe.transport.memory import MemoryNetwork, Weather
from modelled_pipeline import FACTS, MODEL, modelled_replicas

MODEL_DIGEST = "modelled"
UNTIL_S_MAX = 30.0


class LeaderBoard:
    """A `LeaderSource` that is told who leads."""

    def __init__(self):
        self._leader = None
        self._news = trio.lowlevel.ParkingLot()

    def announce(self, address, term):
        self._leader = LeaderAt(address, term)
        self._news.unpark_all()

    async def next_leader(self, known):
        while self._leader is None or self._leader == known:
            await self._news.park()
        return self._leader


@dataclass
class Gateway:
    """One gateway's daemon."""

    name: str
    line: LeaderLine
    source: RemoteSource
    refactorer: RemoteRefactorer
    decisions: RemoteDecisions
    scope: trio.CancelScope


@dataclass
class Leader:
    """One leader's daemon."""

    name: str
    term: int
    server: TokenServer
    source: object
    made: object  # its `ModelledReplicas`, None where its source is another
    scope: trio.CancelScope
    leading: trio.CancelScope  # cancelled, the daemon lives on and does not lead any more
    higher_terms: list


class Cluster:
    """Leaders and gateways that come and go. Everything is logged into ``log_text``."""

    def __init__(self, nursery, network):
        self.network = network
        self.board = LeaderBoard()
        self.log_text = io.StringIO()
        self.nursery = nursery

    def events(self, name, process=None):
        lines = map(json.loads, self.log_text.getvalue().splitlines())
        return [line for line in lines if line["event"] == name and process in (None, line["process"])]

    async def until(self, condition):
        with trio.fail_after(UNTIL_S_MAX):
            while not condition():
                await trio.sleep(0.002)

    async def gateway(self, name="g1", *, board=None, limits=RemoteLimits(), model=MODEL_DIGEST, facts=FACTS):
        """Start a gateway; it may have no leader yet."""
        return await self.nursery.start(self._gateway, name, board or self.board, limits, model, facts)

    async def lead(self, term, *, announce=True, **options):
        """Start a leader of ``term``, which serves before this returns; let it be known, unless not ``announce``."""
        leader = await self.nursery.start(self._lead, f"leader-{term}", term, options)
        if announce:
            self.board.announce(f"memory://{leader.name}", term)
        return leader

    async def attached(self, gateway, term):
        """Wait until a gateway may ask the leader of ``term``."""
        await self.until(lambda: gateway.line.session is not None and gateway.line.session.term == term)
        await self.until(lambda: gateway.source.status().ready)

    def kill(self, daemon):
        """kill -9."""
        self.network.crash(daemon.name)
        daemon.scope.cancel()

    async def _gateway(self, name, board, limits, model, facts, *, task_status):
        log = EventLog(self.log_text, process=name)
        with trio.CancelScope() as scope:
            async with self.network.open(name, name) as transport:
                line = LeaderLine(transport, board, GatewayIdentity(name, model), log)
                source = RemoteSource(line, facts, log, limits)
                task_status.started(Gateway(name, line, source, RemoteRefactorer(line), RemoteDecisions(line), scope))
                await line.run()

    async def _lead(self, name, term, options, *, task_status):
        with trio.CancelScope() as scope:
            if (source := options.pop("source", None)) is not None:
                await self._serve(name, term, source, None, scope, task_status, **options)
            else:
                server = {key: options.pop(key) for key in ("server_limits", "decisions") if key in options}
                async with modelled_replicas(seed=term, **options) as made:
                    await made.wait_ready()
                    await self._serve(name, term, made.replicas, made, scope, task_status, **server)

    async def _serve(
        self, name, term, source, made, scope, task_status, *, refactorer=None, decisions=None, server_limits=None
    ):
        log = EventLog(self.log_text, process=name)
        higher_terms = []
        services = LeaderServices(source, made.reshaper if made else refactorer, decisions, MODEL.vocabulary)
        server = TokenServer(
            services,
            LeaderIdentity(name, term, MODEL_DIGEST),
            log,
            higher_term=higher_terms.append,
            limits=server_limits or TokenServerLimits(),
        )
        async with self.network.open(name, name) as transport, trio.open_nursery() as nursery:
            listener = await transport.listen(f"memory://{name}", name=f"door of {name}", limits=GATEWAY_LIMITS)
            usher = Usher(listener, log)
            usher.lead(GATEWAY_PURPOSE, server.host)
            await nursery.start(usher.run)
            leading = await nursery.start(lead_until_over, server)
            task_status.started(Leader(name, term, server, source, made, scope, leading, higher_terms))


async def lead_until_over(server, *, task_status):
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            task_status.started(scope)


@asynccontextmanager
async def cluster(seed=1, weather=Weather()):
    """Yield a `Cluster` without leader or gateway; all that it has ends at the end."""
    async with trio.open_nursery() as nursery:
        yield Cluster(nursery, MemoryNetwork(seed, weather))
        nursery.cancel_scope.cancel()


def one_stream(**limits):
    """Limits of a server that few requests fill."""
    return TokenServerLimits(each=ConversationLimits(**limits))
