"""What the autopilot's meter makes of requests that pass through it."""

import pytest
import trio
from flexpipe.actors.generation import GenerationFailedError, GenerationRequest
from flexpipe.actors.load_meter import LoadMeter
from flexpipe.policies.control.signals import Signals, SignalSettings
from flexpipe.runtime.interface import SamplingParams
from toy_token_source import ToyTokenSource


@pytest.fixture
async def source(autojump_clock):
    made = ToyTokenSource(requests_max=2, context_tokens=64)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()


def metered(source):
    signals = Signals(SignalSettings(bin_s=0.1))
    return LoadMeter(source, signals, 0.5), signals


def request(max_tokens=8):
    return GenerationRequest(tuple(b"ten bytes!"), SamplingParams(temperature=0.0), max_tokens)


async def test_arrivals_weigh_their_prompt_and_what_they_are_expected_to_make(source):
    meter, signals = metered(source)
    async with meter.open(request()) as events:
        made = [event async for event in events]
    await trio.sleep(1)
    seen = signals.observe(trio.current_time())
    assert seen.arrivals == 1
    assert seen.tokens_per_request == pytest.approx(10 * 0.5 + 8)
    assert meter.served_tokens == 10 * 0.5 + len(made)
    assert seen.service_s is None or seen.service_s >= 0


async def test_outputs_that_are_shorter_than_allowed_are_expected_from_then_on(source):
    meter, signals = metered(source)
    for _ in range(60):
        async with meter.open(request(max_tokens=4)) as events:
            _ = [event async for event in events]
    before = signals.observe(trio.current_time()).tokens_per_request
    async with meter.open(request(max_tokens=50)):
        pass
    await trio.sleep(1)
    after = signals.observe(trio.current_time()).tokens_per_request
    assert after == pytest.approx((60 * 9 + 9) / 61, abs=0.2)
    assert before <= after + 0.2


async def test_a_request_that_is_refused_is_demand_and_a_request_left_at_once_served_nothing(source):
    meter, signals = metered(source)
    source.hold()
    async with meter.open(request()), meter.open(request()):
        with pytest.raises(GenerationFailedError, match="2 requests are under way"):
            async with meter.open(request()):
                pass
    await trio.sleep(1)
    assert signals.observe(trio.current_time()).arrivals == 3
    assert meter.served_tokens == 0
    source.release()
