"""The model of an engine: what it promises the checkers of the simulated world."""

import pytest
from flexpipe.runtime.interface import EngineError, EngineSpec, OutOfMemoryError, SamplingParams
from flexpipe.sim.modelled_engine import (
    PAGE_BYTES,
    WEIGHT_BYTES,
    FaultlessHistory,
    ModelledEngine,
    ModelledModel,
    ModelledSpeed,
    expected_tokens,
)
from page_store import layer_pages

MODEL = ModelledModel(layers=4, vocabulary=500)
PAGE = [layer_pages(0, [1], page_bytes=PAGE_BYTES)]


async def nobody(done, total):
    pass


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0.0), SamplingParams(seed=3, presence_penalty=0.5)], ids=["greedy", "varied"]
)
def test_the_history_token_by_token_is_the_one_computed_at_once(params):
    history = FaultlessHistory(MODEL, range(9), params)
    assert [history.next().token_id for _ in range(20)] == expected_tokens(MODEL, range(9), params, 20)


async def test_new_pages_hold_garbage_and_kept_ones_what_they_held():
    engine = ModelledEngine(MODEL)
    await engine.load(EngineSpec(), range(4), nobody)
    await engine.reserve(range(4), 2)
    page = memoryview(bytearray(PAGE_BYTES))
    await engine.gather_pages(PAGE, page)
    assert bytes(page) != bytes(PAGE_BYTES)
    content = memoryview(bytes(range(PAGE_BYTES)))
    checksum = await engine.gather_pages(PAGE, memoryview(bytearray(PAGE_BYTES)))
    assert not await engine.scatter_pages(PAGE, content, checksum)
    assert await engine.scatter_pages(PAGE, page, checksum)
    await engine.reserve(range(4), 5)
    again = memoryview(bytearray(PAGE_BYTES))
    assert await engine.gather_pages(PAGE, again) == checksum


async def test_a_layer_that_is_not_here_has_no_pages_and_what_was_dropped_is_free():
    engine = ModelledEngine(MODEL)
    await engine.load(EngineSpec(), range(2, 6), nobody)
    await engine.reserve(range(2, 6), 3)
    with pytest.raises(EngineError, match="layer 0 has no pages here"):
        await engine.gather_pages(PAGE, memoryview(bytearray(PAGE_BYTES)))
    assert await engine.drop(range(2, 4), 3) == 2 * WEIGHT_BYTES + 3 * PAGE_BYTES
    assert engine.layers == [1]


async def test_layers_grow_with_the_epochs_that_they_are_of_and_what_each_holds_is_told():
    engine = ModelledEngine(MODEL)
    await engine.load(EngineSpec(), range(2), nobody)
    await engine.reserve(range(2), 9)
    await engine.load(EngineSpec(), range(6), nobody)
    await engine.reserve(range(6), 2)
    assert (await engine.load(EngineSpec(), range(8), nobody)).blocks_held == (9, 2, 2, 0)
    await engine.reserve(range(4, 8), 3)
    assert (await engine.load(EngineSpec(), range(8), nobody)).blocks_held == (9, 2, 3, 3)
    assert await engine.drop(range(6), 2) == 2 * WEIGHT_BYTES + (7 + 1 + 3) * PAGE_BYTES


def test_a_slow_worker_takes_longer_for_everything_and_has_the_memory_that_it_had():
    speed = ModelledSpeed(step_s=1.0, step_s_per_atom=2.0, load_s_per_atom=3.0, page_s=4.0, memory_bytes=5)
    slow = ModelledSpeed(step_s=10.0, step_s_per_atom=20.0, load_s_per_atom=30.0, page_s=40.0, memory_bytes=5)
    assert speed.slowed(10.0) == slow


async def test_memory_has_an_end():
    engine = ModelledEngine(MODEL, ModelledSpeed(memory_bytes=2 * WEIGHT_BYTES + 3 * PAGE_BYTES))
    with pytest.raises(OutOfMemoryError):
        await engine.load(EngineSpec(), range(3), nobody)
    await engine.load(EngineSpec(), range(2), nobody)
    with pytest.raises(OutOfMemoryError):
        await engine.reserve(range(2), 4)
    await engine.reserve(range(2), 3)
    assert engine.used_bytes() == engine.speed.memory_bytes
