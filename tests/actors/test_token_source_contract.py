"""What every `TokenSource` promises. Add a world to `WORLDS` to hold another implementation to it.

A world is an asynchronous context manager that gives an object with: ``source``; ``prompt`` (ids it can serve);
``requests_max`` (so many are taken at once, one more is refused); ``context_tokens``; ``hold()`` and ``release()`` (no token
is made in between); ``lose_stage()``, after which it is given up; and ``until(condition)``, which waits until the condition holds.
"""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
from flexpipe.actors.generation import GenerationFailedError, GenerationRequest
from flexpipe.actors.load_meter import LoadMeter
from flexpipe.actors.pipeline_spec import CoordinatorLimits
from flexpipe.actors.refactor import RefactorRequest
from flexpipe.actors.scheduler_machine import SchedulerLimits
from flexpipe.policies.control.signals import Signals
from flexpipe.runtime.interface import SamplingParams
from flexpipe.sim.modelled_engine import ModelledEngine
from modelled_leaders import cluster
from modelled_pipeline import CONTEXT_TOKENS, MODEL, modelled_pipeline, modelled_replicas
from toy_token_source import ToyTokenSource

GREEDY = SamplingParams(temperature=0.0)


@asynccontextmanager
async def toy_world():
    source = ToyTokenSource(requests_max=4, context_tokens=64)
    async with trio.open_nursery() as nursery:
        await nursery.start(source.run)
        yield SimpleNamespace(
            source=source,
            prompt=tuple(b"a toy prompt"),
            requests_max=source.requests_max,
            context_tokens=source.context_tokens,
            hold=source.hold,
            release=source.release,
            lose_stage=source.lose_stage,
            until=source.until,
        )
        nursery.cancel_scope.cancel()


class GatedEngine(ModelledEngine):
    """Computes only while its gate is open."""

    def __init__(self, gate):
        super().__init__(MODEL)
        self._gate = gate

    async def run(self, atoms, batch, hidden, rows):
        await self._gate[0].wait()
        return await super().run(atoms, batch, hidden, rows)


@asynccontextmanager
async def pipeline_world():
    """The real scheduler, coordinator and workers over an in-memory network; no loss of a worker is recovered from."""
    gate = [trio.Event()]
    gate[0].set()
    limits = SchedulerLimits(queue_requests_max=2, running_requests_max=2)
    never_again = CoordinatorLimits(restarts_max=0)
    async with modelled_pipeline(
        limits=limits, engine=lambda: GatedEngine(gate), coordinator_limits=never_again
    ) as made:
        await made.wait_ready()

        async def until(condition):
            while not condition():
                await trio.sleep(0.001)

        yield SimpleNamespace(
            source=made.pipeline,
            prompt=(1, 2, 3, 4),
            requests_max=4,
            context_tokens=CONTEXT_TOKENS,
            hold=lambda: gate.__setitem__(0, trio.Event()),
            release=lambda: gate[0].set(),  # noqa: PLW0108 - the event changes
            lose_stage=lambda: made.launcher.processes[1].signal(kill=True),
            until=until,
        )
        gate[0].set()


@asynccontextmanager
async def replicas_world():
    """Two replicas as one source; both are given up when they lose a worker."""
    gate = [trio.Event()]
    gate[0].set()
    limits = SchedulerLimits(queue_requests_max=1, running_requests_max=1)
    never_again = CoordinatorLimits(restarts_max=0)
    async with modelled_replicas(
        limits=limits, engine=lambda: GatedEngine(gate), coordinator_limits=never_again
    ) as made:
        await made.wait_ready()
        await made.done(RefactorRequest(replicas=2))

        def lose_stage():
            for number in made.numbers():
                made.made[number].launcher.processes[1].signal(kill=True)

        yield SimpleNamespace(
            source=made.replicas,
            prompt=(1, 2, 3, 4),
            requests_max=4,
            context_tokens=CONTEXT_TOKENS,
            hold=lambda: gate.__setitem__(0, trio.Event()),
            release=lambda: gate[0].set(),  # noqa: PLW0108 - the event changes
            lose_stage=lose_stage,
            until=made.until,
        )
        gate[0].set()


@asynccontextmanager
async def metered_world():
    """A toy behind the autopilot's meter."""
    async with toy_world() as world:
        world.source = LoadMeter(world.source, Signals(), 0.1)
        yield world


@asynccontextmanager
async def remote_world():
    """The source of a gateway, whose leader has the two replicas."""
    async with replicas_world() as world, cluster() as made:
        gateway = await made.gateway()
        await made.lead(1, source=world.source)
        await made.attached(gateway, 1)
        world.source = gateway.source
        yield world


WORLDS = [toy_world, pipeline_world, replicas_world, metered_world, remote_world]


@pytest.fixture(params=WORLDS, ids=lambda world: world.__name__)
async def world(request):
    async with request.param() as made:
        with trio.fail_after(30):
            yield made


def request_of(world, max_tokens=8, stop_token_ids=(), params=GREEDY):
    return GenerationRequest(world.prompt, params, max_tokens, stop_token_ids)


async def read_all(source, request):
    async with source.open(request) as events:
        return [event async for event in events]


async def read_indices(events, seen):
    async for event in events:
        seen.append(event.index)


def held_requests(world):
    status = world.source.status()
    return status.running + status.waiting


async def test_tokens_come_once_each_in_order_and_end_with_length(world):
    events = await read_all(world.source, request_of(world, max_tokens=8))
    assert [event.index for event in events] == list(range(8))
    assert [event.finish for event in events] == [None] * 7 + ["length"]


async def test_a_stop_token_is_the_last_event_and_says_stop(world):
    tokens = [event.token.token_id for event in await read_all(world.source, request_of(world, max_tokens=6))]
    stop = tokens[3]
    events = await read_all(world.source, request_of(world, max_tokens=6, stop_token_ids=(stop,)))
    assert [event.token.token_id for event in events] == tokens[: tokens.index(stop) + 1]
    assert events[-1].finish == "stop"


async def test_a_stop_token_as_the_last_allowed_one_says_stop(world):
    tokens = [event.token.token_id for event in await read_all(world.source, request_of(world, max_tokens=1))]
    (event,) = await read_all(world.source, request_of(world, max_tokens=1, stop_token_ids=(tokens[0],)))
    assert event.finish == "stop"


async def test_the_same_request_gives_the_same_tokens(world):
    request = request_of(world, params=SamplingParams(temperature=1.0, seed=3))
    first, second = await read_all(world.source, request), await read_all(world.source, request)
    assert [event.token.token_id for event in first] == [event.token.token_id for event in second]


@pytest.mark.parametrize("delivered", [0, 1, 5])
async def test_a_request_that_was_begun_elsewhere_goes_on_where_it_stopped(world, delivered):
    params = SamplingParams(temperature=0.9, seed=3, repetition_penalty=1.2, logprobs=1)
    request = request_of(world, params=params)
    whole = await read_all(world.source, request)
    outputs = tuple(event.token.token_id for event in whole[:delivered])
    async with world.source.open(request, outputs) as events:
        assert [event async for event in events] == whole[delivered:]


async def test_a_full_queue_does_not_refuse_what_was_accepted_elsewhere(world):
    world.hold()
    rest = []

    async def go_on():
        async with world.source.open(request_of(world, max_tokens=3), ()) as events:
            rest.extend([event.index async for event in events])

    async with trio.open_nursery() as nursery:
        for _ in range(world.requests_max):
            nursery.start_soon(read_all, world.source, request_of(world, max_tokens=3))
        await world.until(lambda: held_requests(world) == world.requests_max)
        nursery.start_soon(go_on)
        await world.until(lambda: held_requests(world) == world.requests_max + 1)
        world.release()
    assert rest == [0, 1, 2]


async def test_log_probabilities_come_when_asked_for(world):
    (event,) = await read_all(
        world.source, request_of(world, max_tokens=1, params=SamplingParams(temperature=0.0, logprobs=2))
    )
    assert event.token.logprob is not None
    assert len(event.token.top) == 2


async def test_a_finished_request_holds_nothing(world):
    await read_all(world.source, request_of(world))
    await world.until(lambda: held_requests(world) == 0)


async def test_leaving_early_frees_the_request(world):
    world.hold()
    async with world.source.open(request_of(world)):
        assert held_requests(world) == 1
    world.release()
    await world.until(lambda: held_requests(world) == 0)


async def test_leaving_in_the_middle_frees_the_request(world):
    async with world.source.open(request_of(world)) as events:
        async for _ in events:
            break
    await world.until(lambda: held_requests(world) == 0)


async def test_a_cancelled_reader_frees_its_request(world):
    world.hold()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, world.source, request_of(world))
        await world.until(lambda: held_requests(world) == 1)
        nursery.cancel_scope.cancel()
    world.release()
    await world.until(lambda: held_requests(world) == 0)


async def test_a_reader_that_does_not_read_delays_no_other(world):
    async with world.source.open(request_of(world)) as unread:
        assert len(await read_all(world.source, request_of(world))) == 8
        assert [event.index async for event in unread] == list(range(8))


async def test_one_request_too_many_is_refused_as_overloaded_and_the_others_go_on(world):
    world.hold()
    counts = []

    async def count():
        counts.append(len(await read_all(world.source, request_of(world, max_tokens=3))))

    async with trio.open_nursery() as nursery:
        for _ in range(world.requests_max):
            nursery.start_soon(count)
        await world.until(lambda: held_requests(world) == world.requests_max)
        with pytest.raises(GenerationFailedError) as refusal:
            await read_all(world.source, request_of(world))
        world.release()
    assert refusal.value.kind == "overloaded"
    assert refusal.value.retry_after_s > 0
    assert counts == [3] * world.requests_max


async def test_a_prompt_that_fills_the_context_is_refused_as_too_long(world):
    prompt = (world.prompt * world.context_tokens)[: world.context_tokens]
    with pytest.raises(GenerationFailedError) as refusal:
        await read_all(world.source, GenerationRequest(prompt, GREEDY, 1, ()))
    assert refusal.value.kind == "too_long"
    assert held_requests(world) == 0


async def test_a_lost_stage_ends_its_requests_with_one_error_and_the_source_is_not_ready(world):
    async with world.source.open(request_of(world, world.context_tokens - len(world.prompt))) as events:
        seen = [(await anext(events)).index]
        world.hold()
        world.lose_stage()
        with pytest.raises(GenerationFailedError) as failure:
            await read_indices(events, seen)
    assert failure.value.kind == "stage_lost"
    assert seen == list(range(len(seen)))
    assert not world.source.status().ready
    assert world.source.status().reason
    with pytest.raises(GenerationFailedError) as refusal:
        await read_all(world.source, request_of(world))
    assert refusal.value.kind == "not_ready"
    await world.until(lambda: held_requests(world) == 0)
