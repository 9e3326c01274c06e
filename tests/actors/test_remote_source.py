"""Gateways and leaders that come and go, in virtual time: every stream token by token what the model alone would have said."""

import random
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from flexpipe.actors.cluster.leader_line_machine import LineLimits
from flexpipe.actors.cluster.remote_source import RemoteLimits
from flexpipe.actors.cluster.token_messages import (
    FROM_GATEWAY,
    GATEWAY_LIMITS,
    GATEWAY_PURPOSE,
    TO_GATEWAY,
    Accepted,
    AskRefactor,
    GatewayHello,
    GatewayRefused,
    GatewayWelcome,
    StreamTokens,
    Tokens,
    submit_message,
)
from flexpipe.actors.cluster.token_server import TokenServerLimits
from flexpipe.actors.generation import GenerationFailedError, GenerationRequest
from flexpipe.actors.refactor import RefactorRequest
from flexpipe.actors.scheduler_machine import SchedulerLimits
from flexpipe.runtime.interface import SampledToken, SamplingParams
from flexpipe.sim.modelled_engine import expected_tokens
from flexpipe.transport.interface import PeerLostError
from flexpipe.transport.memory import Weather
from modelled_leaders import MODEL_DIGEST, LeaderBoard, cluster, one_stream
from modelled_pipeline import MODEL
from toy_token_source import ToyTokenSource

VARIED = SamplingParams(
    temperature=0.8, seed=5, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.2, logprobs=2
)
WINDY = Weather(0.001, 0.02, loss_probability=0.02)
DETECT_S = GATEWAY_LIMITS.silence_s_max


@asynccontextmanager
async def led(*args, **options):
    """A cluster with one gateway, which is attached to the leader of term 1."""
    async with cluster(*args, **options) as made:
        gateway, first = await made.gateway(), await made.lead(1)
        await made.attached(gateway, 1)
        yield made, gateway, first


def prompt_of(index):
    return tuple(range(index, 20 + 9 * index))


def params_of(index):
    """Sequences of one HTTP request with n > 1 differ in their seeds only."""
    return SamplingParams(
        temperature=0.8, seed=5 + index, presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.2, logprobs=2
    )


class Streams:
    """Streams of one gateway, each checked token by token at its end."""

    def __init__(self, gateway, nursery):
        self.tokens = {}
        self.ended = set()
        self._gateway = gateway
        self._nursery = nursery

    async def start(self, count, *, tokens=60):
        for index in range(len(self.tokens), len(self.tokens) + count):
            self.tokens[index] = []
            await self._nursery.start(self._one, index, tokens)

    @property
    def least(self):
        return min(map(len, self.tokens.values()))

    async def _one(self, index, count, *, task_status):
        request = GenerationRequest(prompt_of(index), params_of(index), count)
        got = self.tokens[index]
        async with self._gateway.source.open(request) as events:
            task_status.started()
            async for event in events:
                assert event.index == len(got)
                assert len(event.token.top) == 2
                got.append(event.token.token_id)
        assert got == expected_tokens(MODEL, prompt_of(index), params_of(index), count)
        self.ended.add(index)


async def generate(gateway, request):
    async with gateway.source.open(request) as events:
        return [event.token.token_id async for event in events]


def request_of(index=0, count=12):
    return GenerationRequest(prompt_of(index), VARIED, count)


def held(leader):
    status = leader.source.status()
    return status.running + status.waiting


# --- leaders that are lost -------------------------------------------------------------------------------------------


async def test_streams_go_on_at_the_next_leader_with_the_tokens_they_have(autojump_clock):
    async with led() as (made, gateway, first):
        async with trio.open_nursery() as nursery:
            streams = Streams(gateway, nursery)
            await streams.start(4)
            await made.until(lambda: streams.least > 10)
            made.kill(first)
            await made.lead(2)
        assert len(streams.ended) == 4
        resumed = made.events("stream_resumed")
        assert [(at["from_term"], at["to_term"]) for at in resumed] == [(1, 2)] * 4
        assert all(10 < at["output_tokens"] < 60 for at in resumed)


@pytest.mark.parametrize("seed", range(8))
async def test_no_token_is_lost_or_altered_however_often_leaders_die(autojump_clock, seed):
    chance = random.Random(seed)
    async with cluster(seed, WINDY) as made:
        gateways = [await made.gateway("g1"), await made.gateway("g2")]
        leader = await made.lead(1)
        for gateway in gateways:
            await made.attached(gateway, 1)
        async with trio.open_nursery() as nursery:
            both = [Streams(gateway, nursery) for gateway in gateways]
            for streams in both:
                await streams.start(3, tokens=90)
            for term in range(2, 5):
                await trio.sleep(chance.uniform(0, 0.4))
                made.kill(leader)
                await trio.sleep(chance.uniform(0, 2))
                leader = await made.lead(term)
        assert [len(streams.ended) for streams in both] == [3, 3]
        assert made.events("stream_resumed")
        await made.until(lambda: held(leader) == 0)


async def test_a_leader_that_was_out_of_reach_for_a_moment_is_asked_again(autojump_clock):
    async with cluster() as made:
        gateway, leader = await made.gateway(), await made.lead(1)
        await made.attached(gateway, 1)
        async with trio.open_nursery() as nursery:
            streams = Streams(gateway, nursery)
            await streams.start(3, tokens=250)
            await made.until(lambda: streams.least > 10)
            for source, target in (("g1", leader.name), (leader.name, "g1")):
                made.network.cut(source, target)
            await trio.sleep(2 * DETECT_S)
            assert not gateway.source.status().ready
            assert held(leader) == 0  # the leader noticed, too
            for source, target in (("g1", leader.name), (leader.name, "g1")):
                made.network.heal(source, target)
        assert len(streams.ended) == 3
        assert [(at["from_term"], at["to_term"]) for at in made.events("stream_resumed")] == [(1, 1)] * 3


async def test_a_leader_that_hangs_is_left_for_the_next_one_at_once(autojump_clock):
    async with led(weather=WINDY) as (made, gateway, first):
        async with trio.open_nursery() as nursery:
            streams = Streams(gateway, nursery)
            await streams.start(3)
            await made.until(lambda: streams.least > 10)
            second = await made.lead(2, announce=False)
            made.network.hang(first.name)
            made.board.announce("memory://leader-2", 2)
            announced_s = trio.current_time()
            await made.attached(gateway, 2)
            assert trio.current_time() - announced_s < DETECT_S / 2
        assert len(streams.ended) == 3
        assert held(second) == 0


async def test_a_leader_that_does_not_know_that_it_is_over_delivers_nothing_more(autojump_clock):
    async with led() as (made, gateway, first):
        async with trio.open_nursery() as nursery:
            streams = Streams(gateway, nursery)
            await streams.start(2)
            await made.until(lambda: streams.least > 10)
            await made.lead(2)
            await made.attached(gateway, 2)
            await made.until(lambda: held(first) == 0)  # its streams were cancelled with the link
        assert len(streams.ended) == 2
        assert [at["term"] for at in made.events("leader_lost")] == [1]
        assert first.higher_terms == []


async def test_a_leader_that_steps_down_lets_go_of_its_gateways_at_once(autojump_clock):
    async with led() as (made, gateway, first):
        async with trio.open_nursery() as nursery:
            streams = Streams(gateway, nursery)
            await streams.start(2)
            await made.until(lambda: streams.least > 10)
            first.leading.cancel()
            stepped_down_s = trio.current_time()
            await made.until(lambda: not gateway.source.status().ready and held(first) == 0)
            assert trio.current_time() - stepped_down_s < 0.1
            await trio.sleep(1)  # whoever calls meanwhile is turned away
            assert first.server.gateways == ()
            await made.lead(2)
        assert len(streams.ended) == 2
        assert [(at["streams"], at["sentence"]) for at in made.events("gateway_left", "leader-1")] == [
            (2, "this daemon leads no more")
        ]


async def test_requests_that_a_stopping_leader_gives_up_go_on_at_the_next(autojump_clock):
    async with led() as (made, gateway, first):
        async with trio.open_nursery() as nursery:
            streams = Streams(gateway, nursery)
            await streams.start(2)
            await made.until(lambda: streams.least > 10)
            first.made.replicas.stop()
            await made.until(lambda: gateway.source.status().waiting == 2)
            await made.lead(2)
        assert len(streams.ended) == 2


async def test_a_request_that_was_not_answered_when_its_leader_died_is_taken_by_the_next(autojump_clock):
    async with led(weather=Weather(0.05, 0.1)) as (made, gateway, first):
        async with trio.open_nursery() as nursery:
            streams = Streams(gateway, nursery)
            nursery.start_soon(streams.start, 1)
            await trio.sleep(0.01)  # it is on its way
            made.kill(first)
            await made.lead(2)
        assert streams.ended == {0}
        assert [at["output_tokens"] for at in made.events("stream_resumed")] == [0]


async def test_tokens_that_came_before_the_loss_are_delivered_first(autojump_clock):
    async with led() as (made, gateway, first):
        async with gateway.source.open(request_of(count=12)) as events:
            await made.until(lambda: held(first) == 0)  # all were made, none was read
            await trio.sleep(1)
            made.kill(first)
            await made.until(lambda: gateway.line.session is None)
            tokens = [event.token.token_id async for event in events]
        assert tokens == expected_tokens(MODEL, prompt_of(0), VARIED, 12)
        assert not made.events("stream_resumed")


async def test_without_another_leader_in_time_a_stream_ends_with_one_error(autojump_clock):
    async with cluster() as made:
        gateway = await made.gateway(limits=RemoteLimits(resume_s_max=7.0))
        first = await made.lead(1)
        await made.attached(gateway, 1)
        async with gateway.source.open(request_of(count=200)) as events:
            await anext(events)
            made.kill(first)
            await made.until(lambda: gateway.line.session is None)
            lost_s = trio.current_time()
            with pytest.raises(GenerationFailedError, match="no other leader was ready within 7 s") as failure:
                async for _ in events:
                    pass
            assert failure.value.kind == "stage_lost"
            assert trio.current_time() - lost_s == pytest.approx(7.0, abs=0.1)
        assert gateway.source.status().waiting == 0


async def test_streams_wait_until_the_pipeline_of_the_next_leader_is_ready(autojump_clock):
    async with cluster() as made, trio.open_nursery() as nursery:
        gateway = await made.gateway()
        toys = [ToyTokenSource(), ToyTokenSource()]
        for toy in toys:
            await nursery.start(toy.run)
        first = await made.lead(1, source=toys[0])
        await made.attached(gateway, 1)
        toys[0].hold()
        request = GenerationRequest(tuple(b"a toy prompt"), SamplingParams(temperature=0.0), 9)
        got = []

        async def read():
            got.extend(await generate(gateway, request))

        nursery.start_soon(read)
        await made.until(lambda: held(first) == 1)
        made.kill(first)
        toys[1].lose_stage()
        await made.lead(2, source=toys[1])
        await made.until(lambda: gateway.line.session is not None and gateway.line.session.term == 2)
        await trio.sleep(5)
        assert gateway.source.status().waiting == 1
        assert not gateway.source.status().ready
        assert not toys[1].opened
        toys[1].recover()
        await made.until(lambda: got)
        assert bytes(got) == b"a toy pro"
        nursery.cancel_scope.cancel()


async def test_a_full_queue_at_the_next_leader_refuses_nobody_who_was_accepted(autojump_clock):
    limits = SchedulerLimits(queue_requests_max=1, running_requests_max=2)
    async with led() as (made, gateway, first):
        async with trio.open_nursery() as nursery:
            streams = Streams(gateway, nursery)
            await streams.start(6)
            await made.until(lambda: streams.least > 2)
            made.kill(first)
            await made.lead(2, limits=limits)
        assert len(streams.ended) == 6


# --- without a leader ------------------------------------------------------------------------------------------------


async def test_a_gateway_without_a_leader_says_so_and_takes_no_new_request(autojump_clock):
    async with cluster() as made:
        gateway = await made.gateway()
        assert (gateway.source.status().ready, gateway.source.status().reason) == (
            False,
            "no daemon is known to lead yet",
        )
        with pytest.raises(GenerationFailedError, match="no daemon is known to lead yet") as refusal:
            await generate(gateway, request_of())
        assert refusal.value.kind == "not_ready"
        assert refusal.value.retry_after_s > 0
        first = await made.lead(1)
        await made.attached(gateway, 1)
        assert len(gateway.source.status().stages) == 3
        made.kill(first)
        await made.until(lambda: not gateway.source.status().ready)
        assert "leader-1" in gateway.source.status().reason
        assert gateway.source.status().stages == ()


async def test_a_dead_leader_is_noticed_at_once_and_a_silent_one_within_two_seconds(autojump_clock):
    async with cluster(weather=Weather(0.001, 0.01)) as made:
        for term, harm, s_max in ((1, made.kill, 0.1), (2, lambda leader: made.network.hang(leader.name), 2.0)):
            leader = await made.lead(term)
            gateway = await made.gateway(f"g{term}")
            await made.attached(gateway, term)
            harm(leader)
            harmed_s = trio.current_time()
            await made.until(lambda: not gateway.source.status().ready)  # noqa: B023 - used at once
            assert trio.current_time() - harmed_s < s_max


# --- terms -----------------------------------------------------------------------------------------------------------


async def test_who_is_said_to_lead_in_an_older_term_is_refused_by_name(autojump_clock):
    async with cluster() as made:
        await made.lead(3, announce=False)
        gateway = await made.gateway()
        await made.lead(4)
        await made.attached(gateway, 4)
        made.board.announce("memory://leader-3", 3)
        await trio.sleep(1)
        assert [(at["address"], at["term"], at["highest_term"]) for at in made.events("leader_refused")] == [
            ("memory://leader-3", 3, 4)
        ]
        assert gateway.line.session.term == 4


async def test_a_leader_that_hears_of_a_higher_term_is_told_and_refuses(autojump_clock):
    async with cluster() as made:
        old = await made.lead(3, announce=False)
        gateway = await made.gateway()
        made.board.announce("memory://leader-3", 5)  # where the leader of term 5 is to come up
        await trio.sleep(1.5)
        assert set(old.higher_terms) == {5}
        assert "term 5 has begun" in gateway.source.status().reason
        assert {at["reason"] for at in made.events("gateway_refused")} == {"term"}


async def test_a_leader_that_answers_in_an_older_term_is_refused_by_name(autojump_clock):
    """Its build does not compare terms: the gateway does."""
    async with cluster() as made:
        old = await made.lead(3, announce=False)
        old.server._answer = lambda hello, peer: type(old.server)._answer(
            old.server, type(hello)(hello.gateway, hello.model, 0), peer
        )
        gateway = await made.gateway()
        made.board.announce("memory://leader-3", 5)
        await made.until(lambda: made.events("leader_refused"))
        refusal = made.events("leader_refused")[0]
        assert (refusal["term"], refusal["highest_term"]) == (3, 5)
        assert gateway.line.session is None


async def test_a_leader_that_is_known_by_its_address_only_tells_its_term(autojump_clock):
    async with cluster() as made:
        gateway = await made.gateway()
        await made.lead(7, announce=False)
        made.board.announce("memory://leader-7", 0)
        await made.attached(gateway, 7)
        made.board.announce("memory://leader-7", 7)
        await trio.sleep(1)
        assert len(made.events("leader_attached")) == 1


async def test_a_gateway_with_another_model_is_refused_and_says_why(autojump_clock):
    async with cluster() as made:
        gateway = await made.gateway(model="another")
        await made.lead(1)
        await made.until(lambda: "another model than leader-1" in gateway.source.status().reason)
        await trio.sleep(10)
        tries = made.events("gateway_refused")
        assert 1 < len(tries) <= 2 + 10 / LineLimits().refused_retry_s


async def test_a_gateway_with_the_key_of_another_node_is_refused(autojump_clock):
    async with cluster() as made:
        leader = await made.lead(1)
        gateway = await made.gateway("g1")
        gateway.line._gateway = type(gateway.line._gateway)("g2", "modelled")
        await made.until(lambda: "the key of g1 is not g2's" in gateway.source.status().reason)
        assert leader.server.gateways == ()


# --- garbage ---------------------------------------------------------------------------------------------------------


async def raw_link(made, name, leader, greeting=True):
    """A link of a gateway that says what a test says."""

    async def live(*, task_status):
        async with made.network.open(name, name) as transport:
            link = await transport.connect(
                f"memory://{leader.name}", name=name, limits=GATEWAY_LIMITS, purpose=GATEWAY_PURPOSE
            )
            if greeting:
                await link.send([FROM_GATEWAY.encode(GatewayHello(name, MODEL_DIGEST, 0))])
                assert isinstance(TO_GATEWAY.decode((await link.receive())[0]), GatewayWelcome)
            task_status.started(link)
            await trio.sleep_forever()

    return await made.nursery.start(live)


SUBMIT = submit_message(5, GenerationRequest(prompt_of(0), VARIED, 12), None)
GARBAGE = {
    "random bytes": [[b"\xc1garbage"]],
    "nothing": [[b""]],
    "two parts": [[FROM_GATEWAY.encode(SUBMIT), b"x"]],
    "cut short": [[FROM_GATEWAY.encode(SUBMIT)[:-3]]],
    "another hello": [[FROM_GATEWAY.encode(GatewayHello("bad", MODEL_DIGEST, 0))]],
    "what only a leader says": [[TO_GATEWAY.encode(Accepted(1))]],
    "a stream twice": [[FROM_GATEWAY.encode(SUBMIT)]] * 2,
    "ids beyond the vocabulary": [[FROM_GATEWAY.encode(msgspec.structs.replace(SUBMIT, prompt=b"\xff\xff\xff\x7f"))]],
    "a shape of nothing": [[FROM_GATEWAY.encode(AskRefactor(1, RefactorRequest()))]],
}


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_ends_the_link_that_it_came_by_and_no_other(autojump_clock, said):
    async with cluster() as made:
        gateway, leader = await made.gateway(), await made.lead(1)
        await made.attached(gateway, 1)
        async with trio.open_nursery() as nursery:
            streams = Streams(gateway, nursery)
            await streams.start(1)
            link = await raw_link(made, "bad", leader)
            for parts in said:
                await link.send(parts)
            await made.until(lambda: leader.server.gateways == ("g1",))
        assert streams.ended == {0}
        assert [at["gateway"] for at in made.events("gateway_left")] == ["bad"]
        await made.until(lambda: held(leader) == 0)


async def test_whoever_does_not_begin_with_a_hello_is_sent_away(autojump_clock):
    async with cluster() as made:
        leader = await made.lead(1)
        for parts in ([FROM_GATEWAY.encode(SUBMIT)], [b"\x00" * 100]):
            link = await raw_link(made, "bad", leader, greeting=False)
            await link.send(parts)
            with pytest.raises(PeerLostError):
                await link.receive()
        silent = await raw_link(made, "mute", leader, greeting=False)
        with pytest.raises(PeerLostError), trio.fail_after(2 * TokenServerLimits().greet_s_max):
            await silent.receive()
        assert leader.server.gateways == ()


@pytest.mark.parametrize(
    "said",
    [
        [b"\xc1garbage"],
        [TO_GATEWAY.encode(Accepted(10**6))],
        [TO_GATEWAY.encode(Tokens((StreamTokens(1, 40, (SampledToken(1),)),)))],
        [TO_GATEWAY.encode(GatewayRefused("full", "no"))],
        [],
    ],
    ids=["random bytes", "a stream that never was", "a token too early", "a refusal after the welcome", "no part"],
)
async def test_a_leader_that_says_garbage_is_left_and_called_again(autojump_clock, said):
    async with cluster() as made:
        gateway, leader = await made.gateway(), await made.lead(1)
        await made.attached(gateway, 1)
        async with trio.open_nursery() as nursery:
            streams = Streams(gateway, nursery)
            await streams.start(1)
            await made.until(lambda: streams.least > 5)
            (conversation,) = leader.server._conversations
            await conversation._link.send(said)
        assert streams.ended == {0}
        assert [at["output_tokens"] > 5 for at in made.events("stream_resumed")] == [True]


# --- several gateways ------------------------------------------------------------------------------------------------


async def test_a_gateway_that_is_killed_leaves_nothing_and_the_others_go_on(autojump_clock):
    async with cluster(weather=WINDY) as made:
        doomed, other = await made.gateway("g1"), await made.gateway("g2")
        leader = await made.lead(1)
        await made.attached(doomed, 1)
        await made.attached(other, 1)
        async with trio.open_nursery() as nursery:
            lost, kept = [await nursery.start(hold_streams, gateway, 3) for gateway in (doomed, other)]
            await made.until(lambda: held(leader) == 6)
            made.kill(doomed)
            await made.until(lambda: held(leader) == 3)
            lost.cancel()
            streams = Streams(other, nursery)
            await streams.start(2)
            kept.cancel()
        assert len(streams.ended) == 2
        assert leader.server.gateways == ("g2",)
        assert [(at["gateway"], at["streams"]) for at in made.events("gateway_left")] == [("g1", 3)]


async def hold_streams(gateway, count, *, task_status):
    """Keep long streams open, and read them, until cancelled."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(generate, gateway, request_of(count=450))
            task_status.started(scope)


async def test_a_gateway_that_cannot_be_reached_holds_up_no_other(autojump_clock):
    async def took_s(made, gateway):
        began_s = trio.current_time()
        await generate(gateway, request_of(count=60))
        return trio.current_time() - began_s

    async with cluster() as made:
        stuck, other = await made.gateway("g1"), await made.gateway("g2")
        leader = await made.lead(1)
        await made.attached(stuck, 1)
        await made.attached(other, 1)
        alone_s = await took_s(made, other)
        async with trio.open_nursery() as nursery:
            scope = await nursery.start(hold_streams, stuck, 3)
            await made.until(lambda: held(leader) == 3)
            made.network.cut(leader.name, "g1")
            assert await took_s(made, other) < 1.2 * alone_s
            scope.cancel()


async def test_a_gateway_that_floods_the_queue_leaves_room_for_others(autojump_clock):
    limits = SchedulerLimits(queue_requests_max=12, running_requests_max=1)
    server_limits = TokenServerLimits(queue_requests_max=12)
    async with cluster() as made:
        flood, other = await made.gateway("g1"), await made.gateway("g2")
        leader = await made.lead(1, limits=limits, server_limits=server_limits)
        await made.attached(flood, 1)
        await made.attached(other, 1)
        refused = []

        async def ask():
            try:
                await generate(flood, request_of(count=400))
            except GenerationFailedError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(ask)
            await made.until(lambda: held(leader) + len(refused) == 40)
            assert {error.kind for error in refused} == {"overloaded"}
            assert all(error.retry_after_s > 0 for error in refused)
            assert held(leader) == 8  # twice the 4 places that are free
            async with other.source.open(request_of()):
                assert held(leader) == 9
            nursery.cancel_scope.cancel()


async def test_a_gateway_has_a_limit_of_its_own(autojump_clock):
    async with cluster() as made:
        gateway = await made.gateway()
        await made.lead(1, server_limits=one_stream(streams_max=1))
        await made.attached(gateway, 1)
        async with gateway.source.open(request_of(count=200)):
            with pytest.raises(GenerationFailedError, match="1 requests of this gateway are under way") as refusal:
                await generate(gateway, request_of())
        assert refusal.value.kind == "overloaded"
        await trio.sleep(0.1)
        assert len(await generate(gateway, request_of())) == 12


async def test_a_request_that_breaks_the_source_fails_alone(autojump_clock):
    class Broken(ToyTokenSource):
        def _check(self, request, *, is_new):
            if request.prompt == (66,):
                raise ZeroDivisionError
            super()._check(request, is_new=is_new)

    async with cluster() as made, trio.open_nursery() as nursery:
        toy = Broken()
        await nursery.start(toy.run)
        gateway = await made.gateway()
        await made.lead(1, source=toy)
        await made.attached(gateway, 1)
        with pytest.raises(GenerationFailedError, match="its log has the cause"):
            await generate(gateway, GenerationRequest((66,), VARIED, 3))
        assert len(await generate(gateway, GenerationRequest((65,), VARIED, 3))) == 3
        assert "ZeroDivisionError" in made.events("gateway_request_broke")[0]["error"]
        nursery.cancel_scope.cancel()


async def test_two_gateways_may_know_different_leaders_for_a_while(autojump_clock):
    async with cluster() as made:
        first = await made.lead(1)
        late = LeaderBoard()
        late.announce("memory://leader-1", 1)
        one, two = await made.gateway("g1"), await made.gateway("g2", board=late)
        await made.attached(one, 1)
        await made.attached(two, 1)
        async with trio.open_nursery() as nursery:
            both = [Streams(one, nursery), Streams(two, nursery)]
            for streams in both:
                await streams.start(2, tokens=80)
            await made.lead(2)
            await made.attached(one, 2)
            assert two.line.session.term == 1
            made.kill(first)
            late.announce("memory://leader-2", 2)
        assert [len(streams.ended) for streams in both] == [2, 2]
