"""What the autopilot decided, for whoever asks: the journal, the HTTP route and the SDK."""

import io

import pytest
import trio
from flexpipe.actors.decision_journal import DecisionJournal
from flexpipe.actors.event_log import EventLog
from flexpipe.client import AsyncClient
from flexpipe.client_errors import FlexPipeError
from flexpipe.policies.control.controller import decide
from flexpipe.policies.control.decision import ControllerMemory, Limits
from flexpipe.policies.control.granularity import Shape
from flexpipe.policies.control.granularity_fluid import FluidPolicy
from flexpipe.policies.control.observation import Observation
from gateway_harness import running_gateway

ONE = Shape(1, 1, tpot_s=0.1, capacity_tokens_per_s=100)


def decided(observed_s=100.0, present=ONE):
    _, decision = decide(
        ControllerMemory(), Observation(1.0, observed_s=observed_s), present, [], FluidPolicy(), Limits()
    )
    return decision


def journal(*decisions):
    made = DecisionJournal(EventLog(io.StringIO(), process="daemon"), clock=lambda: 12.5)
    for decision in decisions:
        made.write(decision)
    return made


def test_what_says_the_same_again_is_counted():
    made = journal(decided(), decided(), decided(), decided(observed_s=0.0))
    first, second = made.last(9)
    assert (first.repeated, second.repeated) == (0, 2)
    assert second.time_s == 12.5
    assert "are needed" in second.words


async def test_the_last_decisions_can_be_asked_for():
    made = journal(*(decided(present=Shape(n, 1, 0.1, 100)) for n in range(1, 6)))
    async with running_gateway(decisions=made) as gateway, AsyncClient(gateway.url) as client:
        last = await client.decisions(2)
        assert [written["decision"]["present"]["stages"] for written in last] == [4, 5]
        assert last[0]["words"] == made.last(2)[0].words
        assert len(await client.decisions()) == 5


@pytest.mark.parametrize("last", ["0", "1001", "-1", "many", "", "9" * 5000, "٣"])
async def test_a_number_that_is_none_is_refused(last):
    async with running_gateway(decisions=journal()) as gateway, gateway.http() as client:
        answer = await client.get("/flexpipe/v1/decisions", params={"last": last})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "last"


async def test_without_an_autopilot_there_are_none():
    async with running_gateway() as gateway, AsyncClient(gateway.url) as client:
        with pytest.raises(FlexPipeError, match="without --auto"):
            await client.decisions()
        await trio.lowlevel.checkpoint()
