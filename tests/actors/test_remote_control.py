"""What operators ask of a gateway that is not the leader: status, refactorings and decisions, also while leaders are lost."""

import sys
from contextlib import aclosing, asynccontextmanager

import pytest
import trio
from flexpipe import client_errors
from flexpipe.actors.decision_journal import DecisionJournal
from flexpipe.actors.event_log import EventLog
from flexpipe.actors.generation import GenerationFailedError, GenerationRequest
from flexpipe.actors.refactor import (
    BusyRefusedError,
    RefactorFailed,
    RefactorProgress,
    RefactorRefusedError,
    RefactorReport,
    RefactorRequest,
    SameShapeRefusedError,
)
from flexpipe.client import AsyncClient
from flexpipe.client_errors import NotFoundError, RefactorLostError, UnavailableError
from flexpipe.runtime.interface import SamplingParams
from flexpipe.sim.modelled_engine import expected_tokens
from flexpipe.transport.memory import Weather
from gateway_harness import running_gateway
from modelled_leaders import cluster
from modelled_pipeline import MODEL
from toy_refactorer import ToyRefactorer
from toy_token_source import ToyTokenSource

WINDY = Weather(0.001, 0.02, loss_probability=0.02)


async def told(gateway, request):
    async with aclosing(gateway.refactorer.refactor(request)) as events:
        return [event async for event in events]


@asynccontextmanager
async def toy_cluster(*, decisions=None):
    """A gateway, and a leader with toys."""
    async with cluster() as made, trio.open_nursery() as nursery:
        source, refactorer = ToyTokenSource(), ToyRefactorer()
        await nursery.start(source.run)
        await nursery.start(refactorer.run)
        gateway = await made.gateway()
        leader = await made.lead(1, source=source, refactorer=refactorer, decisions=decisions)
        await made.attached(gateway, 1)
        yield made, gateway, leader, refactorer
        nursery.cancel_scope.cancel()


async def test_a_refactoring_that_a_gateway_asks_for_is_told_whole_while_streams_run(autojump_clock):
    async with cluster(weather=WINDY) as made:
        asked, other = await made.gateway("g1"), await made.gateway("g2")
        await made.lead(1)
        for gateway in (asked, other):
            await made.attached(gateway, 1)
        prompt, params = tuple(range(30)), SamplingParams(temperature=0.8, seed=5)
        got = []

        async def generate():
            async with other.source.open(GenerationRequest(prompt, params, 150)) as events:
                got.extend([event.token.token_id async for event in events])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(generate)
            await trio.sleep(0.5)
            *progress, report = await told(asked, RefactorRequest(stages=4))
            await made.until(lambda: len(other.source.status().stages) == 4)
        assert isinstance(report, RefactorReport)
        assert [*dict.fromkeys(event.phase for event in progress)] == [
            "plan", "load", "copy", "commit", "switch", "release",
        ]  # fmt: skip
        assert got == expected_tokens(MODEL, prompt, params, 150)


async def test_refusals_keep_their_kind(autojump_clock):
    async with cluster() as made:
        gateway = await made.gateway()
        await made.lead(1)
        await made.attached(gateway, 1)
        await told(gateway, RefactorRequest(stages=4))
        with pytest.raises(SameShapeRefusedError):
            await told(gateway, RefactorRequest(stages=4))
        with pytest.raises(RefactorRefusedError, match="13 stages"):
            await told(gateway, RefactorRequest(stages=13))
        async with aclosing(gateway.refactorer.refactor(RefactorRequest(stages=2))) as events:
            assert isinstance(await anext(events), RefactorProgress)
            with pytest.raises(BusyRefusedError):
                await told(gateway, RefactorRequest(stages=3))
        await made.until(lambda: len(gateway.source.status().stages) == 2)  # whoever watches


@pytest.mark.parametrize("phase", ["plan", "load", "copy", "commit", "switch", "release"])
async def test_a_leader_that_is_lost_in_a_refactoring_ends_it_with_one_event(autojump_clock, phase):
    async with toy_cluster() as (made, gateway, leader, refactorer):
        refactorer.hold((phase,))
        ended = []

        async def watch():
            ended.extend(await told(gateway, RefactorRequest(stages=4)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await refactorer.until_running()
            await trio.sleep(1)
            made.kill(leader)
        *progress, last = ended
        assert all(isinstance(event, RefactorProgress) for event in progress)
        assert isinstance(last, RefactorFailed)
        assert last.reason == "lost"
        assert "leader-1, which led in term 1, was lost" in last.sentence


async def test_without_a_leader_nothing_can_be_asked(autojump_clock):
    async with cluster() as made:
        gateway = await made.gateway()
        with pytest.raises(GenerationFailedError, match="no daemon is known to lead"):
            await told(gateway, RefactorRequest(stages=4))
        with pytest.raises(GenerationFailedError, match="no daemon is known to lead"):
            await gateway.decisions.recall(3)


async def test_a_question_whose_leader_dies_is_answered_with_that(autojump_clock):
    async with toy_cluster() as (made, gateway, leader, _):
        made.network.cut(leader.name, "g1")
        with pytest.raises(GenerationFailedError, match="leader-1, which led in term 1, was lost"):
            await gateway.decisions.recall(3)


async def carried_out(client, **options):
    """Have it refactored; the events told."""
    async with await client.refactor(**options) as run:
        return [event async for event in run]


async def test_a_gateways_routes_say_what_the_leader_says():
    decisions = DecisionJournal(EventLog(sys.stderr, process="leader"))
    async with (
        toy_cluster(decisions=decisions) as (made, gateway, leader, _),
        running_gateway(gateway.source, refactorer=gateway.refactorer, decisions=gateway.decisions) as served,
        AsyncClient(served.url) as client,
    ):
        assert await client.decisions() == []
        assert (await client.ready()).ready
        assert (await client.status())["epoch"] == 7
        assert (await carried_out(client, stages=4))[0].phase == "plan"
        with pytest.raises(client_errors.RefactorRefusedError, match="13 stages are more"):
            await carried_out(client, stages=13)
        made.kill(leader)
        await made.until(lambda: not gateway.source.status().ready)
        readiness = await client.ready()
        assert not readiness.ready
        assert "leader-1" in readiness.reason
        for ask in (client.decisions, lambda: client.complete("a toy prompt", max_tokens=2)):
            with pytest.raises(UnavailableError) as error:
                await ask()
            assert error.value.retry_after_s > 0


async def test_a_client_hears_that_the_leader_was_lost():
    async with (
        toy_cluster() as (made, gateway, leader, refactorer),
        running_gateway(gateway.source, refactorer=gateway.refactorer, decisions=gateway.decisions) as served,
        AsyncClient(served.url) as client,
        trio.open_nursery() as nursery,
    ):
        with pytest.raises(NotFoundError):
            await client.decisions()  # nobody decides anything
        refactorer.hold(("copy",))

        async def kill_midway():
            await refactorer.until_running()
            await trio.sleep(0.1)
            made.kill(leader)

        nursery.start_soon(kill_midway)
        with pytest.raises(RefactorLostError, match="was lost"):
            await carried_out(client, stages=4)
