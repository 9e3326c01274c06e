"""Hostile frames against every kind of socket: nothing crashes, nothing hangs, memory stays bounded, and each refusal is told once.

FLEXPIPE_FUZZ_FRAMES says how many frames each test throws (10,000 unless given; 1,000,000 for the long form).
"""

import os
import random
import socket
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio
import zmq
from flexpipe.transport.authenticator import TOKEN_USER
from flexpipe.transport.gate import token_of
from flexpipe.transport.interface import SEAL_BYTES, FrameError, LinkLimits, PeerLostError, TransportError
from flexpipe.transport.key_ring import revoke
from flexpipe.transport.link_machine import LinkMachine
from flexpipe.transport.refusal import RefusalReason
from flexpipe.transport.seal import Seal
from flexpipe.transport.zmq_link import ZmqTransport
from hostile_frames import HostileFrames, flat
from key_rings import free_port, key_rings

FRAMES = int(os.environ.get("FLEXPIPE_FUZZ_FRAMES", "10000"))
FRAMES_A_CONVERSATION = 25
GROWTH_BYTES_MAX = 100 << 20
"""How much a process may grow: libzmq and the allocator keep some of what they once had, whatever the number of frames."""
LIMITS = LinkLimits(message_bytes_max=1 << 20, silence_s_max=3600)
SECRET = b"s" * SEAL_BYTES


@contextmanager
def bounded_memory():
    before = resident_bytes()
    yield
    assert resident_bytes() - before < GROWTH_BYTES_MAX


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def attacker(context, address, **options):
    """A raw socket that connects once, and leaves what it sent to libzmq to deliver."""
    with context.socket(zmq.DEALER) as raw:
        for name, value in options.items():
            setattr(raw, name, value)
        raw.linger = 2000
        raw.reconnect_ivl = -1
        with raw.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED):
            raw.connect(address)
            yield raw
            raw.disable_monitor()


async def handshake_over(raw):
    """Wait until it is let in: who leaves before is a stranger, and refused as one."""
    while not raw.get_monitor_socket().poll(0):
        await trio.sleep(0.001)


def throw(raw, frames):
    for frame in frames:
        raw.send_multipart(frame)


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context


def test_a_link_machine_takes_any_frame_and_ends_at_most_once():
    hostile = HostileFrames(1)
    with bounded_memory():
        for number in range(FRAMES // FRAMES_A_CONVERSATION):
            machine = LinkMachine("fuzzed", LIMITS, number, 0.0, listens=number % 2 == 0)
            for frame in hostile.conversation(FRAMES_A_CONVERSATION):
                if machine.is_open:
                    machine.frame_received([memoryview(segment) for segment in frame], 0.0)
            assert machine.is_open or machine.receive_error() is not None


def test_a_seal_opens_nothing_that_was_not_sealed_for_it_and_goes_on():
    luck = random.Random(2)
    hostile = HostileFrames(2)
    ends = Seal(SECRET, binds=True), Seal(SECRET, binds=False)
    other = Seal(SECRET, binds=True)
    for source, target in (ends, ends[::-1]):
        target.open([memoryview(segment) for segment in flat(source.seal([b"hello"]))])
    source, target = ends
    recorded = [flat(source.seal([b"recorded", b"x" * 50]))]
    target.open([memoryview(segment) for segment in recorded[0]])
    with bounded_memory():
        for number in range(FRAMES):
            honest = flat(source.seal([number.to_bytes(4, "little"), b"x" * 40]))
            wrong = luck.choice(
                [changed, shortened, reordered, luck.choice(recorded), flat(other.seal([b"x"])), hostile.frame()]
            )
            wrong = wrong(luck, honest) if callable(wrong) else wrong
            with pytest.raises(FrameError):
                target.open([memoryview(segment) for segment in wrong])
            opened = target.open([memoryview(segment) for segment in honest])
            assert bytes(opened[0]) == number.to_bytes(4, "little")
            if number < 50:
                recorded.append(honest)


def changed(luck, frame):
    segments = [bytearray(segment) for segment in frame]
    segment = luck.choice(segments)
    segment[luck.randrange(len(segment))] ^= 1 << luck.randrange(8)
    return segments


def shortened(luck, frame):
    first, second = frame
    return luck.choice([[first], [first, second[: luck.randrange(len(second))]], [first[: luck.randrange(len(first))]]])


def reordered(_luck, frame):
    return frame[::-1]


@pytest.mark.parametrize("kind", ["ipc", "keys"])
async def test_a_listener_sends_each_hostile_peer_away_once_and_serves_the_others(kind, context, tmp_path):
    hostile = HostileFrames(3)
    refusals, ended = [], []
    rings = key_rings(tmp_path, "n1", "n2") if kind == "keys" else (None, None)
    attacks = FRAMES // FRAMES_A_CONVERSATION

    async def serve(listener):
        while True:
            accepted = await listener.accept()
            nursery.start_soon(drain, accepted.link if accepted.purpose != "honest" else None, accepted.link)

    async def drain(hostile_link, link):
        with suppress(TransportError):
            while True:
                parts = await link.receive()
                if hostile_link is None:
                    await link.send(parts)
        if hostile_link is not None:
            ended.append(link)
            await link.aclose()

    async with (
        ZmqTransport.open(rings[0], on_refusal=refusals.append) as transport,
        ZmqTransport.open(rings[1]) as other,
    ):
        place = f"ipc://{tmp_path}/door" if kind == "ipc" else f"tcp://127.0.0.1:{free_port()}"
        listener = await transport.listen(place, name="door", limits=LIMITS)
        honest_place = place if kind == "ipc" else place.replace("tcp://", "tcp://n1@")
        curve = curve_of(*rings) if kind == "keys" else {}
        with bounded_memory(), trio.fail_after(20 + FRAMES / 500):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, listener)
                honest = await other.connect(honest_place, name="honest", limits=LIMITS, purpose="honest")
                for number in range(attacks):
                    with attacker(context, place, **curve) as raw:
                        throw(raw, hostile.conversation(FRAMES_A_CONVERSATION))
                        await handshake_over(raw)
                    await honest.send([number.to_bytes(4, "little")])
                    assert bytes((await honest.receive())[0]) == number.to_bytes(4, "little")
                    while len(refusals) + len(ended) < number - 8:  # a few attack at once
                        await trio.sleep(0.001)
                while len(refusals) + len(ended) < attacks:
                    await trio.sleep(0.001)
                await honest.send([b"still here"])
                assert bytes((await honest.receive())[0]) == b"still here"
                nursery.cancel_scope.cancel()
    assert len(refusals) + len(ended) == attacks
    assert {each.reason for each in refusals} == {RefusalReason.GREETING}
    assert ended


def curve_of(ring, other):
    return {"curve_serverkey": ring.public, "curve_publickey": other.public, "curve_secretkey": other.secret}


@pytest.mark.parametrize("kind", ["plain", "sealed"])
async def test_a_link_ends_once_and_hands_out_nothing_false_whatever_comes(kind, context, tmp_path):
    """The attacker of a sealed link watches the network, so it knows the token, and has recorded links under the same seal."""
    hostile = HostileFrames(4)
    luck = random.Random(4)
    recorder = Seal(SECRET, binds=False)
    recorded = [flat(recorder.seal([b"".join(hostile.hello(""))])) for _ in range(3)]
    seal = SECRET if kind == "sealed" else b""

    def draw(frames):
        if not seal:
            return hostile.conversation(frames)
        return [luck.choice([luck.choice(recorded), hostile.frame()]) for _ in range(frames)]

    options = {"plain_username": TOKEN_USER, "plain_password": token_of(SECRET)} if seal else {}
    with bounded_memory():
        async with ZmqTransport.open() as transport:
            for _ in range(FRAMES // FRAMES_A_CONVERSATION):
                address = f"tcp://127.0.0.1:{free_port()}" if seal else f"ipc://{tmp_path}/link"
                link = await transport.bind(address, name="fuzzed", limits=LIMITS, seal=seal)
                with attacker(context, address, **options) as raw, trio.fail_after(5):
                    throw(raw, [*draw(FRAMES_A_CONVERSATION - 1), hostile.huge()])
                    received = await receive_all(link)
                    assert not (seal and received), "no message is possible without the seal"
                await link.aclose()


async def test_who_has_no_key_gets_no_further_than_one_event(context, tmp_path):
    """Bytes that are no ZeroMQ, beginnings of it, keys that were revoked."""
    luck = random.Random(5)
    refusals = []
    ring, other = key_rings(tmp_path, "n1", "n2")
    revoke(ring.folder, "n2")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
    attacks = max(FRAMES // 50, 20)
    async with ZmqTransport.open(ring, on_refusal=refusals.append) as transport:
        listener = await transport.listen(f"tcp://n1@127.0.0.1:{free_port()}", name="door", limits=LIMITS)
        port = int(listener.address.rpartition(":")[2])
        with bounded_memory(), trio.fail_after(30 + FRAMES / 200):
            for number in range(attacks):
                if number % 4 == 0:
                    with attacker(context, f"tcp://127.0.0.1:{port}", **curve_of(ring, other)) as raw:
                        throw(raw, [[b"let me in"]])
                        raw.linger = 0
                        await event(refusals, number)
                    continue
                words = luck.choice(
                    [
                        luck.randbytes(200),
                        b"GET / HTTP/1.1\r\n\r\n",
                        greeting[: luck.randrange(64)],
                        greeting + luck.randbytes(300),
                    ]
                )
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(words)
                await event(refusals, number)
    assert len(refusals) == attacks
    assert {each.reason for each in refusals} == {RefusalReason.HANDSHAKE, RefusalReason.KEY_UNKNOWN}


async def receive_all(link):
    """How many messages come before the link ends, as it must."""
    count = 0
    with suppress(FrameError, PeerLostError):
        while True:
            await link.receive()
            count += 1
    return count


async def event(refusals, number):
    while len(refusals) <= number:
        await trio.sleep(0.001)
