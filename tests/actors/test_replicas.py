"""Several replicas of a pipeline behind one token source, in virtual time: spreading, coming, going, and failing one by one."""

from collections import Counter
from contextlib import AsyncExitStack, aclosing

import pytest
import trio
from flexpipe.actors.change import IRREVOCABLE
from flexpipe.actors.coordinator import CHANGEABLE_S_MAX
from flexpipe.actors.generation import GenerationFailedError, GenerationRequest
from flexpipe.actors.journal import JournalError
from flexpipe.actors.pipeline_spec import CoordinatorLimits
from flexpipe.actors.refactor import (
    BusyRefusedError,
    RefactorFailed,
    RefactorProgress,
    RefactorRefusedError,
    RefactorReport,
    RefactorRequest,
)
from flexpipe.actors.replicas import ReplicaLimits
from flexpipe.actors.scheduler_machine import SchedulerLimits
from flexpipe.runtime.interface import EngineError, SamplingParams
from flexpipe.sim.modelled_engine import ModelledEngine, expected_tokens
from flexpipe.transport.memory import Weather
from modelled_pipeline import CONTEXT_TOKENS, MODEL, modelled_replicas

VARIED = SamplingParams(
    temperature=0.8, seed=5, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.2, logprobs=2
)
NEVER_AGAIN = CoordinatorLimits(restarts_max=0)


def prompt_of(index):
    return tuple(range(index, 20 + 9 * index))


class Streams:
    """Streams under way, each checked token by token at its end."""

    def __init__(self, world, nursery):
        self.tokens = {}
        self.ended = set()
        self._world = world
        self._nursery = nursery

    async def start(self, count, *, tokens=60):
        """Start streams one after the other: trio would start them in any order."""
        for index in range(len(self.tokens), len(self.tokens) + count):
            self.tokens[index] = []
            await self._nursery.start(self._one, index, tokens)

    async def _one(self, index, count, *, task_status):
        request = GenerationRequest(prompt_of(index), VARIED, count)
        got = self.tokens[index]
        async with self._world.replicas.open(request) as events:
            task_status.started()
            async for event in events:
                assert event.index == len(got)
                assert len(event.token.top) == 2
                got.append(event.token.token_id)
        assert got == expected_tokens(MODEL, prompt_of(index), VARIED, count)
        self.ended.add(index)


async def generate(world, index=0, count=12):
    async with world.replicas.open(GenerationRequest(prompt_of(index), VARIED, count)) as events:
        return [event.token.token_id async for event in events]


def running(world):
    return {at.replica: at.running + at.waiting for at in world.replicas.status().replicas}


def assert_clean(world):
    """Nothing is left over: no request, no block, no process of a replica that is gone, no device twice."""
    for number, made in world.made.items():
        assert made.scheduler.counts().kv_blocks_used == 0
        if number not in world.numbers():
            assert not made.launcher.processes
    devices = [stage["device"] for stage in world.replicas.status().stages]
    assert len(set(devices)) == len(devices)


async def test_a_second_replica_comes_up_beside_the_first_and_takes_new_requests(autojump_clock):
    async with modelled_replicas(weather=Weather(0.001, 0.01)) as world:
        await world.wait_ready()
        async with trio.open_nursery() as nursery:
            streams = Streams(world, nursery)
            await streams.start(4, tokens=100)
            await world.until(lambda: min(map(len, streams.tokens.values())) > 10)
            *progress, report = await world.told(RefactorRequest(replicas=2))
            assert isinstance(report, RefactorReport), report
            assert (report.deed, report.replica, report.kv_sent_bytes) == ("started", 1, 0)
            assert report.pauses.requests == 4
            assert {event.replica for event in progress} == {1}
            assert [*dict.fromkeys(event.phase for event in progress)] == [
                "plan", "load", "copy", "commit", "switch", "release",
            ]  # fmt: skip
            assert running(world) == {0: 4, 1: 0}
            await streams.start(4)
            await world.until(lambda: running(world)[1] > 0)
        assert len(streams.ended) == 8
        stages = world.replicas.status().stages
        assert [(at["replica"], at["stage"], at["first_atom"]) for at in stages] == [
            (0, 0, "atom 0"), (0, 1, "atom 4"), (0, 2, "atom 8"),
            (1, 0, "layers.0.attention"), (1, 1, "layers.2.attention"), (1, 2, "layers.4.attention"),
        ]  # fmt: skip
        assert_clean(world)


async def test_each_request_goes_to_the_replica_with_the_fewest_tokens_of_work(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=3))
        async with AsyncExitStack() as held:
            for length in (100, 10, 11, 12, 200, 5):
                await held.enter_async_context(world.replicas.open(GenerationRequest((1,) * length, VARIED, 200)))
            queued = world.events("request_queued")
        assert [(at["prompt_tokens"], at["replica"]) for at in queued] == [
            (100, 0), (10, 1), (11, 2), (12, 1), (200, 2), (5, 1),
        ]  # fmt: skip


async def test_equal_work_goes_to_the_lowest_number(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        for _ in range(3):
            await generate(world)
        assert [event["replica"] for event in world.events("request_queued")] == [0, 0, 0]


async def test_requests_of_a_retired_replica_end_there_within_the_limit(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        async with trio.open_nursery() as nursery:
            streams = Streams(world, nursery)
            await streams.start(6)
            await world.until(lambda: min(running(world).values()) > 0)
            *progress, report = await world.told(RefactorRequest(replicas=1))
            assert [event.phase for event in progress] == ["switch", "release"]
            assert set(report.phase_ms) == {"switch", "release"}
            assert (report.deed, report.replica, report.requests_reprefilled, report.requests_lost) == (
                "retired",
                1,
                0,
                0,
            )
            assert world.numbers() == [0]
        assert len(streams.ended) == 6
        assert not world.events("request_moved")
        assert_clean(world)


async def test_a_replica_that_is_being_retired_takes_no_new_request(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        async with trio.open_nursery() as nursery:
            streams = Streams(world, nursery)
            await streams.start(2, tokens=120)
            await world.until(lambda: running(world)[1] == 1)
            nursery.start_soon(world.done, RefactorRequest(replicas=1))
            await world.until(lambda: world.replicas.present[1].is_retiring)
            await streams.start(5, tokens=20)
            assert [at["replica"] for at in world.events("request_queued")] == [0, 1, 0, 0, 0, 0, 0]
        assert len(streams.ended) == 7


async def test_requests_that_outlast_the_limit_go_on_elsewhere_with_the_tokens_they_have(autojump_clock):
    async with modelled_replicas(replica_limits=ReplicaLimits(retire_s_max=0.3)) as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        async with trio.open_nursery() as nursery:
            streams = Streams(world, nursery)
            await streams.start(6, tokens=150)
            await trio.sleep(1)
            report = await world.done(RefactorRequest(replicas=1))
            assert report.requests_reprefilled == 3
        assert len(streams.ended) == 6
        moved = world.events("request_moved")
        assert [(at["from_replica"], at["to_replica"]) for at in moved] == [(1, 0)] * 3
        assert all(0 < at["output_tokens"] < 150 for at in moved)
        assert_clean(world)


async def test_a_full_queue_does_not_refuse_what_was_accepted_elsewhere(autojump_clock):
    limits = SchedulerLimits(queue_requests_max=1, running_requests_max=2)
    replica_limits = ReplicaLimits(retire_s_max=0.1)
    async with modelled_replicas(limits=limits, replica_limits=replica_limits) as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        async with trio.open_nursery() as nursery:
            streams = Streams(world, nursery)
            for _ in range(6):
                await streams.start(1, tokens=100)
                await trio.sleep(0.2)
            assert running(world) == {0: 3, 1: 3}
            with pytest.raises(GenerationFailedError, match="waiting already"):
                await generate(world)
            await world.done(RefactorRequest(replicas=1))
        assert len(streams.ended) == 6


async def test_a_replica_that_comes_again_goes_on_with_its_journal(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        first = await world.done(RefactorRequest(replicas=2))
        await world.done(RefactorRequest(replicas=1))
        second = await world.done(RefactorRequest(replicas=2))
        assert second.replica == first.replica == 1
        assert second.epoch > first.epoch
        assert min(at["worker"] for at in world.replicas.status().stages if at["replica"] == 1) == 3
        assert await generate(world) == expected_tokens(MODEL, prompt_of(0), VARIED, 12)


async def test_refactoring_changes_every_replica_one_after_the_other_under_load(autojump_clock):
    async with modelled_replicas(weather=Weather(0.001, 0.01)) as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        async with trio.open_nursery() as nursery:
            streams = Streams(world, nursery)
            await streams.start(8, tokens=120)
            await world.until(lambda: min(running(world).values()) > 0)
            *progress, report = await world.told(RefactorRequest(stages=4))
            order = [*dict.fromkeys(event.replica for event in progress)]
            assert order == [0, 1]
            assert all(event.sentence.startswith(f"replica {event.replica}: ") for event in progress)
            assert ([at.replica for at in report.earlier], report.replica) == ([0], 1)
            assert report.earlier[0].kv_sent_bytes > 0
            assert report.kv_sent_bytes > 0
            assert Counter(at["replica"] for at in world.replicas.status().stages) == {0: 4, 1: 4}
        assert len(streams.ended) == 8
        assert_clean(world)


async def test_a_change_that_is_asked_for_the_moment_a_pipeline_serves_waits_for_the_end_of_its_start(autojump_clock):
    async with modelled_replicas() as world:
        await world.until(lambda: world.replicas.status().ready)
        assert world.made[0].machine.change.epoch == 1
        assert (await world.done(RefactorRequest(stages=2))).epoch == 2


async def test_a_change_does_not_wait_for_ever_for_another_to_end(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        made = world.made[0]
        made.refactor((6,), (0, 1))
        await world.until(lambda: made.machine.change.phase in IRREVOCABLE)
        made.journal.full = True  # it cannot be written down that the change is over
        asked_s = trio.current_time()
        with pytest.raises(BusyRefusedError, match="the change to epoch 2 is still under way"):
            await world.done(RefactorRequest(stages=3))
        assert trio.current_time() - asked_s == pytest.approx(CHANGEABLE_S_MAX)
        made.journal.full = False
        assert (await world.done(RefactorRequest(stages=3))).epoch == 3


async def test_one_replica_alone_can_be_changed(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        report = await world.done(RefactorRequest(stages=2, replica=1))
        assert (report.replica, report.earlier) == (1, ())
        assert Counter(at["replica"] for at in world.replicas.status().stages) == {0: 3, 1: 2}
        # The one that has the shape already is left alone.
        report = await world.done(RefactorRequest(stages=2))
        assert (report.replica, report.earlier) == (0, ())


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (RefactorRequest(replicas=2), "there are 2 replicas already"),
        (RefactorRequest(replicas=0), "0 replicas cannot serve"),
        (RefactorRequest(replicas=5), "needs as many free devices"),
        (RefactorRequest(replicas=3, replica=1), "leave replica out"),
        (RefactorRequest(stages=2, replica=7), "there is no replica 7; there are: 0, 1"),
        (RefactorRequest(stages=7), "7 stages need 7 devices"),
        (RefactorRequest(move="0-1:cpu:4", replica=0), "another replica"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[15:50],
)
async def test_what_cannot_be_is_refused_in_one_sentence_and_nothing_changes(autojump_clock, request_, sentence):
    async with modelled_replicas() as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        before = world.replicas.status().stages
        with pytest.raises(RefactorRefusedError, match=sentence):
            await world.told(request_)
        assert [at["worker"] for at in world.replicas.status().stages] == [at["worker"] for at in before]
        assert len(world.numbers()) == 2


class FullEngine(ModelledEngine):
    """Its device has no room."""

    async def load(self, spec, atoms, progress):
        raise EngineError("the device has 2 GiB and the weights take 3 GiB")


async def test_replicas_that_cannot_come_up_leave_nothing_behind(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        engines = iter(range(1, 4))
        whole = world.factory.engine
        world.factory.engine = lambda: whole() if next(engines, None) else FullEngine(MODEL)
        async with trio.open_nursery() as nursery:
            streams = Streams(world, nursery)
            await streams.start(4, tokens=120)
            *_, failed = await world.told(RefactorRequest(replicas=3))
            assert isinstance(failed, RefactorFailed), failed
            assert failed.reason == "aborted"
            assert "replica 2: " in failed.sentence
            assert "the weights take 3 GiB" in failed.sentence
            assert world.numbers() == [0]
        assert len(streams.ended) == 4
        assert_clean(world)
        world.factory.engine = whole
        await world.done(RefactorRequest(replicas=2))


async def test_a_replica_whose_journal_cannot_be_had_is_not_started(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        world.factory.refuse(JournalError("the journal is in use by another process"))
        *_, failed = await world.told(RefactorRequest(replicas=2))
        assert failed == RefactorFailed("aborted", "replica 1: the journal is in use by another process")
        assert world.numbers() == [0]


async def test_a_new_replica_that_loses_a_worker_while_it_loads_is_taken_back(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        async with aclosing(world.reshaper.refactor(RefactorRequest(replicas=2))) as events:
            async for event in events:
                if isinstance(event, RefactorProgress) and event.phase == "copy":
                    world.made[1].launcher.processes[1].signal(kill=True)
        assert isinstance(event, RefactorFailed)
        assert event.reason == "aborted"
        assert "worker 1 was lost" in event.sentence
        assert world.numbers() == [0]
        assert_clean(world)


async def murder(world, number, every_s=0.2):
    while number in world.numbers():
        for process in list(world.made[number].launcher.processes.values())[:1]:
            process.signal(kill=True)
        await trio.sleep(every_s)


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_replica_that_is_killed_again_and_again_is_dropped_and_its_requests_go_on(autojump_clock, victim):
    async with modelled_replicas() as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        async with trio.open_nursery() as nursery:
            streams = Streams(world, nursery)
            await streams.start(8, tokens=120)
            await world.until(lambda: min(running(world).values()) > 0)
            await murder(world, victim)
            assert world.numbers() == [1 - victim]
            assert world.replicas.status().ready
        assert len(streams.ended) == 8
        (dropped,) = world.events("replica_dropped")
        assert dropped["replica"] == victim
        assert "was lost" in dropped["sentence"]
        assert not world.ended.is_set()
        # Its number is free again.
        assert (await world.done(RefactorRequest(replicas=2))).replica == victim
        assert_clean(world)


async def test_while_a_replica_recovers_new_requests_go_to_the_others(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        async with trio.open_nursery() as nursery:
            streams = Streams(world, nursery)
            await streams.start(2, tokens=100)
            await world.until(lambda: min(running(world).values()) == 1)
            world.made[0].launcher.processes[1].signal(kill=True)
            await world.until(lambda: not world.made[0].pipeline.status().ready)
            status = world.replicas.status()
            assert status.ready
            assert [at.ready for at in status.replicas] == [False, True]
            assert "worker 1 was lost" in status.replicas[0].reason
            await streams.start(3, tokens=5)
            await world.until(lambda: len(streams.ended) == 3)
            assert not world.made[0].pipeline.status().ready
        assert len(streams.ended) == 5
        assert not world.events("request_moved")


async def test_the_last_replica_that_is_given_up_ends_everything_with_its_sentence(autojump_clock):
    async with modelled_replicas(coordinator_limits=NEVER_AGAIN) as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        async with trio.open_nursery() as nursery:
            for number in (0, 1):
                nursery.start_soon(murder, world, number)
            with pytest.raises(GenerationFailedError, match="was lost") as caught:
                await generate(world, count=200)
            assert caught.value.kind == "stage_lost"
            await world.ended.wait()
            nursery.cancel_scope.cancel()
        assert world.replicas.finish.failed
        assert "was lost" in world.replicas.finish.sentence
        assert not world.replicas.status().ready


async def test_a_replica_that_is_being_retired_stays_when_the_others_are_given_up(autojump_clock):
    async with modelled_replicas(coordinator_limits=NEVER_AGAIN) as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        async with trio.open_nursery() as nursery:
            streams = Streams(world, nursery)
            await streams.start(4, tokens=120)
            await world.until(lambda: min(running(world).values()) > 0)
            told = []

            async def retire():
                told.extend(await world.told(RefactorRequest(replicas=1)))

            nursery.start_soon(retire)
            await world.until(lambda: world.replicas.present[1].is_retiring)
            await murder(world, 0)
        assert isinstance(told[-1], RefactorFailed), told[-1]
        assert "replica 1 has to stay" in told[-1].sentence
        assert len(streams.ended) == 4
        assert world.numbers() == [1]
        assert await generate(world) == expected_tokens(MODEL, prompt_of(0), VARIED, 12)


async def test_stopping_ends_requests_and_every_replica(autojump_clock):
    async with modelled_replicas() as world:
        await world.wait_ready()
        await world.done(RefactorRequest(replicas=2))
        async with world.replicas.open(GenerationRequest((1, 2), VARIED, 300)) as events:
            await anext(events)
            world.replicas.stop()
            with pytest.raises(GenerationFailedError, match="shutting down") as caught:
                async for _ in events:
                    pass
        assert caught.value.kind == "shutting_down"
        with pytest.raises(GenerationFailedError, match="shutting down"):
            await generate(world)
        await world.ended.wait()
        assert not world.replicas.finish.failed
        assert not any(made.launcher.processes for made in world.made.values())


async def test_before_it_starts_there_is_a_status_that_says_so(autojump_clock):
    async with modelled_replicas() as world:
        status = world.replicas.status()
        assert (status.ready, status.model.context_tokens) == (False, CONTEXT_TOKENS)
        with pytest.raises(GenerationFailedError) as caught:
            await generate(world)
        assert caught.value.kind == "not_ready"
