"""The trio-native ZeroMQ socket under stress: nothing lost, nothing twice, nobody asleep for ever."""

import random
from contextlib import contextmanager

import pytest
import trio
import zmq
from flexpipe.transport.zmq_socket import ZERO_COPY_BYTES_MIN, ZmqSocket
from trio.testing import wait_all_tasks_blocked

MESSAGES = 200
WATER_MARK = 5


@contextmanager
def socket_pair(folder, water_mark=WATER_MARK):
    context = zmq.Context()
    raw = [context.socket(zmq.DEALER) for _ in range(2)]
    for each in raw:
        each.setsockopt(zmq.SNDHWM, water_mark)
        each.setsockopt(zmq.RCVHWM, water_mark)
    raw[0].bind(f"ipc://{folder}/pair")
    raw[1].connect(f"ipc://{folder}/pair")
    ends = [ZmqSocket(each) for each in raw]
    try:
        yield ends
    finally:
        for end in ends:
            end.close()
        context.term()


async def cancelled_often(luck, operation, *args):
    """Run one socket operation to its end, with some cancelled attempts before."""
    while True:
        with trio.move_on_after(luck.choice([0, 0.0001, 0.0005, 0.001, 1.0])) as scope:
            return await operation(*args)
        assert scope.cancelled_caught


@pytest.mark.parametrize("seed", range(4))
async def test_many_senders_and_receivers_with_random_cancels_pass_each_message_exactly_once(seed, tmp_path):
    luck = random.Random(seed)
    echoed = []

    async def send(end, numbers):
        for number in numbers:
            await cancelled_often(luck, end.send, [b"head", number.to_bytes(4, "little")])

    async def echo(end):
        while True:
            segments = await cancelled_often(luck, end.receive)
            await cancelled_often(luck, end.send, [bytes(segment) for segment in segments])

    async def receive(end, done):
        while True:
            head, number = await cancelled_often(luck, end.receive)
            assert head == b"head"
            echoed.append(int.from_bytes(number, "little"))
            if len(echoed) == MESSAGES:
                done.cancel()

    with socket_pair(tmp_path) as (near, far), trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for sender in range(3):
                nursery.start_soon(send, near, range(sender, MESSAGES, 3))
            for _ in range(2):
                nursery.start_soon(receive, near, nursery.cancel_scope)
            for _ in range(3):
                nursery.start_soon(echo, far)
    assert sorted(echoed) == list(range(MESSAGES))


async def test_a_sender_waits_for_a_peer_and_a_cancelled_send_sends_nothing(tmp_path):
    context = zmq.Context()
    near = ZmqSocket(raw_near := context.socket(zmq.DEALER))
    far = ZmqSocket(raw_far := context.socket(zmq.DEALER))
    raw_near.bind(f"ipc://{tmp_path}/pair")
    assert not near.send_nowait([b"nobody there"])
    with trio.move_on_after(0.001) as scope:
        await near.send([b"never"])
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send, [b"first"])
        await wait_all_tasks_blocked()
        raw_far.connect(f"ipc://{tmp_path}/pair")
        assert [bytes(segment) for segment in await far.receive()] == [b"first"]
    assert far.receive_nowait() is None
    near.close()
    far.close()
    context.term()


async def test_closing_wakes_everyone_who_waits(tmp_path):
    async def expect_closed(operation, *args):
        with pytest.raises(trio.ClosedResourceError):
            await operation(*args)

    with socket_pair(tmp_path) as (near, _):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(expect_closed, near.receive)
            await wait_all_tasks_blocked()
            near.close()
        await expect_closed(near.send, [b"x"])


async def test_large_segments_arrive_without_a_copy_of_the_sender(tmp_path):
    large = bytearray(range(256)) * (ZERO_COPY_BYTES_MIN // 256)
    with socket_pair(tmp_path) as (near, far):
        await near.send([b"head", large])
        head, body = await far.receive()
        assert (bytes(head), bytes(body)) == (b"head", bytes(large))
