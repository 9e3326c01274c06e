"""What every listener must do, run over each transport: `transport.interface` is the contract."""

from contextlib import asynccontextmanager

import pytest
import trio
from flexpipe.transport.address import AddressError
from flexpipe.transport.interface import FrameError, LinkClosedError, LinkLimits, PeerLostError
from flexpipe.transport.memory import MemoryNetwork
from flexpipe.transport.memory_wire import Weather
from flexpipe.transport.zmq_link import ZmqTransport
from key_rings import free_port, key_rings
from trio.testing import wait_all_tasks_blocked

pytestmark = pytest.mark.parametrize("kind", ["memory", "bad-weather", "ipc", "tcp", "keys"])


@asynccontextmanager
async def two_transports(kind, folder):
    """Transports of two processes, and an address at which the first, node n1, can listen and the second, n2, reach it."""
    if kind in {"memory", "bad-weather"}:
        rough = Weather(delay_s_min=0.0001, delay_s_max=0.002, loss_probability=0.1, retransmit_s=0.003)
        network = MemoryNetwork(seed=7, weather=rough if kind == "bad-weather" else Weather())
        async with network.open("left", "n1") as left, network.open("right", "n2") as right:
            yield left, right, "memory://meeting"
        return
    rings = key_rings(folder, "n1", "n2") if kind == "keys" else (None, None)
    host = {"ipc": f"ipc://{folder}/door", "tcp": f"tcp://127.0.0.1:{free_port()}"}
    address = host.get(kind, f"tcp://n1@127.0.0.1:{free_port()}")
    async with ZmqTransport.open(rings[0]) as left, ZmqTransport.open(rings[1]) as right:
        yield left, right, address


def text(parts):
    return [bytes(part) for part in parts]


async def test_each_peer_gets_a_link_of_its_own_and_says_what_for(kind, tmp_path):
    async with two_transports(kind, tmp_path) as (left, right, address):
        listener = await left.listen(address, name="door")
        assert listener.address == address
        connected = {p: await right.connect(address, name=p, purpose=p) for p in ("node", "worker:0:3", "gateway")}
        accepted = {(each := await listener.accept()).purpose: each.link for _ in connected}
        assert accepted.keys() == connected.keys()
        for purpose, link in connected.items():
            await link.send([purpose.encode()])
        for purpose, link in accepted.items():
            assert text(await link.receive()) == [purpose.encode()]
            await link.send([b"to ", purpose.encode()])
        for purpose, link in connected.items():
            assert text(await link.receive()) == [b"to ", purpose.encode()]


async def test_a_key_says_who_came(kind, tmp_path):
    async with two_transports(kind, tmp_path) as (left, right, address):
        listener = await left.listen(address, name="door")
        await right.connect(address, name="node", purpose="gateway of n7")
        accepted = await listener.accept()
        assert (accepted.peer, accepted.purpose) == ("" if kind in {"ipc", "tcp"} else "n2", "gateway of n7")


async def test_peers_that_came_before_the_listener_are_taken(kind, tmp_path):
    async with two_transports(kind, tmp_path) as (left, right, address):
        connected = await right.connect(address, name="early", purpose="node")
        await trio.sleep(0.02)
        listener = await left.listen(address, name="door")
        accepted = await listener.accept()
        await accepted.link.send([b"welcome"])
        assert text(await connected.receive()) == [b"welcome"]


async def test_one_peer_that_does_not_read_does_not_hold_up_another(kind, tmp_path):
    limits = LinkLimits(credit_messages=4)

    async def send_for_ever(link):
        while True:
            await link.send([b"x" * 1000])

    async with two_transports(kind, tmp_path) as (left, right, address), trio.open_nursery() as nursery:
        listener = await left.listen(address, name="door", limits=limits)
        lazy = await right.connect(address, name="lazy", limits=limits, purpose="lazy")
        to_lazy = (await listener.accept()).link
        busy = await right.connect(address, name="busy", limits=limits, purpose="busy")
        to_busy = (await listener.accept()).link
        nursery.start_soon(send_for_ever, to_lazy)
        nursery.start_soon(send_for_ever, lazy)
        await wait_all_tasks_blocked()
        for number in range(50):
            await to_busy.send([bytes([number])])
            assert text(await busy.receive()) == [bytes([number])]
        assert to_lazy.statistics().sent_messages <= 4
        nursery.cancel_scope.cancel()


async def test_a_peer_that_closes_is_lost_to_its_link_alone(kind, tmp_path):
    async with two_transports(kind, tmp_path) as (left, right, address):
        listener = await left.listen(address, name="door")
        leaves = await right.connect(address, name="leaves", purpose="a")
        left_behind = (await listener.accept()).link
        stays = await right.connect(address, name="stays", purpose="b")
        other = (await listener.accept()).link
        await leaves.send([b"last words"])
        await leaves.aclose()
        assert text(await left_behind.receive()) == [b"last words"]
        with pytest.raises(PeerLostError, match="closed"):
            await left_behind.receive()
        await other.send([b"still here"])
        assert text(await stays.receive()) == [b"still here"]


async def test_the_listening_side_closes_one_link_and_keeps_the_others(kind, tmp_path):
    async with two_transports(kind, tmp_path) as (left, right, address):
        listener = await left.listen(address, name="door")
        sent_away = await right.connect(address, name="sent away", purpose="a")
        link = (await listener.accept()).link
        stays = await right.connect(address, name="stays", purpose="b")
        other = (await listener.accept()).link
        await link.aclose()
        with pytest.raises(PeerLostError, match="closed"):
            await sent_away.receive()
        await stays.send([b"still here"])
        assert text(await other.receive()) == [b"still here"]
        again = await right.connect(address, name="again", purpose="a")
        await (await listener.accept()).link.send([b"welcome back"])
        assert text(await again.receive()) == [b"welcome back"]


async def test_a_closed_listener_accepts_nobody_and_its_links_live_on(kind, tmp_path):
    async def expect_closed(listener):
        with pytest.raises(LinkClosedError, match="door"):
            await listener.accept()

    async with two_transports(kind, tmp_path) as (left, right, address):
        listener = await left.listen(address, name="door")
        connected = await right.connect(address, name="node", purpose="node")
        link = (await listener.accept()).link
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, listener)
            await wait_all_tasks_blocked()
            await listener.aclose()
        await listener.aclose()
        await expect_closed(listener)
        await connected.send([b"still here"])
        assert text(await link.receive()) == [b"still here"]
        late = await right.connect(address, name="late", purpose="late")
        with trio.move_on_after(0.05):
            await late.receive()
        assert late.statistics().credit_left == 0


async def test_the_end_of_the_listening_transport_ends_its_links(kind, tmp_path):
    async with two_transports(kind, tmp_path) as (left, right, address), trio.open_nursery() as nursery:

        async def lose(connected):
            with pytest.raises(PeerLostError):
                await connected.receive()

        listener = await left.listen(address, name="door")
        connected = await right.connect(address, name="node", purpose="node")
        await listener.accept()
        nursery.start_soon(lose, connected)
        await wait_all_tasks_blocked()
        left._nursery.cancel_scope.cancel()


async def test_an_end_for_one_peer_is_no_listener_and_says_so(kind, tmp_path):
    if kind in {"memory", "bad-weather"}:
        pytest.skip("in memory the two have different meeting points")
    async with two_transports(kind, tmp_path) as (left, right, address):
        bound = await left.bind(address, name="bound")
        await right.connect(address, name="node", purpose="node")
        with pytest.raises(FrameError, match="came to a listener, for 'node'"):
            await bound.receive()


async def test_a_second_listener_at_an_address_is_refused(kind, tmp_path):
    async with two_transports(kind, tmp_path) as (left, _, address):
        await left.listen(address, name="first")
        with pytest.raises(AddressError):
            await left.listen(address, name="second")


async def test_a_cancelled_accept_loses_nobody(kind, tmp_path):
    async with two_transports(kind, tmp_path) as (left, right, address):
        listener = await left.listen(address, name="door")
        got = []
        for number in range(20):
            await right.connect(address, name="node", purpose=str(number))
            with trio.move_on_after(0.0005):
                got.append((await listener.accept()).purpose)
        while len(got) < 20:
            got.append((await listener.accept()).purpose)
        assert sorted(got, key=int) == [str(number) for number in range(20)]


@pytest.mark.parametrize(
    ("purpose", "seal"), [("x" * 129, b""), ("line\n", b""), ("\N{GREEK SMALL LETTER PI}", b""), ("node", bytes(32))]
)
async def test_a_purpose_that_no_hello_can_carry_is_refused(kind, tmp_path, purpose, seal):
    async with two_transports(kind, tmp_path) as (_, right, address):
        with pytest.raises(ValueError, match=r"purpose|seal"):
            await right.connect(address, name="node", purpose=purpose, seal=seal)
