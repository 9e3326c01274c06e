"""Atoms that come and go in a serving engine: nothing moves, nothing is half done, and what is shared is never wrong."""

import gc
import os
import shutil
import sys
import weakref
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from engine_harness import BlockSource, Request, Stage, feed, load_stage, new_engine
from flexpipe.runtime import device_memory
from flexpipe.runtime.capturing.capture import capture
from flexpipe.runtime.interface import EngineError, OutOfMemoryError, RaggedBatch
from flexpipe.runtime.program import load_program, save_program
from flexpipe.runtime.weights import WeightsError
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, random_model


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    random_model(FAMILIES["llama"]()).save_pretrained(folder)
    save_program(capture(folder), folder / "program.json")
    return folder


@pytest.fixture
def saved(captured, tmp_path):
    (tmp_path / "warm").mkdir()
    return shutil.copytree(captured, tmp_path / "model")


@pytest.fixture
def warm(saved):
    return saved.parent / "warm"


def engine_of(folder, **options):
    return new_engine(folder, folder / "program.json", **options)


def atoms_of(folder):
    return len(load_program(folder / "program.json").atoms)


def load(engine, atoms):
    return engine.load(atoms, lambda _done, _total: None)


def one_token(token=5):
    index = np.zeros(1, np.int32)
    return RaggedBatch(
        np.array([token], np.int32), index, np.array([0, 1], np.int32), np.zeros((1, 1), np.int32), index
    )


def test_atoms_without_reserved_pages_do_not_run(saved):
    engine = engine_of(saved)
    load(engine, range(2))
    engine.reserve(range(2), 4)
    load(engine, range(atoms_of(saved)))
    with pytest.raises(EngineError, match="it reserved 0"):
        engine.forward(range(atoms_of(saved)), one_token(), None)
    assert engine.forward(range(2), one_token(), None).shape[0] == 1
    engine.reserve(range(atoms_of(saved)), 4)
    assert engine.forward(range(atoms_of(saved)), one_token(), None).shape[0] == 1


def test_fewer_blocks_take_effect_when_the_old_route_is_dropped(saved):
    engine = load_stage(engine_of(saved), range(atoms_of(saved))).engine
    engine.reserve(range(atoms_of(saved)), 32)
    last = np.array([31], np.int32)
    page = memoryview(bytearray(engine.pages.page_bytes(0)))
    engine.reserve(range(atoms_of(saved)), 8)
    engine.gather_pages(0, last, page)
    before = engine.pages.layers[0].pages.data_ptr()
    assert engine.drop(range(atoms_of(saved)), 8) == 24 * engine.pages.bytes_per_block
    assert engine.pages.layers[0].pages.data_ptr() == before
    with pytest.raises(EngineError, match="among the 8"):
        engine.gather_pages(0, last, page)


def test_an_epoch_of_fewer_blocks_that_comes_to_nothing_takes_none_from_the_one_that_serves(saved):
    atoms = range(atoms_of(saved))
    engine = load_stage(engine_of(saved), atoms).engine
    engine.reserve(atoms, 32)
    last = np.array([31], np.int32)
    page = memoryview(bytearray(b"\1" * engine.pages.page_bytes(0)))
    engine.scatter_pages(0, last, page)
    engine.reserve(atoms, 8)
    assert engine.drop(atoms, 32) == 0
    kept = memoryview(bytearray(len(page)))
    engine.gather_pages(0, last, kept)
    assert kept == page


def test_only_the_layers_of_an_epoch_grow_and_its_facts_say_what_each_holds(saved):
    engine = engine_of(saved)
    load(engine, range(3))
    engine.reserve(range(3), 32)
    before = {number: len(layer.pages) for number, layer in engine.pages.layers.items()}
    facts = load(engine, range(atoms_of(saved)))
    assert facts.blocks_held == tuple(before.get(layer, 0) for layer in facts.layers)
    engine.reserve(range(3, atoms_of(saved)), 40)
    after = {number: len(layer.pages) for number, layer in engine.pages.layers.items()}
    assert {number: after[number] for number in before} == before
    assert {after[number] for number in set(after) - set(before)} == {40}


def test_what_is_dropped_is_freed_at_once(saved):
    engine = load_stage(engine_of(saved), range(atoms_of(saved))).engine
    engine.reserve(range(atoms_of(saved)), 4)
    engine.forward(range(atoms_of(saved)), one_token(), None)
    _, atoms = engine.resident.run_of(range(3, atoms_of(saved)))
    watched = [weakref.ref(layer.pages) for atom in atoms for layer in atom.layers]
    watched += [weakref.ref(weight) for atom in atoms for weight in atom.weights if isinstance(weight, torch.Tensor)]
    del atoms
    assert engine.drop(range(3), 4) > 0
    assert len(watched) > 2
    assert [watch() for watch in watched] == [None] * len(watched)


def test_room_grows_where_the_pages_are(saved):
    engine = load_stage(engine_of(saved), range(atoms_of(saved))).engine
    engine.reserve(range(atoms_of(saved)), 2)
    before = [layer.pages.data_ptr() for layer in engine.pages.layers.values()]
    engine.reserve(range(atoms_of(saved)), 5000)
    assert [layer.pages.data_ptr() for layer in engine.pages.layers.values()] == before


def test_a_load_that_fails_changes_nothing(saved, monkeypatch):
    engine = engine_of(saved)
    load(engine, range(2))
    layers = dict(engine.pages.layers)
    monkeypatch.setattr(device_memory, "free_bytes", lambda _device: 1000)
    with pytest.raises(OutOfMemoryError, match="1000 free"):
        load(engine, range(atoms_of(saved)))
    assert engine.pages.layers == layers
    with pytest.raises(EngineError, match="were not loaded"):
        engine.forward(range(3), one_token(), None)


def test_a_stated_memory_holds_weights_and_pages_and_no_more(saved, warm):
    atoms = range(atoms_of(saved))
    weighed = load(engine_of(saved, warm_folder=str(warm)), atoms)
    room = 10 * weighed.kv_bytes_per_block
    engine = engine_of(saved, device="cpu:3", warm_folder=str(warm), memory_bytes=weighed.weight_bytes + room)
    facts = load(engine, atoms)
    assert facts.memory_free_bytes <= room
    blocks = facts.memory_free_bytes // facts.kv_bytes_per_block
    with pytest.raises(OutOfMemoryError, match="cpu:3 has"):
        engine.reserve(atoms, blocks + 1)
    engine.reserve(atoms, blocks)
    engine.drop(range(0), 0)
    assert load(engine, atoms).memory_free_bytes == facts.memory_free_bytes


def test_weights_beyond_a_stated_memory_are_refused_even_where_they_are_shared(saved, warm):
    atoms = range(atoms_of(saved))
    weighed = load(engine_of(saved, warm_folder=str(warm)), atoms)
    engine = engine_of(saved, device="cpu:3", warm_folder=str(warm), memory_bytes=weighed.weight_bytes - 1)
    with pytest.raises(OutOfMemoryError, match=r"cpu:3 has .* stated for it; give the stage fewer layers"):
        load(engine, atoms)
    assert load(engine, range(2)).weight_bytes < weighed.weight_bytes


def test_memory_that_the_system_refuses_is_an_error_by_name(saved, monkeypatch):
    engine = engine_of(saved)

    def refuse(*_arguments):
        raise MemoryError("no 12 bytes")

    monkeypatch.setattr(engine.backend, "pack_linear", refuse)
    with pytest.raises(OutOfMemoryError, match="no 12 bytes"):
        load(engine, range(atoms_of(saved)))


def test_weights_that_changed_while_they_were_served_are_refused(saved):
    engine = engine_of(saved)
    load(engine, range(2))
    file = saved / "model.safetensors"
    os.utime(file, ns=(1, 1))
    with pytest.raises(WeightsError, match="changed while"):
        load(engine, range(4))
    file.unlink()
    with pytest.raises(WeightsError, match="lost a file"):
        load(engine, range(4))


def test_another_checkpoint_never_gets_the_shared_copy_of_the_first(saved, warm):
    first = engine_of(saved, warm_folder=str(warm))
    load(first, range(1))
    first.reserve(range(1), 1)
    tensors = {name: tensor + 1 for name, tensor in load_file(saved / "model.safetensors").items()}
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    second = engine_of(saved, warm_folder=str(warm))
    assert load(second, range(1)).weights.warm_bytes == 0
    second.reserve(range(1), 1)
    difference = second.forward(range(1), one_token(), None) - first.forward(range(1), one_token(), None)
    assert torch.allclose(difference, torch.ones(()), atol=1e-4)


@pytest.mark.parametrize("damage", ["empty", "short", "magic", "header", "length"])
def test_a_damaged_shared_copy_is_never_used(saved, warm, damage):
    atoms = range(atoms_of(saved))
    expected = _logits(saved, atoms, warm_folder=str(warm))
    for file in warm.iterdir():
        content = bytearray(file.read_bytes())
        if damage == "empty":
            content.clear()
        elif damage == "short":
            del content[-64:]
        elif damage == "length":
            content[8:16] = (1 << 40).to_bytes(8, "little")
        else:
            content[{"magic": 3, "header": 70}[damage]] ^= 1
        file.unlink()
        file.write_bytes(content)
    engine = engine_of(saved, warm_folder=str(warm))
    assert load(engine, atoms).weights.warm_bytes == 0
    engine.reserve(atoms, 1)
    assert torch.equal(engine.forward(atoms, one_token(), None), expected)
    assert load(engine_of(saved, warm_folder=str(warm)), atoms).weights.disk_bytes == 0


def _logits(folder, atoms, **options):
    engine = engine_of(folder, **options)
    load(engine, atoms)
    engine.reserve(atoms, 1)
    return engine.forward(atoms, one_token(), None)


def test_a_shared_copy_outlives_its_worker_and_is_left_whole(saved, warm):
    load(engine_of(saved, warm_folder=str(warm)), range(atoms_of(saved)))
    gc.collect()
    assert not [file.name for file in warm.iterdir() if "partial" in file.name]
    engine = engine_of(saved, warm_folder=str(warm))
    load(engine, range(atoms_of(saved)))
    for file in warm.iterdir():
        file.unlink()  # what is mapped stays
    engine.reserve(range(atoms_of(saved)), 1)
    assert torch.equal(
        engine.forward(range(atoms_of(saved)), one_token(), None), _logits(saved, range(atoms_of(saved)))
    )


def test_plain_torch_shares_nothing_and_says_so(saved, warm):
    facts = load(engine_of(saved, warm_folder=str(warm), dtype="bfloat16"), range(3))
    assert facts.weights.disk_bytes > 0
    assert list(warm.iterdir()) == []


def test_pages_may_be_exchanged_only_between_workers_of_one_layout(saved):
    engines = [engine_of(saved), engine_of(saved, warm_folder="/nowhere"), engine_of(saved, dtype="bfloat16")]
    first, same, other = (load(engine, range(3)).page_layout for engine in engines)
    assert first == same
    assert first != other
    assert "float32" in first


def test_two_epochs_of_one_worker_give_the_logits_of_two_workers(saved):
    """Atoms 0 to 3 for the old route and 2 to the end for the new one, in one engine, with steps of both in turn."""
    end = atoms_of(saved)
    shared = load_stage(engine_of(saved), range(4))
    shared.engine.load(range(2, end), lambda _done, _total: None)
    shared.engine.reserve(range(end), 16)
    old, new = Stage(shared.engine, range(4)), Stage(shared.engine, range(2, end))
    rest_of_old, start_of_new = load_stage(engine_of(saved), range(4, end)), load_stage(engine_of(saved), range(2))
    whole = load_stage(engine_of(saved), range(end))
    for stage in (rest_of_old, start_of_new, whole):
        stage.engine.reserve(stage.atoms, 16)
    results = []
    for stages in ([old, rest_of_old], [start_of_new, new], [whole]):
        request, source = Request(list(range(3, 33))), BlockSource(16, 1)
        feed(stages, [(request, 20)], source)
        feed(stages, [(request, 10)], source)
        results.append(torch.stack(request.logits))
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[2])


def test_facts_say_where_weights_came_from(saved, warm):
    engine = engine_of(saved, warm_folder=str(warm))
    first = load(engine, range(3)).weights
    again = load(engine, range(3)).weights
    both = load(engine, range(5)).weights
    mapped = load(engine_of(saved, warm_folder=str(warm)), range(5)).weights
    assert first.disk_bytes > 0
    assert (again.kept_bytes, again.disk_bytes, again.warm_bytes) == (first.disk_bytes - _prelude_bytes(saved), 0, 0)
    assert both.kept_bytes == again.kept_bytes
    assert mapped.warm_bytes == first.disk_bytes + both.disk_bytes
    assert msgspec.to_builtins(mapped)["peer_bytes"] == 0


def _prelude_bytes(folder):
    program = load_program(folder / "program.json")
    return sum(len(program.weights[name].value) for name in program.prelude_weights)
