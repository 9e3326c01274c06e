"""Memory that grows without moving, comes back when it is let go, and is shared between processes without ever killing one."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from flexpipe.runtime.kernels.page_copy import gather_rows, scatter_rows
from flexpipe.runtime.kv_pages import KvPages
from flexpipe.runtime.mapped_memory import HUGE_PAGE_BYTES, AddressSpace, collapse, map_file, populate
from flexpipe.runtime.program import AttentionLayer


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_address_space_grows_in_place_and_keeps_its_content():
    space = AddressSpace(1 << 40)
    first = space.open(1000)
    first[:] = 7
    more = space.open(5 * HUGE_PAGE_BYTES)
    assert more.ctypes.data == first.ctypes.data
    assert more[:1000].tolist() == [7] * 1000
    assert not more[1000:].any()


def test_memory_is_put_behind_what_is_opened_piece_by_piece_before_anyone_writes():
    space = AddressSpace(1 << 30)
    memory = space.open(3 * HUGE_PAGE_BYTES)
    memory[:5] = 1
    before = resident_bytes()
    for pieces in (1, 2, 3, 3):
        space.back()
        assert space.backed == pieces * HUGE_PAGE_BYTES
    assert resident_bytes() - before >= 2 * HUGE_PAGE_BYTES
    assert memory[:6].tolist() == [1] * 5 + [0]
    space.discard(HUGE_PAGE_BYTES + 1)
    assert space.backed == HUGE_PAGE_BYTES


def test_discarded_memory_goes_back_to_the_system_and_reads_as_zeros():
    space = AddressSpace(1 << 30)
    memory = space.open(64 << 20)
    memory[:] = 1
    before = resident_bytes()
    space.discard(8 << 20)
    assert before - resident_bytes() > 50 << 20
    assert memory[: 8 << 20].all()
    assert not memory[8 << 20 :].any()


def test_arrays_keep_their_address_space_and_give_it_back_with_the_last():
    memory = AddressSpace(1 << 30).open(64 << 20)
    memory[:] = 1
    part = memory[:10]
    del memory
    before = resident_bytes()
    assert part.all()
    del part
    assert before - resident_bytes() > 50 << 20


def test_more_than_the_address_space_is_an_error():
    with pytest.raises(MemoryError, match="address space for 10"):
        AddressSpace(10).open(11)
    with pytest.raises(MemoryError, match="no address space"):
        AddressSpace(1 << 62)


def test_a_mapped_file_shows_what_its_writer_writes(tmp_path):
    content = np.random.default_rng(0).integers(0, 255, HUGE_PAGE_BYTES + 5000, dtype=np.uint8)
    with (tmp_path / "file").open("w+b") as file:
        file.write(content.tobytes())
        file.flush()
        mapped = map_file(file.fileno(), len(content))
        populate(mapped)
        assert isinstance(collapse(mapped), bool)  # whether a file system has huge pages is its own business
        assert np.array_equal(mapped, content)
        os.pwrite(file.fileno(), b"new", HUGE_PAGE_BYTES)
    assert mapped[HUGE_PAGE_BYTES:][:3].tobytes() == b"new"


def test_a_descriptor_that_cannot_be_mapped_is_an_error():
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match=r"No such device|Permission denied"):
            map_file(read, 10)
    finally:
        os.close(read)
        os.close(write)


def test_nothing_here_keeps_address_space_once_it_is_let_go():
    def mapped_ranges():
        return len(Path("/proc/self/maps").read_text().splitlines())

    AddressSpace(1 << 30).open(10)
    before = mapped_ranges()
    for _ in range(50):
        AddressSpace(1 << 30).open(10)
    assert mapped_ranges() - before < 25


def test_blocks_in_use_and_some_more_have_memory_in_every_layer_before_they_are_written():
    geometries = [AttentionLayer(layer, kv_heads=1, key_dim=1, value_dim=1, query_heads=1) for layer in range(2)]
    held = KvPages(geometries, lambda _: HUGE_PAGE_BYTES // 8, torch.float32, torch.device("cpu"))  # two a piece
    held.add([held.make(layer) for layer in range(2)])
    held.reserve(range(2), 100)
    rests = []
    enough = held.back(3, lambda: rests.append(True))
    assert [layer.backed for layer in held.layers.values()] == [20, 20]  # 3 and 16 more, in pieces of two
    assert (enough, len(rests)) == (4, 2 * 10)
    assert held.back(4, lambda: rests.append(True)) == 4
    assert held.back(100, lambda: rests.append(True)) == 100
    assert len(rests) == 2 * 50


@pytest.mark.parametrize("blocks", [[0], [3, 1, 2], [2, 3, 4, 0], [5, 4, 3, 2, 1, 0]])
def test_rows_are_gathered_and_scattered_like_numpy_does(blocks):
    pages = np.random.default_rng(1).integers(0, 255, (6, 100), dtype=np.uint8)
    index = np.array(blocks, np.int32)
    out = np.zeros(len(blocks) * 100, np.uint8)
    gather_rows(pages, index, out)
    assert np.array_equal(out.reshape(-1, 100), pages[blocks])
    target, expected = np.zeros_like(pages), np.zeros_like(pages)
    scatter_rows(target, index, out)
    expected[blocks] = pages[blocks]
    assert np.array_equal(target, expected)


@pytest.mark.parametrize("wrong", [6, -1, 2**31 - 1])
def test_one_block_outside_leaves_every_row_alone(wrong):
    pages, data = np.zeros((6, 100), np.uint8), np.ones(300, np.uint8)
    index = np.array([0, 1, wrong], np.int32)
    with pytest.raises(IndexError, match=str(wrong)):
        scatter_rows(pages, index, data)
    assert not pages.any()
    with pytest.raises(IndexError, match=str(wrong)):
        gather_rows(pages, index, data)
    assert data.all()
