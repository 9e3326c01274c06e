"""The shared-memory ring: content, ownership of slots, and what is left when either side dies."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import trio
from flexpipe.transport.address import AddressError
from flexpipe.transport.interface import FrameError, LinkClosedError, PeerLostError
from flexpipe.transport.ring import _OFFER, _OFFER_MAGIC, RingReader, RingWriter
from flexpipe.transport.unix_socket import new_unix_socket
from trio.testing import wait_all_tasks_blocked

SLOTS = 3
SLOT_BYTES = 10_000


@contextmanager
def ring(folder):
    with (
        RingReader.listen(f"{folder}/ring") as reader,
        RingWriter.connect(f"{folder}/ring", slots=SLOTS, slot_bytes=SLOT_BYTES) as writer,
    ):
        yield writer, reader


async def test_what_is_written_is_read_in_place(tmp_path):
    tensor = np.arange(2500, dtype=np.float32)
    with ring(tmp_path) as (writer, reader):
        for round_number in range(10):
            slot = await writer.acquire()
            size = writer.write(slot, (tensor * round_number).data)
            view = reader.view(slot, size)
            np.testing.assert_array_equal(np.frombuffer(view, np.float32), tensor * round_number)
            reader.release(slot)


async def test_a_writer_waits_until_a_slot_is_released(tmp_path):
    got = []

    async def acquire(writer):
        got.append(await writer.acquire())

    with ring(tmp_path) as (writer, reader):
        slots = [await writer.acquire() for _ in range(SLOTS)]
        assert sorted(slots) == list(range(SLOTS))
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(acquire, writer)
            await wait_all_tasks_blocked()
            assert got == []
            for slot in slots[:2]:
                reader.view(slot, 1)
                reader.release(slot)
        assert sorted(got) == sorted(slots[:2])


async def test_a_slot_that_was_given_back_is_free_again_and_wakes_a_waiter(tmp_path):
    with ring(tmp_path) as (writer, _):
        slots = [await writer.acquire() for _ in range(SLOTS)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.acquire)
            await wait_all_tasks_blocked()
            writer.give_back(slots[0])


async def test_cancelled_acquires_lose_no_slot(tmp_path):
    with ring(tmp_path) as (writer, reader):
        held = [await writer.acquire() for _ in range(SLOTS)]
        for _ in range(30):
            with trio.move_on_after(0) as scope:
                await writer.acquire()
            assert scope.cancelled_caught
            reader.view(held[0], 1)
            reader.release(held.pop(0))
            held.append(await writer.acquire())
        assert sorted(held) == list(range(SLOTS))


async def test_data_over_the_slot_size_and_unknown_slots_are_refused(tmp_path):
    with ring(tmp_path) as (writer, reader):
        slot = await writer.acquire()
        with pytest.raises(FrameError, match="do not fit a ring slot"):
            writer.write(slot, bytes(SLOT_BYTES + 1))
        for bad_slot, bad_size in ((SLOTS, 1), (-1, 1), (slot, SLOT_BYTES + 1)):
            with pytest.raises(FrameError, match="does not exist"):
                reader.view(bad_slot, bad_size)


async def test_each_side_learns_that_the_other_closed(tmp_path):
    async def expect_loss(writer):
        with pytest.raises(PeerLostError):
            await writer.acquire()

    with ring(tmp_path) as (writer, reader):
        for slot in [await writer.acquire() for _ in range(SLOTS)]:
            reader.view(slot, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_loss, writer)
            await wait_all_tasks_blocked()
            reader.close()
    with ring(tmp_path) as (writer, reader):
        slot = await writer.acquire()
        reader.view(slot, 1)
        writer.close()
        reader.release(slot)
        with pytest.raises(LinkClosedError):
            await writer.acquire()


async def test_a_view_outlives_both_ends(tmp_path):
    with ring(tmp_path) as (writer, reader):
        slot = await writer.acquire()
        writer.write(slot, b"still here")
        view = reader.view(slot, 10)
    assert bytes(view) == b"still here"


def test_an_offer_to_nobody_is_a_lost_peer(tmp_path):
    with pytest.raises(PeerLostError, match="no ring reader"):
        RingWriter.connect(f"{tmp_path}/ring", slots=1, slot_bytes=1)


def test_only_one_reader_listens_at_a_path(tmp_path):
    with RingReader.listen(f"{tmp_path}/ring"), pytest.raises(AddressError):
        RingReader.listen(f"{tmp_path}/ring")


def test_a_slot_number_without_an_offer_is_a_fault(tmp_path):
    with RingReader.listen(f"{tmp_path}/ring") as reader, pytest.raises(FrameError, match="no writer has offered"):
        reader.view(0, 1)


@pytest.mark.parametrize("offer", ["nothing", "garbage", "unsealed", "a file"])
def test_an_offer_that_is_not_sealed_memory_is_refused(offer, tmp_path):
    good = _OFFER.pack(_OFFER_MAGIC, 1, 4096)
    with RingReader.listen(f"{tmp_path}/ring") as reader, new_unix_socket(socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(f"{tmp_path}/ring")
        if offer == "garbage":
            stranger.send(b"x" * 100)
        elif offer == "unsealed":
            memory = os.memfd_create("x")
            os.ftruncate(memory, 4096)
            socket.send_fds(stranger, [good], [memory])
            os.close(memory)
        elif offer == "a file":
            with (tmp_path / "file").open("wb") as file:
                file.truncate(4096)
                socket.send_fds(stranger, [good], [file.fileno()])
        with pytest.raises(FrameError):
            reader.view(0, 1)


WRITER = """
import sys, trio
from flexpipe.transport.ring import RingWriter

async def main():
    with RingWriter.connect(sys.argv[1], slots=2, slot_bytes=100) as writer:
        slot = await writer.acquire()
        writer.write(slot, b"from the grave")
        print(slot, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_killed_writer_leaves_its_data_and_nothing_else(tmp_path):
    with RingReader.listen(f"{tmp_path}/ring") as reader:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", WRITER, f"{tmp_path}/ring"], stdout=subprocess.PIPE
        )
        slot = int(await process.stdout.receive_some())
        process.kill()
        await process.wait()
        await process.stdout.aclose()
        assert bytes(reader.view(slot, 14)) == b"from the grave"
        reader.release(slot)
        assert list(tmp_path.iterdir()) == []


def memory_map():
    return Path("/proc/self/maps").read_text()


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_closing_leaves_no_descriptor_and_no_file(tmp_path):
    before = open_descriptors()
    for _ in range(3):
        with ring(tmp_path) as (writer, reader):
            slot = await writer.acquire()
            reader.view(slot, 1)
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []
    assert "flexpipe-ring" not in memory_map()
