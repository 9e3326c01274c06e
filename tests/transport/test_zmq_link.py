"""What only real processes and sockets show: death, hanging, garbage, strangers, files left behind."""

import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import zmq
from flexpipe.transport.address import AddressError
from flexpipe.transport.frames import FrameKind, Hello, encode_frame, encode_hello
from flexpipe.transport.interface import FrameError, LinkLimits, PeerLostError
from flexpipe.transport.zmq_link import ZmqTransport

SUDDEN = LinkLimits(heartbeat_interval_s=0.05, silence_s_max=0.2)
"""For peers that fall silent: the wait is part of what is tested."""

PEER = """
import sys, trio
from flexpipe.transport.interface import LinkLimits
from flexpipe.transport.zmq_link import ZmqTransport

async def main():
    limits = LinkLimits(heartbeat_interval_s=0.05, silence_s_max=5)
    async with ZmqTransport.open() as transport:
        link = await transport.connect(sys.argv[1], name="peer", limits=limits)
        for number in range(20):
            await link.send([bytes([number])])
        await trio.sleep_forever()

trio.run(main)
"""


@asynccontextmanager
async def peer_process(address):
    process = await trio.lowlevel.open_process([sys.executable, "-c", PEER, address])
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def receive_for_ever(link, got):
    while True:
        got.append((await link.receive())[0][0])


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
async def test_a_killed_process_is_lost_at_once_after_its_last_message(scheme, tmp_path):
    address = f"ipc://{tmp_path}/link" if scheme == "ipc" else f"tcp://127.0.0.1:{free_port()}"
    patient = LinkLimits(silence_s_max=3600)
    async with ZmqTransport.open() as transport:
        link = await transport.bind(address, name="survivor", limits=patient)
        async with peer_process(address) as process:
            got = [(await link.receive())[0][0]]
            process.kill()
            with trio.fail_after(10):
                with pytest.raises(PeerLostError, match="connection ended"):
                    await receive_for_ever(link, got)
                assert got == list(range(len(got)))
                with pytest.raises(PeerLostError):
                    await link.send([b"x"])
    assert list(tmp_path.iterdir()) == []


async def test_a_stopped_process_is_lost_by_its_silence(tmp_path):
    address = f"ipc://{tmp_path}/link"
    async with ZmqTransport.open() as transport:
        link = await transport.bind(address, name="survivor", limits=SUDDEN)
        async with peer_process(address) as process:
            for _ in range(20):
                await link.receive()
            process.send_signal(signal.SIGSTOP)
            with trio.fail_after(10), pytest.raises(PeerLostError, match="nothing was heard"):
                await link.receive()


async def test_heartbeats_keep_an_idle_link_up(tmp_path):
    async with ZmqTransport.open() as transport:
        bound = await transport.bind(f"ipc://{tmp_path}/link", name="bound", limits=SUDDEN)
        connected = await transport.connect(f"ipc://{tmp_path}/link", name="connected", limits=SUDDEN)
        with trio.move_on_after(3 * SUDDEN.silence_s_max):
            await bound.receive()
        await connected.send([b"still here"])
        assert bytes((await bound.receive())[0]) == b"still here"


async def test_the_socket_file_is_private_and_gone_once_both_ends_met(tmp_path):
    path = tmp_path / "link"
    async with ZmqTransport.open() as transport:
        bound = await transport.bind(f"ipc://{path}", name="bound")
        assert path.stat().st_mode & 0o777 == 0o600
        connected = await transport.connect(f"ipc://{path}", name="connected")
        await connected.send([b"x"])
        await bound.receive()
        await bound.aclose()
        assert not path.exists()


async def test_a_file_left_by_a_killed_process_is_taken_over_and_other_files_are_not(tmp_path):
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    precious = tmp_path / "precious"
    precious.write_text("data")
    async with ZmqTransport.open() as transport:
        await transport.bind(f"ipc://{stale}", name="bound")
        with pytest.raises(AddressError, match="Address already in use"):
            await transport.bind(f"ipc://{precious}", name="bound")
    assert precious.read_text() == "data"


async def test_nothing_binds_beyond_loopback(tmp_path):
    async with ZmqTransport.open() as transport:
        with pytest.raises(AddressError, match="there are no keys"):
            await transport.bind("tcp://0.0.0.0:7777", name="open to all")


async def test_strangers_that_knock_on_the_port_do_not_harm_a_link():
    port = free_port()
    async with ZmqTransport.open() as transport:
        bound = await transport.bind(f"tcp://127.0.0.1:{port}", name="bound", limits=SUDDEN)
        connected = await transport.connect(f"tcp://127.0.0.1:{port}", name="connected", limits=SUDDEN)
        for number in range(5):
            for greeting in (b"", b"GET / HTTP/1.1\r\n\r\n"):
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(greeting)
            await connected.send([bytes([number])])
            assert (await bound.receive())[0][0] == number
        with trio.move_on_after(SUDDEN.silence_s_max):
            await bound.receive()
        await connected.send([b"done"])
        await bound.receive()


HELLO = encode_frame(FrameKind.HELLO, 0, 0, [encode_hello(Hello(1, 8, 1000, 0.05))])
GARBAGE = {
    "not a frame": ([b"garbage"], "its header alone needs"),
    "many segments": ([b"x"] * 500, "its header alone needs"),
    "message before hello": (encode_frame(FrameKind.MESSAGE, 1, 0, [b"x"]), "before the peer's HELLO"),
    "gap": (encode_frame(FrameKind.MESSAGE, 7, 0, [b"x"]), "sequence number 7, 1 was expected"),
}


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_peer_that_sends_garbage_is_lost_with_a_sentence(garbage, tmp_path):
    segments, sentence = GARBAGE[garbage]
    context = zmq.Context()
    raw = context.socket(zmq.DEALER)
    try:
        async with ZmqTransport.open() as transport:
            link = await transport.bind(f"ipc://{tmp_path}/link", name="bound", limits=SUDDEN)
            raw.connect(f"ipc://{tmp_path}/link")
            if garbage == "gap":
                raw.send_multipart(HELLO)
            raw.send_multipart(segments)
            with trio.fail_after(10):
                with pytest.raises(FrameError, match=sentence):
                    await link.receive()
                with pytest.raises(PeerLostError, match=sentence):
                    await link.send([b"x"])
    finally:
        raw.close(0)
        context.term()


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_descriptor_is_left_after_many_links(tmp_path):
    async def one_link():
        async with ZmqTransport.open() as transport:
            bound = await transport.bind(f"ipc://{tmp_path}/link", name="bound")
            connected = await transport.connect(f"ipc://{tmp_path}/link", name="connected")
            await connected.send([b"x"])
            await bound.receive()

    await one_link()
    before = open_descriptors()
    for _ in range(5):
        await one_link()
    assert open_descriptors() <= before


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
