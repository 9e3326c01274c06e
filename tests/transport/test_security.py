"""Who gets in over real sockets: keys, revocation, seals, strangers. Each refusal is told once."""

import socket
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import zmq
from flexpipe.transport.address import AddressError
from flexpipe.transport.interface import SEAL_BYTES, FrameError, LinkLimits, PeerLostError
from flexpipe.transport.key_ring import allow, revoke
from flexpipe.transport.reception import GREETING_S_MAX, GUESTS_MAX
from flexpipe.transport.refusal import RefusalReason
from flexpipe.transport.zmq_link import ZmqTransport
from key_rings import free_port, key_rings

PATIENT = LinkLimits(silence_s_max=3600)
"""Whatever ends a link under these, it is not silence."""
ANOTHER_SECRET = b"o" * SEAL_BYTES
SECRET = b"s" * SEAL_BYTES


class Refusals(list):
    """The refusals of a transport, and a way to wait for the next."""

    def __call__(self, refusal):
        self.append(refusal)

    async def first(self):
        while not self:
            await trio.sleep(0.005)
        return self[0]


@asynccontextmanager
async def house(folder, *visitors):
    """A listener of node n1 that knows n2, its refusals, and the transports of ``visitors``, nodes that know n1."""
    rings = dict(zip(("n1", *visitors), key_rings(folder, "n1", *visitors), strict=True))
    refusals = Refusals()
    async with ZmqTransport.open(rings["n1"], on_refusal=refusals) as transport:
        listener = await transport.listen(f"tcp://127.0.0.1:{free_port()}", name="door", limits=PATIENT)
        address = listener.address.replace("tcp://", "tcp://n1@")
        async with visiting(list(map(rings.__getitem__, visitors))) as guests:
            yield rings["n1"], listener, refusals, [partial(guest.connect, address, limits=PATIENT) for guest in guests]


@asynccontextmanager
async def visiting(rings):
    if not rings:
        yield []
        return
    async with ZmqTransport.open(rings[0]) as first, visiting(rings[1:]) as others:
        yield [first, *others]


async def test_a_node_whose_key_nobody_allowed_is_told_so_and_refused_once(tmp_path):
    async with house(tmp_path, "n2") as (ring, _, refusals, (connect,)):
        stranger = key_rings(tmp_path / "elsewhere", "n2")[0]
        revoke(ring.folder, "n2")
        with trio.fail_after(5):
            link = await connect(name="node", purpose="node")
            with pytest.raises(PeerLostError, match="does not accept this end's key"):
                await link.receive()
            refusal = await refusals.first()
        await trio.sleep(0.05)
        assert [each.reason for each in refusals] == [RefusalReason.KEY_UNKNOWN]
        assert (refusal.where, refusal.peer, refusal.host) == ("door", "", "127.0.0.1")
        assert stranger.public.decode() not in refusal.detail


async def test_a_revoked_key_ends_its_live_links_and_no_others(tmp_path):
    async with house(tmp_path, "n2", "n3") as (ring, listener, refusals, connects):
        with trio.fail_after(10):
            guests = [await connect(name="node", purpose="node") for connect in connects]
            links = {(each := await listener.accept()).peer: each.link for _ in guests}
            revoke(ring.folder, "n2")
            for link in (links["n2"], guests[0]):
                with pytest.raises(PeerLostError):
                    await link.receive()
            assert [(each.reason, each.peer) for each in refusals] == [(RefusalReason.KEY_REVOKED, "n2")]
            await guests[1].send([b"still here"])
            assert bytes((await links["n3"].receive())[0]) == b"still here"
            again = await connects[0](name="node", purpose="node")
            with pytest.raises(PeerLostError, match="does not accept"):
                await again.receive()


async def test_a_revoked_peer_that_stays_on_the_line_is_hung_up_on(tmp_path):
    """One that ignores goodbyes: its TCP connection itself has to end."""
    async with house(tmp_path, "n2") as (ring, listener, refusals, _):
        other = key_rings(tmp_path / "again", "n1", "n2")[1]
        allow(ring.folder, "n2", other.public)
        with trio.fail_after(10), zmq.Context() as context, context.socket(zmq.DEALER) as raw:
            raw.setsockopt(zmq.LINGER, 0)
            raw.setsockopt(zmq.RECONNECT_IVL, -1)
            raw.curve_serverkey, raw.curve_publickey, raw.curve_secretkey = ring.public, other.public, other.secret
            monitor = raw.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            raw.connect(listener.address)
            raw.send(b"not a hello")
            assert (await refusals.first()).reason is RefusalReason.GREETING
            while not monitor.poll(0):
                await trio.sleep(0.01)
            raw.disable_monitor()
            monitor.close()


async def test_a_key_added_while_the_daemon_runs_lets_its_node_in(tmp_path):
    async with house(tmp_path, "n2") as (ring, listener, _, (connect,)):
        public = ring.allowed["n2"]
        revoke(ring.folder, "n2")
        with trio.fail_after(10):
            refused = await connect(name="node", purpose="node")
            with pytest.raises(PeerLostError):
                await refused.receive()
            allow(ring.folder, "n2", public)
            await connect(name="node", purpose="node")
            assert (await listener.accept()).peer == "n2"


async def test_a_listener_that_has_another_key_than_expected_hears_nothing(tmp_path):
    async with house(tmp_path / "real", "n2") as (_, listener, refusals, _):
        ring, false = key_rings(tmp_path / "fooled", "n2", "n1")
        assert ring.allowed["n1"] == false.public
        async with ZmqTransport.open(ring) as fooled:
            link = await fooled.connect(listener.address.replace("tcp://", "tcp://n1@"), name="node", purpose="node")
            with trio.fail_after(5):
                assert (await refusals.first()).reason is RefusalReason.HANDSHAKE
            assert link.statistics().credit_left == 0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("port scan", RefusalReason.HANDSHAKE),
        ("another protocol", RefusalReason.HANDSHAKE),
        ("no keys", RefusalReason.HANDSHAKE),
    ],
)
async def test_who_does_not_speak_curve_is_refused_once(kind, reason, tmp_path):
    async with house(tmp_path, "n2") as (_, listener, refusals, (connect,)):
        port = int(listener.address.rpartition(":")[2])
        if kind == "no keys":
            async with ZmqTransport.open() as stranger:
                await stranger.connect(f"tcp://127.0.0.1:{port}", name="node", purpose="node")
                with trio.fail_after(5):
                    await refusals.first()
        else:
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(b"" if kind == "port scan" else b"GET / HTTP/1.1\r\n\r\n" * 10)
            with trio.fail_after(5):
                await refusals.first()
            await trio.sleep(0.05)
            assert len(refusals) == 1
        assert refusals[0].reason is reason
        await connect(name="node", purpose="node")
        assert (await listener.accept()).peer == "n2"


async def test_who_says_no_hello_is_sent_away_after_a_while(tmp_path, monkeypatch):
    assert GREETING_S_MAX <= 10
    monkeypatch.setattr("flexpipe.transport.reception.GREETING_S_MAX", 0.05)
    refusals = Refusals()
    async with ZmqTransport.open(on_refusal=refusals) as transport:
        listener = await transport.listen(f"ipc://{tmp_path}/door", name="door")
        with zmq.Context() as context, context.socket(zmq.DEALER) as raw, trio.fail_after(5):
            raw.setsockopt(zmq.LINGER, 0)
            raw.connect(listener.address)
            # A heartbeat before its hello would be garbage; what is valid and empty of sense is silence.
            raw.send_multipart([b""])
            assert (await refusals.first()).reason is RefusalReason.GREETING


async def test_too_many_who_wait_to_be_accepted_are_refused(tmp_path, monkeypatch):
    assert GUESTS_MAX <= 1000
    monkeypatch.setattr("flexpipe.transport.reception.GUESTS_MAX", 2)
    refusals = Refusals()
    async with ZmqTransport.open(on_refusal=refusals) as transport, ZmqTransport.open() as other:
        listener = await transport.listen(f"ipc://{tmp_path}/door", name="door")
        for number in range(3):
            await other.connect(f"ipc://{tmp_path}/door", name="node", purpose=str(number))
            await trio.sleep(0.05)
        with trio.fail_after(5):
            assert (await refusals.first()).reason is RefusalReason.CROWDED
        for number in range(2):
            assert (await listener.accept()).purpose == str(number)


# --- seals ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def sealed_port(seal=SECRET):
    refusals = Refusals()
    address = f"tcp://127.0.0.1:{free_port()}"
    async with ZmqTransport.open(on_refusal=refusals) as transport, ZmqTransport.open() as other:
        yield await transport.bind(address, name="bulk", limits=PATIENT, seal=seal), address, other, refusals


async def test_strangers_at_a_sealed_port_do_not_harm_its_link():
    async with sealed_port() as (bound, address, other, refusals):
        port = int(address.rpartition(":")[2])
        await other.connect(address, name="no seal")
        await other.connect(address, name="wrong seal", seal=ANOTHER_SECRET)
        with trio.fail_after(5):
            while len({each.detail for each in refusals}) < 2:
                await trio.sleep(0.01)
            connected = await other.connect(address, name="bulk", seal=SECRET)
            await connected.send([b"x" * 100_000])
            assert bytes((await bound.receive())[0]) == b"x" * 100_000
            for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, bytes(64)):
                before = len(refusals)
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(greeting)
                while len(refusals) == before:
                    await trio.sleep(0.005)
            await connected.send([b"still here"])
            assert bytes((await bound.receive())[0]) == b"still here"
        assert {each.reason for each in refusals} == {RefusalReason.HANDSHAKE}


async def test_two_ends_with_different_seals_do_not_meet():
    async with sealed_port() as (_, address, other, _):
        connected = await other.connect(address, name="wrong seal", seal=ANOTHER_SECRET)
        with trio.fail_after(5), pytest.raises(PeerLostError, match="key or seal"):
            await connected.receive()


async def test_a_seal_that_only_one_end_of_a_local_link_has_ends_it(tmp_path):
    """Whichever end hears the other first."""

    async def receive(link):
        with pytest.raises(FrameError, match=r"does not seal|not one of ours"):
            await link.receive()
        nursery.cancel_scope.cancel()

    async with ZmqTransport.open() as transport:
        bound = await transport.bind(f"ipc://{tmp_path}/link", name="sealed", seal=SECRET)
        connected = await transport.connect(f"ipc://{tmp_path}/link", name="plain")
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, bound)
                nursery.start_soon(receive, connected)


async def test_nothing_readable_crosses_a_sealed_or_a_keyed_connection(tmp_path):
    words = b"the words of a prompt, long enough to be found"
    for kind in ("seal", "keys"):
        seen = bytearray()
        ring, other = key_rings(tmp_path / kind, "n1", "n2") if kind == "keys" else (None, None)
        seal = SECRET if kind == "seal" else b""
        async with (
            ZmqTransport.open(ring) as transport,
            ZmqTransport.open(other) as peer,
            trio.open_nursery() as nursery,
        ):
            inner, outer = free_port(), free_port()
            bound = await transport.bind(f"tcp://127.0.0.1:{inner}", name="bound", seal=seal)
            await nursery.start(eavesdrop, outer, inner, seen)
            connected = await peer.connect(f"tcp://n1@127.0.0.1:{outer}", name="connected", seal=seal)
            with trio.fail_after(5):
                await connected.send([words, words * 2000])
                assert bytes((await bound.receive())[0]) == words
            nursery.cancel_scope.cancel()
        assert len(seen) > len(words) * 2000
        assert words[:12] not in seen
        assert b"FP" + bytes([1, 2]) not in seen


async def eavesdrop(outer, inner, seen, task_status=trio.TASK_STATUS_IGNORED):
    """Hand on what comes to one port to another, and keep it."""

    async def one_way(source, target):
        async for data in source:
            seen.extend(data)
            await target.send_all(data)

    async def hand_on(stream):
        async with await trio.open_tcp_stream("127.0.0.1", inner) as other, trio.open_nursery() as nursery:
            nursery.start_soon(one_way, stream, other)
            nursery.start_soon(one_way, other, stream)

    await trio.serve_tcp(hand_on, outer, host="127.0.0.1", task_status=task_status)


# --- the rule ---------------------------------------------------------------------------------------------------


async def test_without_keys_nothing_leaves_this_host_unless_insecure():
    async with ZmqTransport.open() as transport:
        for make in (transport.bind, transport.listen):
            with pytest.raises(AddressError, match="flexpipe keys init"):
                await make(f"tcp://0.0.0.0:{free_port()}", name="open to all")
        with pytest.raises(AddressError, match="flexpipe keys init"):
            await transport.connect("tcp://192.0.2.1:7700", name="node", purpose="node")
        with pytest.raises(AddressError, match="flexpipe keys init"):
            await transport.connect("tcp://n2@192.0.2.1:7700", name="bulk")
        await transport.bind(f"tcp://0.0.0.0:{free_port()}", name="bulk", seal=SECRET)
    async with ZmqTransport.open(insecure=True) as transport:
        await transport.listen(f"tcp://0.0.0.0:{free_port()}", name="open to all")
        await transport.connect("tcp://192.0.2.1:7700", name="node", purpose="node")


async def test_with_keys_an_address_must_say_whose(tmp_path):
    ring, _ = key_rings(tmp_path, "n1", "n2")
    async with ZmqTransport.open(ring) as transport:
        for address, sentence in {
            "tcp://127.0.0.1:7700": r"write tcp://NODE@127\.0\.0\.1:7700",
            "tcp://n9@127.0.0.1:7700": "flexpipe keys add n9 KEY",
        }.items():
            with pytest.raises(AddressError, match=sentence):
                await transport.connect(address, name="node", purpose="node")
        with pytest.raises(AddressError, match="is node n2's, and this is n1"):
            await transport.listen(f"tcp://n2@127.0.0.1:{free_port()}", name="door")
        await transport.listen(f"tcp://n1@127.0.0.1:{free_port()}", name="door")
