"""A real engine behind the awaited port: steps beside loads and copies, checksums that are checked, errors that arrive."""

import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from flexpipe.actors.engine_thread import SMALL_COPY_BYTES_MAX, EngineThread
from flexpipe.runtime.capturing.capture import capture
from flexpipe.runtime.interface import EngineError, EngineSpec, ModelFiles, RaggedBatch, StageFacts
from flexpipe.runtime.page_checksum import page_checksum
from flexpipe.runtime.program import load_program, save_program
from flexpipe.runtime.stage_engine import LoweredStageEngine
from page_store import layer_pages
from tiny_models import FAMILIES, random_model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    random_model(FAMILIES["llama"]()).save_pretrained(folder)
    save_program(capture(folder), folder / "program.json")
    return ModelFiles(str(folder), str(folder / "program.json"))


def atoms_of(files):
    return len(load_program(Path(files.program_file)).atoms)


async def ignore(_done, _total):
    pass


def one_token():
    index = np.zeros(1, np.int32)
    return RaggedBatch(index, index, np.array([0, 1], np.int32), np.zeros((1, 1), np.int32), index)


def engine_thread(files):
    return EngineThread(partial(LoweredStageEngine, files=files))


async def loaded(files, atoms):
    engine = engine_thread(files)
    facts = await engine.load(EngineSpec(), atoms, ignore)
    return engine, facts


async def test_steps_go_on_while_more_atoms_are_loaded(files):
    engine, _ = await loaded(files, range(3))
    await engine.reserve(range(3), 4)
    expected = bytes((await engine.run(range(3), one_token(), None, ())).hidden.data)
    facts = []

    async def load():
        facts.append(await engine.load(EngineSpec(), range(atoms_of(files)), ignore))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load)
        while not facts:
            assert bytes((await engine.run(range(3), one_token(), None, ())).hidden.data) == expected
    assert facts[0].weights.kept_bytes > 0
    assert facts[0].weights.disk_bytes > 0


async def test_reserve_says_what_all_pages_may_take(files):
    engine, facts = await loaded(files, range(atoms_of(files)))
    assert await engine.reserve(range(atoms_of(files)), 7) == 7 * sum(facts.page_bytes)
    assert await engine.drop(range(2), 7) > 0
    assert await engine.reserve(range(2), 7) < 7 * sum(facts.page_bytes)


async def test_pages_move_with_a_checksum_that_both_ends_compute(files):
    donor, facts = await loaded(files, range(atoms_of(files)))
    acquirer, _ = await loaded(files, range(atoms_of(files)))
    await donor.reserve(range(atoms_of(files)), 4)
    await acquirer.reserve(range(atoms_of(files)), 4)
    await donor.run(range(3), one_token(), None, ())
    size = facts.page_bytes[0]
    data, pages = memoryview(bytearray(size)), [layer_pages(0, [0], page_bytes=size)]
    checksum = await donor.gather_pages(pages, data)
    assert checksum == page_checksum(data)
    assert any(data)
    assert await acquirer.scatter_pages(pages, data, checksum)
    back = memoryview(bytearray(size))
    assert await acquirer.gather_pages(pages, back) == checksum
    assert back == data


async def test_pages_with_a_wrong_checksum_change_nothing(files):
    engine, facts = await loaded(files, range(atoms_of(files)))
    await engine.reserve(range(atoms_of(files)), 4)
    pages = [layer_pages(0, [2], page_bytes=facts.page_bytes[0])]
    before, page = (memoryview(bytearray(facts.page_bytes[0])) for _ in range(2))
    await engine.gather_pages(pages, before)
    page[5] = 1
    assert not await engine.scatter_pages(pages, page, page_checksum(before))
    after = memoryview(bytearray(facts.page_bytes[0]))
    await engine.gather_pages(pages, after)
    assert after == before


async def test_errors_of_the_engine_arrive_and_leave_it_usable(files):
    engine, _ = await loaded(files, range(3))
    await engine.reserve(range(3), 4)
    with pytest.raises(EngineError, match="were not loaded"):
        await engine.run(range(4), one_token(), None, ())
    with pytest.raises(EngineError, match="layer 99"):
        await engine.gather_pages([layer_pages(99, [0], page_bytes=1)], memoryview(bytearray(1)))
    with pytest.raises(EngineError, match="atoms"):
        await engine.load(EngineSpec(), range(1000), ignore)
    assert (await engine.run(range(3), one_token(), None, ())).hidden is not None


async def test_before_its_first_load_a_worker_has_nothing_to_drop(files):
    engine = engine_thread(files)
    assert await engine.drop(range(3), 0) == 0
    assert engine.peak_rss_bytes() > 0


class GatedEngine:
    """Loads only once a step was run meanwhile; tells which threads called."""

    def __init__(self, _spec):
        self.stepped = threading.Event()
        self.threads = {"make": threading.get_ident()}

    def use_threads(self, threads):
        self.threads["use_threads"] = threading.get_ident()

    def load(self, _atoms, progress):
        self.threads["load"] = threading.get_ident()
        progress(1, 2)
        self.stepped.wait()
        progress(2, 2)
        return StageFacts(0, 0, 0, (), (), (), "", "")

    def run(self, *_arguments):
        self.threads["run"] = threading.get_ident()
        self.stepped.set()

    def gather_pages(self, _layer, _blocks, _out):
        self.threads["gather"] = threading.get_ident()


async def test_a_step_waits_for_neither_a_load_nor_a_copy():
    made = []

    def make(spec):
        made.append(GatedEngine(spec))
        return made[0]

    engine = EngineThread(make)
    size = SMALL_COPY_BYTES_MAX + 1
    told = []

    async def progress(done, total):
        told.append((done, total))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.load, EngineSpec(), range(1), progress)
        while not made or "load" not in made[0].threads:
            await trio.lowlevel.checkpoint()
        while not told:
            await trio.lowlevel.checkpoint()
        await engine.gather_pages([layer_pages(0, [0], page_bytes=size)], memoryview(bytearray(size)))
        await engine.run(range(1), one_token(), None, ())
    assert told[0] == (1, 2)
    threads = made[0].threads
    assert threads["make"] == threads["load"]
    assert threads["use_threads"] == threads["run"]  # which starts the kernels' own
    assert len({threads["run"], threads["load"], threads["gather"], threading.get_ident()}) == 4


class ShortEngine:
    """Says how many blocks may be in use before it wants to find memory again; remembers for how many it was asked."""

    def __init__(self):
        self.asked = []

    def use_threads(self, _threads):
        pass

    def load(self, _atoms, _progress):
        return StageFacts(0, 0, 0, (), (), (), "", "")

    def reserve(self, _atoms, _blocks):
        return 0

    def run(self, *_arguments):
        pass

    def scatter_pages(self, _layer, _blocks, _data):
        pass

    def back_pages(self, blocks, rest):
        self.asked.append(blocks)
        rest()
        return blocks + 4


def one_token_in(block):
    index = np.zeros(1, np.int32)
    return RaggedBatch(index, index, np.array([0, 1], np.int32), np.full((1, 1), block, np.int32), index)


async def test_memory_is_found_ahead_of_the_blocks_that_steps_use_and_pages_come_to():
    short = ShortEngine()
    engine = EngineThread(lambda _spec: short)

    async def asked(times):
        while len(short.asked) < times or not engine.is_backed:
            await trio.lowlevel.checkpoint()
        return short.asked

    await engine.load(EngineSpec(), range(1), ignore)
    await engine.reserve(range(1), 100)
    assert await asked(1) == [0]
    await engine.run(range(1), one_token_in(block=3), None, ())  # the fourth of four
    await engine.run(range(1), one_token_in(block=4), None, ())
    assert await asked(2) == [0, 5]
    data = memoryview(bytes(1))
    await engine.scatter_pages([layer_pages(0, [8], page_bytes=1)], data, page_checksum(data))
    await engine.scatter_pages([layer_pages(0, [9], page_bytes=1)], data, page_checksum(data))
    assert await asked(3) == [0, 5, 10]
    await engine.reserve(range(1), 100)
    assert await asked(4) == [0, 5, 10, 0]


@pytest.mark.parametrize(("device", "here"), [("cpu", True), ("cuda:0", False)])
async def test_a_few_pages_in_host_memory_are_copied_without_waking_a_thread(device, here):
    gated, size = GatedEngine(None), SMALL_COPY_BYTES_MAX
    gated.stepped.set()
    engine = EngineThread(lambda _spec: gated)
    await engine.load(EngineSpec(device=device), range(1), _ignore)
    await engine.gather_pages([layer_pages(0, [0], page_bytes=size)], memoryview(bytearray(size)))
    assert (gated.threads["gather"] == threading.get_ident()) is here


async def _ignore(_done, _total):
    pass
