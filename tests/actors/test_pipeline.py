"""The real actors together, in virtual time, over a network with seeded weather."""

import json

import pytest
import trio
from flexpipe.actors.generation import GenerationFailedError, GenerationRequest
from flexpipe.actors.pipeline_spec import SupervisorLimits
from flexpipe.actors.supervisor_machine import PipelineState
from flexpipe.runtime.interface import EngineError, SamplingParams
from flexpipe.sim.modelled_engine import ModelledEngine, expected_tokens
from flexpipe.transport.memory import Weather
from modelled_pipeline import MODEL, modelled_pipeline

GREEDY = SamplingParams(temperature=0.0)


async def generate(pipeline, prompt, params=GREEDY, count=12):
    async with pipeline.open(GenerationRequest(tuple(prompt), params, count)) as events:
        return [event.token.token_id async for event in events]


@pytest.mark.parametrize("cuts", [(), (3,), (2, 4), (1, 2, 3, 4, 5)], ids=lambda cuts: f"{len(cuts) + 1} stages")
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


async def test_before_it_serves_a_pipeline_refuses_and_says_why(autojump_clock):
    async with modelled_pipeline() as world:
        with pytest.raises(GenerationFailedError, match="starting") as caught:
            await generate(world.pipeline, [1])
        assert caught.value.kind == "not_ready"
        await world.wait_ready()


async def test_a_killed_stage_fails_every_stream_and_then_a_new_epoch_serves(autojump_clock):
    failures = []

    async def one(index):
        with pytest.raises(GenerationFailedError) as caught:
            await generate(world.pipeline, range(10), count=400)
        failures.append(caught.value.kind)

    async with modelled_pipeline() as world:
        await world.wait_ready()
        async with trio.open_nursery() as nursery:
            for index in range(4):
                nursery.start_soon(one, index)
            await trio.sleep(0.5)
            world.launcher.processes[1].signal(kill=True)
            with trio.fail_after(2):
                await world.wait_not_ready()
        assert failures == ["stage_lost"] * 4
        await world.wait_ready()
        assert world.pipeline.status().epoch == 2
        assert await generate(world.pipeline, [1, 2, 3]) == expected_tokens(MODEL, [1, 2, 3], GREEDY, 12)


async def test_a_hung_stage_is_noticed_by_its_silence(autojump_clock):
    async with modelled_pipeline() as world:
        await world.wait_ready()
        for ends in (("daemon", "stage-1-1"), ("stage-1-1", "daemon")):
            world.network.cut(*ends)
        with trio.fail_after(15):
            await world.wait_not_ready()
        assert "stage 1 was lost" in world.pipeline.status().reason


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


async def test_a_corrupted_frame_ends_the_epoch_by_name_and_not_the_server(autojump_clock):
    async with modelled_pipeline() as world:
        await world.wait_ready()
        world.network.corrupt_next("stage-1-0", "stage-1-1")
        with pytest.raises(GenerationFailedError):
            await generate(world.pipeline, range(10), count=100)
        await world.wait_ready()
        assert await generate(world.pipeline, [4]) == expected_tokens(MODEL, [4], GREEDY, 12)


class FailingEngine(ModelledEngine):
    """Runs out of memory while it loads."""

    async def load(self, spec, progress):
        raise EngineError("the device has 2 GiB and the weights take 3 GiB")


async def test_a_stage_that_cannot_load_ends_the_start_with_its_own_sentence(autojump_clock):
    async with modelled_pipeline(engine=lambda: FailingEngine(MODEL)) as world:
        while world.supervisor.machine.state is not PipelineState.FAILED:
            await trio.sleep(0.01)
        assert "the weights take 3 GiB" in world.pipeline.status().reason
        assert world.pipeline.status().epoch == 1


async def test_status_names_each_stage(autojump_clock):
    async with modelled_pipeline(cuts=(2,), blocks=8, supervisor_limits=SupervisorLimits(drain_s_max=1)) as world:
        await world.wait_ready()
        await trio.sleep(1.1)
        first, second = world.pipeline.status().stages
        assert (first["first_atom"], first["last_atom"], first["layers"]) == ("layers.0", "layers.1", [0, 1])
        assert (second["stage"], second["state"], second["epoch"]) == (1, "serving", 1)
        assert (second["kv_pages_used"], second["kv_pages_free"]) == (0, 8)
        assert first["pid"] != 0


async def test_the_log_tells_a_request_s_life(autojump_clock):
    async with modelled_pipeline() as world:
        await world.wait_ready()
        await generate(world.pipeline, [1, 2, 3], count=2)
    events = [json.loads(line) for line in world.log.getvalue().splitlines()]
    mine = [event["event"] for event in events if event.get("request") == 0]
    assert mine == ["request_queued", "request_ended"]
    names = {event["event"] for event in events}
    assert {"pipeline_up", "step_sent", "stage_step", "stage_leaving", "stage_exited"} <= names
