"""The real actors together, in virtual time, over a network with seeded weather."""

import json

import pytest
import trio
from flexpipe.actors.coordinator_events import PipelineState
from flexpipe.actors.generation import GenerationFailedError, GenerationRequest
from flexpipe.actors.worker_machine import WorkerLimits
from flexpipe.runtime.interface import EngineError, SamplingParams
from flexpipe.sim.modelled_engine import ModelledEngine, expected_tokens
from flexpipe.transport.memory import Weather
from modelled_pipeline import MODEL, modelled_pipeline

GREEDY = SamplingParams(temperature=0.0)
VARIED = SamplingParams(temperature=0.8, seed=5, presence_penalty=1.0, logprobs=2)


async def generate(pipeline, prompt, params=GREEDY, count=12):
    async with pipeline.open(GenerationRequest(tuple(prompt), params, count)) as events:
        tokens = []
        async for event in events:
            assert event.index == len(tokens)
            tokens.append(event.token.token_id)
        return tokens


@pytest.mark.parametrize(
    "cuts", [(), (5,), (4, 8), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)], ids=lambda cuts: f"{len(cuts) + 1} stages"
)
async def test_a_pipeline_of_any_depth_gives_the_right_tokens_to_many_at_once(autojump_clock, cuts):
    got = {}

    async def one(index, prompt):
        got[index] = await generate(world.pipeline, prompt, SamplingParams(seed=index, presence_penalty=1.0))

    async with modelled_pipeline(cuts=cuts, weather=Weather(0.001, 0.02)) as world:
        await world.wait_ready()
        async with trio.open_nursery() as nursery:
            for index in range(9):
                nursery.start_soon(one, index, range(index, 20 + 7 * index))
    for index in range(9):
        params = SamplingParams(seed=index, presence_penalty=1.0)
        assert got[index] == expected_tokens(MODEL, range(index, 20 + 7 * index), params, 12)


@pytest.mark.parametrize(("stages_at_once", "most"), [(None, 3), (2, 2), (9, 3)])
async def test_no_more_steps_are_under_way_than_stages_can_compute_at_once(autojump_clock, stages_at_once, most):
    seen = set()

    async def look(world):
        while True:
            seen.add(world.scheduler.counts().steps_under_way)
            await trio.sleep(0.001)

    async with modelled_pipeline(steps_under_way_max=stages_at_once) as world:
        await world.wait_ready()
        async with trio.open_nursery() as looking:
            looking.start_soon(look, world)
            async with trio.open_nursery() as nursery:
                for index in range(8):
                    nursery.start_soon(generate, world.pipeline, range(index, 20))
            looking.cancel_scope.cancel()
    assert max(seen) == most


async def test_before_it_serves_a_pipeline_refuses_and_says_why(autojump_clock):
    async with modelled_pipeline() as world:
        with pytest.raises(GenerationFailedError, match="starting") as caught:
            await generate(world.pipeline, [1])
        assert caught.value.kind == "not_ready"
        await world.wait_ready()


async def with_streams(world, harm, *, count=60, streams=4):
    """Run streams, do ``harm`` while they run, and check that every one gets its tokens all the same."""
    got = {}

    async def one(index):
        got[index] = await generate(world.pipeline, range(index, 20 + 9 * index), VARIED, count)

    await world.wait_ready()
    async with trio.open_nursery() as nursery:
        for index in range(streams):
            nursery.start_soon(one, index)
        await trio.sleep(0.5)
        await harm()
    for index in range(streams):
        assert got[index] == expected_tokens(MODEL, range(index, 20 + 9 * index), VARIED, count)
    await world.wait_ready()
    assert world.scheduler.counts().kv_blocks_used == 0


@pytest.mark.parametrize("worker", [0, 1, 2])
async def test_streams_outlive_the_death_of_a_worker(autojump_clock, worker):
    async with modelled_pipeline() as world:

        async def harm():
            world.launcher.processes[worker].signal(kill=True)
            with trio.fail_after(2):
                await world.wait_not_ready()
            assert f"worker {worker} was lost" in world.pipeline.status().reason

        await with_streams(world, harm)
        assert world.pipeline.status().epoch == 2
        assert world.machine.route.workers == tuple(3 if other == worker else other for other in range(3))


async def test_streams_outlive_the_death_of_every_worker_one_after_the_other(autojump_clock):
    async with modelled_pipeline() as world:

        async def harm():
            for worker in range(3):
                world.launcher.processes[worker].signal(kill=True)
                await trio.sleep(0.15)

        await with_streams(world, harm, count=120)


async def test_a_request_that_comes_while_the_pipeline_recovers_waits_for_it(autojump_clock):
    async with modelled_pipeline() as world:
        await world.wait_ready()
        world.launcher.processes[1].signal(kill=True)
        await world.wait_not_ready()
        assert await generate(world.pipeline, [1, 2, 3]) == expected_tokens(MODEL, [1, 2, 3], GREEDY, 12)


async def test_a_hung_worker_is_noticed_by_its_silence_and_replaced(autojump_clock):
    async with modelled_pipeline() as world:

        async def harm():
            for ends in (("daemon", "worker-1"), ("worker-1", "daemon")):
                world.network.cut(*ends)
            with trio.fail_after(15):
                await world.wait_not_ready()
            assert "worker 1 was lost" in world.pipeline.status().reason

        await with_streams(world, harm, count=1500 // 10)


async def test_a_pipeline_whose_workers_die_again_and_again_is_given_up(autojump_clock):
    async def murder():
        while True:
            await trio.sleep(0.2)
            for process in list(world.launcher.processes.values())[:1]:
                process.signal(kill=True)

    async with modelled_pipeline() as world:
        await world.wait_ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(murder)
            with pytest.raises(GenerationFailedError, match="was lost") as caught:
                await generate(world.pipeline, [1, 2], count=500)
            nursery.cancel_scope.cancel()
        assert caught.value.kind == "stage_lost"
        assert world.machine.state is PipelineState.FAILED


async def test_leaving_a_stream_early_frees_its_pages(autojump_clock):
    async with modelled_pipeline() as world:
        await world.wait_ready()
        async with world.pipeline.open(GenerationRequest(tuple(range(40)), GREEDY, 300)) as events:
            async for event in events:
                if event.index == 3:
                    break
            assert world.scheduler.counts().kv_blocks_used > 0
        await trio.sleep(1)
        assert world.scheduler.counts().kv_blocks_used == 0
        assert world.scheduler.counts().running == 0


async def test_a_corrupted_frame_ends_a_worker_by_name_and_no_stream(autojump_clock):
    async with modelled_pipeline() as world:

        async def harm():
            world.network.corrupt_next("worker-0", "worker-1")
            await world.wait_not_ready()
            assert "worker 1 failed" in world.pipeline.status().reason

        await with_streams(world, harm)


class FailingEngine(ModelledEngine):
    """Runs out of memory while it loads."""

    async def load(self, spec, atoms, progress):
        raise EngineError("the device has 2 GiB and the weights take 3 GiB")


async def test_a_worker_that_cannot_load_ends_the_start_with_its_own_sentence(autojump_clock):
    async with modelled_pipeline(engine=lambda: FailingEngine(MODEL)) as world:
        while world.machine.state is not PipelineState.FAILED:
            await trio.sleep(0.01)
        assert "the weights take 3 GiB" in world.pipeline.status().reason
        assert world.machine.highest_epoch == 1


async def test_status_names_each_stage(autojump_clock):
    async with modelled_pipeline(cuts=(4,), blocks=8, worker_limits=WorkerLimits(drain_s_max=1)) as world:
        await world.wait_ready()
        await trio.sleep(1.1)
        first, second = world.pipeline.status().stages
        assert (first["first_atom"], first["last_atom"], first["layers"]) == ("atom 0", "atom 3", [0, 1])
        assert (second["stage"], second["worker"], second["state"], second["epoch"]) == (1, 1, "serving", 1)
        assert (second["kv_pages_used"], second["kv_pages_free"]) == (0, 8)
        assert first["pid"] != 0


async def test_the_log_tells_a_request_s_life(autojump_clock):
    async with modelled_pipeline() as world:
        await world.wait_ready()
        await generate(world.pipeline, [1, 2, 3], count=2)
    events = [json.loads(line) for line in world.log.getvalue().splitlines()]
    mine = [event["event"] for event in events if event.get("request") == 0]
    assert mine == ["request_queued", "request_admitted", "request_decoding", "request_ended"]
    names = {event["event"] for event in events}
    assert {"pipeline_up", "step_sent", "stage_step", "worker_leaving", "worker_exited"} <= names
