"""Runs of pages over a link: in the message between simulated processes, through shared memory between real sockets."""

from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio
from flexpipe.actors.link_place import LinkPlace, Surroundings
from flexpipe.actors.messages import TO_ACQUIRER, PageRun, PagesEnd, PagesRefused, PagesWelcome
from flexpipe.actors.page_link import RING_SLOTS, PageReceiver, PageSender
from flexpipe.runtime.page_checksum import page_checksum
from flexpipe.transport.interface import FrameError, LinkClosedError, PeerLostError
from flexpipe.transport.memory import MemoryNetwork
from flexpipe.transport.zmq_link import ZmqTransport
from page_store import layer_pages

PAGE_BYTES = 4096
RUN_BYTES_MAX = 8 * PAGE_BYTES
EPOCH = 3


def pages(seed, count=2):
    return np.random.default_rng(seed).integers(0, 255, count * PAGE_BYTES, dtype=np.uint8).tobytes()


def run_of(count=2, slot=-1, page_bytes=PAGE_BYTES):
    return PageRun(EPOCH, (layer_pages(1, range(count), page_bytes=page_bytes),), 0, slot)


def filling(data):
    async def gather(out):
        await trio.lowlevel.checkpoint()
        out[:] = data
        return page_checksum(out)

    return gather


@asynccontextmanager
async def transports(kind):
    """Two processes' transports, and an address between them."""
    if kind == "memory":
        network = MemoryNetwork(1)
        async with network.open("acquirer") as one, network.open("donor") as other:
            yield one, other
    else:
        async with ZmqTransport.open() as one, ZmqTransport.open() as other:
            yield one, other


@pytest.fixture(params=["memory", "ipc"])
def kind(request):
    return request.param


@pytest.fixture
def address(kind, tmp_path):
    return "memory://pages" if kind == "memory" else f"ipc://{tmp_path}/pages"


@pytest.fixture
async def link(kind, address):
    """(sender, receiver), welcomed."""
    async with transports(kind) as (one, other):
        receiver = await PageReceiver.bind(Surroundings(one), LinkPlace(address), name="from the donor")
        sender = await PageSender.connect(
            Surroundings(other), LinkPlace(address), name="to the acquirer", run_bytes_max=RUN_BYTES_MAX
        )
        await receiver.welcome(EPOCH)
        assert await sender.receive() == PagesWelcome(EPOCH)
        yield sender, receiver
        sender.close()
        receiver.close()


async def test_pages_arrive_as_they_were_gathered_with_their_checksum(link, kind):
    sender, receiver = link
    for seed in range(3 * RING_SLOTS):
        await sender.send(run_of(), filling(pages(seed)))
        arrived = await receiver.receive()
        assert arrived.data.tobytes() == pages(seed)
        assert arrived.run.checksum == page_checksum(memoryview(pages(seed)))
        assert (arrived.run.slot >= 0) == (kind == "ipc")
        receiver.release(arrived.run)


async def test_an_end_and_a_refusal_arrive(link):
    sender, receiver = link
    await sender.send_end(EPOCH)
    assert await receiver.receive() == PagesEnd(EPOCH)
    refusal = PagesRefused(EPOCH, (layer_pages(1, [1]),), "wet")
    await receiver.refuse(refusal)
    assert await sender.receive() == refusal


async def test_a_gather_that_fails_or_is_cancelled_costs_no_slot(link):
    sender, receiver = link

    async def broken(_):
        raise ZeroDivisionError

    for _ in range(2 * RING_SLOTS):
        with pytest.raises(ZeroDivisionError):
            await sender.send(run_of(), broken)
        with trio.move_on_after(0) as scope:
            await sender.send(run_of(), filling(pages(0)))
        assert scope.cancelled_caught
    await sender.send(run_of(), filling(pages(1)))
    assert (await receiver.receive()).data.tobytes() == pages(1)


@pytest.mark.parametrize("data", [b"", b"x" * PAGE_BYTES, b"x" * 3 * PAGE_BYTES])
async def test_pages_that_are_not_as_many_bytes_as_announced_end_the_link(link, data):
    sender, receiver = link
    await sender._bulk.link.send([TO_ACQUIRER.encode(run_of()), data])
    with pytest.raises(FrameError, match=f"{2 * PAGE_BYTES} bytes were announced"):
        await receiver.receive()


@pytest.mark.parametrize("run", [run_of(slot=99), run_of(slot=2**40), run_of(slot=2, page_bytes=2**50)], ids=repr)
async def test_a_slot_without_memory_behind_it_ends_the_link(link, run):
    sender, receiver = link
    await sender._bulk.link.send([TO_ACQUIRER.encode(run)])
    with pytest.raises(FrameError):
        await receiver.receive()


async def test_garbage_ends_the_link(link):
    sender, receiver = link
    await sender._bulk.link.send([b"\xff\x00garbage"])
    with pytest.raises(FrameError):
        await receiver.receive()


async def test_a_peer_that_closed_ends_both_directions(link):
    sender, receiver = link
    await receiver.aclose()
    with pytest.raises(PeerLostError):
        await sender.receive()
    with pytest.raises(PeerLostError):
        await sender.send(run_of(), filling(pages(0)))


async def test_a_sender_that_was_closed_sends_nothing(link):
    sender, _ = link
    sender.close()
    with pytest.raises(LinkClosedError):
        await sender.send(run_of(), filling(pages(0)))


async def test_a_link_on_which_nobody_gathered_any_more_closes_without_a_trace(link, tmp_path):
    sender, receiver = link
    await sender.aclose()
    await receiver.aclose()
    await receiver.aclose()
    assert list(tmp_path.glob("*.ring")) == []


# --- shared memory only ---


shared_memory = pytest.mark.parametrize("kind", ["ipc"], indirect=True)


@shared_memory
async def test_a_donor_waits_while_every_slot_is_unread(link):
    sender, receiver = link
    for seed in range(RING_SLOTS):
        await sender.send(run_of(), filling(pages(seed)))
    arrived = [await receiver.receive() for _ in range(RING_SLOTS)]
    assert len({each.run.slot for each in arrived}) == RING_SLOTS
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.send, run_of(), filling(pages(99)))
        for seed, each in enumerate(arrived):
            assert each.data.tobytes() == pages(seed)
        receiver.release(arrived[2].run)
    assert (await receiver.receive()).data.tobytes() == pages(99)


@shared_memory
async def test_a_slot_that_is_sent_again_while_it_is_in_use_ends_the_link(link):
    sender, receiver = link
    await sender.send(run_of(), filling(pages(0)))
    arrived = await receiver.receive()
    await sender._bulk.link.send([TO_ACQUIRER.encode(run_of(slot=arrived.run.slot))])
    with pytest.raises(FrameError, match="while it was in use"):
        await receiver.receive()
    receiver.release(arrived.run)


@shared_memory
@pytest.mark.parametrize("run", [run_of(slot=RING_SLOTS), run_of(slot=0, page_bytes=RUN_BYTES_MAX)], ids=repr)
async def test_a_slot_that_does_not_exist_ends_the_link(link, run):
    sender, receiver = link
    await sender.send(run_of(), filling(pages(0)))
    receiver.release((await receiver.receive()).run)
    await sender._bulk.link.send([TO_ACQUIRER.encode(run)])
    with pytest.raises(FrameError, match="does not exist"):
        await receiver.receive()


@shared_memory
async def test_pages_in_use_stay_good_when_both_ends_close_and_may_be_released_after(link):
    sender, receiver = link
    await sender.send(run_of(), filling(pages(5)))
    arrived = await receiver.receive()
    await receiver.aclose()
    await sender.aclose()
    assert arrived.data.tobytes() == pages(5)
    receiver.release(arrived.run)
