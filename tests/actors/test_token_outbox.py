"""What waits for one gateway, and how often it is told the status."""

import msgspec
import pytest
import trio
import trio.testing
from flexpipe.actors.cluster.fair_queue import may_wait
from flexpipe.actors.cluster.status_board import LOOK_S, PROMPTED_MAX, PROMPTED_PER_S, StatusBoard
from flexpipe.actors.cluster.token_messages import (
    MESSAGE_TOKENS_MAX,
    TO_GATEWAY,
    Accepted,
    StatusPush,
    StreamFailed,
    Tokens,
)
from flexpipe.actors.cluster.token_outbox import OUTBOX_MESSAGES_MAX, OUTBOX_TOKENS_MAX, TokenOutbox
from flexpipe.actors.generation import ModelFacts, PipelineStatus, TokenEvent
from flexpipe.runtime.interface import SampledToken

STATUS = PipelineStatus(True, "", 1, ModelFacts("m", "M", 2, 3), (), 0, 0)


def event(index, finish=None):
    return TokenEvent(index, SampledToken(100 + index), finish)


async def taken(outbox):
    return TO_GATEWAY.decode(await outbox.take())


async def test_a_lone_token_leaves_at_once_by_itself(autojump_clock):
    outbox = TokenOutbox()
    came = []

    async def write():
        while True:
            message = await taken(outbox)
            came.append((trio.current_time(), [len(stream.tokens) for stream in message.streams]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        for index in range(3):
            await trio.sleep(1)
            outbox.add_token(0, event(index))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    began_s = came[0][0]
    assert [(at_s - began_s, tokens) for at_s, tokens in came] == [(0, [1]), (1, [1]), (2, [1])]


async def test_what_gathers_leaves_as_one_message_with_each_stream_in_order():
    outbox = TokenOutbox()
    for index in range(3):
        for stream in range(5):
            outbox.add_token(stream, event(index, "length" if index == 2 and stream == 4 else None))
    message = await taken(outbox)
    assert isinstance(message, Tokens)
    assert [(at.stream, at.index, len(at.tokens), at.finish) for at in message.streams] == [
        (0, 0, 3, None), (1, 0, 3, None), (2, 0, 3, None), (3, 0, 3, None), (4, 0, 3, "length"),
    ]  # fmt: skip


async def test_a_message_holds_no_more_than_it_may():
    outbox = TokenOutbox()
    for index in range(MESSAGE_TOKENS_MAX + 2):
        outbox.add_token(0, event(index))
    first, second = await taken(outbox), await taken(outbox)
    assert len(first.streams[0].tokens) == MESSAGE_TOKENS_MAX
    assert (second.streams[0].index, len(second.streams[0].tokens)) == (MESSAGE_TOKENS_MAX, 2)


async def test_tokens_stay_between_what_was_said_before_and_after_them():
    outbox = TokenOutbox()
    outbox.post(Accepted(1))
    outbox.add_token(1, event(0))
    outbox.post(StreamFailed(1, "stage_lost", "gone", None))
    assert [type(await taken(outbox)) for _ in range(3)] == [Accepted, Tokens, StreamFailed]


async def test_only_the_latest_status_is_sent_and_before_everything_else():
    outbox = TokenOutbox()
    outbox.post(Accepted(1))
    for epoch in range(3):
        outbox.post_status(TO_GATEWAY.encode(StatusPush(msgspec.structs.replace(STATUS, epoch=epoch))))
    assert (await taken(outbox)).status.epoch == 2
    assert await taken(outbox) == Accepted(1)


@pytest.mark.parametrize(
    ("add", "most"),
    [
        (lambda outbox, index: outbox.add_token(0, event(index)), OUTBOX_TOKENS_MAX),
        (lambda outbox, index: outbox.post(Accepted(index)), OUTBOX_MESSAGES_MAX),
    ],
    ids=["tokens", "messages"],
)
async def test_whoever_adds_waits_where_a_gateway_does_not_take(autojump_clock, add, most):
    outbox = TokenOutbox()
    added = []

    async def fill():
        while True:
            await outbox.room()
            add(outbox, len(added))
            added.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        await trio.testing.wait_all_tasks_blocked()
        assert len(added) == most
        await outbox.take()
        await trio.testing.wait_all_tasks_blocked()
        assert len(added) > most
        nursery.cancel_scope.cancel()


class Pipeline:
    """Whose status is another each time."""

    def __init__(self):
        self.looks = 0

    def status(self):
        self.looks += 1
        return msgspec.structs.replace(STATUS, epoch=self.looks)


async def test_a_status_is_read_once_for_all_gateways_and_at_a_bounded_rate(autojump_clock):
    pipeline, told = Pipeline(), ([], [])
    board = StatusBoard(pipeline.status)
    for reader in told:
        board.read(reader.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        with trio.move_on_after(10):
            while True:
                board.prompt()
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert told[0][-100:] == told[1][-100:]
    assert len(told[1]) <= 10 * (PROMPTED_PER_S + 1 / LOOK_S) + PROMPTED_MAX
    assert pipeline.looks == len(told[0]) + 1


async def test_a_status_that_did_not_change_is_not_told_again(autojump_clock):
    told = []
    board = StatusBoard(lambda: STATUS)
    assert board.read(told.append) == STATUS
    async with trio.open_nursery() as nursery:
        nursery.start_soon(board.run)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert told == []


@pytest.mark.parametrize(
    ("waiting", "others", "may"),
    [
        (100, [], True),  # the source itself refuses
        (7, [0], True),
        (8, [0], False),
        (4, [4], True),
        (5, [5], False),
        (0, [8, 3], True),
        (0, [12], False),
    ],
)
def test_a_gateway_may_fill_twice_as_many_places_as_are_free(waiting, others, may):
    assert may_wait(waiting, others, 12) is may


@pytest.mark.parametrize("floods", [1, 2, 3])
def test_each_gateway_that_floods_the_queue_leaves_others_a_third_of_what_was_free(floods):
    queue, waiting = 243, [0] * (floods + 1)
    for at in range(floods):
        while may_wait(waiting[at], [*waiting[:at], *waiting[at + 1 :]], queue):
            waiting[at] += 1
    assert queue - sum(waiting) == queue / 3**floods
    assert may_wait(0, waiting[:-1], queue)
