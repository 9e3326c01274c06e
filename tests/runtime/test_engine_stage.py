"""A stage engine by itself: bits that do not depend on neighbours, memory that holds only its own, errors for garbage."""

import dataclasses
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from engine_harness import BlockSource, Request, Stage, build_batch, feed, load_stages, new_engine, run_step
from flexpipe.runtime import device_memory
from flexpipe.runtime.backends import choose_backend
from flexpipe.runtime.capturing.capture import capture
from flexpipe.runtime.interface import (
    BufferView,
    EngineError,
    EngineSpec,
    OutOfMemoryError,
    RaggedBatch,
    SampleRow,
    SamplingParams,
)
from flexpipe.runtime.program import load_program, save_program
from flexpipe.runtime.torch_backend import TorchBackend
from flexpipe.runtime.weights import WeightsError
from tiny_models import FAMILIES, VOCABULARY, random_model

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt_neox", "mixtral"])
def saved(request, tmp_path_factory):
    return save_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_family("llama", tmp_path_factory.mktemp("llama_alone"))


def save_family(name, folder):
    random_model(FAMILIES[name]()).save_pretrained(folder)
    save_program(capture(folder), folder / "program.json")
    return folder, folder / "program.json"


def whole(saved, **options):
    folder, program_file = saved
    return load_stages(folder, program_file, [0, len(load_program(program_file).atoms)], **options)


def some_tokens(count, seed):
    return np.random.default_rng(seed).integers(2, VOCABULARY, count).tolist()


def one_token_batch(**changes):
    index = np.zeros(1, np.int32)
    batch = RaggedBatch(index, index, np.array([0, 1], np.int32), np.zeros((1, 1), np.int32), index)
    return dataclasses.replace(batch, **{name: np.asarray(value, np.int32) for name, value in changes.items()})


def test_no_bit_depends_on_neighbours_or_chunks(saved):
    """One request alone, token by token, against the same one in chunks among others."""
    stages = whole(saved)
    prompt = some_tokens(45, 1)
    alone = Request(prompt)
    source = BlockSource(32, 1)
    for _ in prompt:
        feed(stages, [(alone, 1)], source)
    among, source = Request(prompt), BlockSource(64, 2)
    others = [Request(some_tokens(60, seed)) for seed in (2, 3, 4)]
    for count, *rest in ((7, 3, 1, 20), (1, 1, 1, 1), (16, 5, 30, 1), (20, 9, 2, 17), (1, 1, 1, 2)):
        feed(stages, [(others[0], rest[0]), (among, count), (others[1], rest[1]), (others[2], rest[2])], source)
    assert torch.equal(torch.stack(alone.logits), torch.stack(among.logits))


def test_padding_makes_plain_torch_deterministic(llama, monkeypatch):
    """The fallback: in deterministic mode a request's logits have the same bits alone and among others."""
    torch_only = lambda spec, _program, device, dtype: (TorchBackend(device, dtype, spec.deterministic), "test")  # noqa: E731
    monkeypatch.setattr("flexpipe.runtime.stage_engine.choose_backend", torch_only)
    stages = whole(llama, deterministic=True, step_tokens_max=32)
    assert stages[0].engine.backend.name == "torch"
    prompt = some_tokens(20, 5)
    alone, source = Request(prompt), BlockSource(64, 1)
    feed(stages, [(alone, 20)], source)
    among, other = Request(prompt), Request(some_tokens(30, 6))
    feed(stages, [(other, 9), (among, 4)], source)
    feed(stages, [(among, 16), (other, 3)], source)
    assert torch.equal(torch.stack(alone.logits), torch.stack(among.logits))


def test_plain_torch_equals_the_packed_kernels(llama, monkeypatch):
    prompt = some_tokens(33, 7)
    packed = Request(prompt)
    feed(whole(llama), [(packed, 33)], BlockSource(8, 1))
    torch_only = lambda _spec, _program, device, dtype: (TorchBackend(device, dtype), "test")  # noqa: E731
    monkeypatch.setattr("flexpipe.runtime.stage_engine.choose_backend", torch_only)
    plain = Request(prompt)
    feed(whole(llama), [(plain, 33)], BlockSource(8, 1))
    assert (torch.stack(packed.logits) - torch.stack(plain.logits)).abs().max() < 1e-4


def test_a_stage_holds_only_its_own_weights(llama):
    folder, program_file = llama
    program = load_program(program_file)
    atoms = len(program.atoms)
    sizes = []
    for first, end in ((0, 1), (1, 5), (5, atoms)):
        engine = new_engine(folder, program_file)
        facts = engine.load(range(first, end), lambda _done, _total: None)
        own = sum(
            4 * int(np.prod(program.weights[name].shape))
            for name in program.stage_weights(first, end)
            if program.weights[name].value is None
        )
        sizes.append(facts.weight_bytes)
        # Packing rounds a layer's rows up to whole panels of 32 and adds rotary constants; nothing else may be there.
        assert own <= facts.weight_bytes <= own * 1.35 + 1024
        assert set(facts.layers) == {layer for atom in program.atoms[first:end] for layer in atom.layers}
        assert facts.memory_free_bytes > 0
    assert sizes[0] < sizes[1]


def test_progress_ends_at_the_total(llama):
    folder, program_file = llama
    told = []
    engine = new_engine(folder, program_file)
    engine.load(range(3), lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_resizing_the_pages_keeps_what_is_in_them(llama):
    stages = whole(llama, blocks=4)
    prompt = some_tokens(40, 8)
    straight, source = Request(prompt), BlockSource(4, 3)
    feed(stages, [(straight, 40)], source)
    resized, source = Request(prompt), BlockSource(4, 3)
    feed(stages, [(resized, 20)], source)
    stages[0].engine.reserve(stages[0].atoms, 9)
    feed(stages, [(resized, 20)], source)
    assert torch.equal(torch.stack(straight.logits), torch.stack(resized.logits))


def test_pages_gathered_from_one_engine_and_scattered_into_another_continue_the_request(llama):
    donor, acquirer = whole(llama)[0], whole(llama)[0]
    prompt = some_tokens(30, 9)
    request, source = Request(prompt), BlockSource(8, 4)
    feed([donor], [(request, 20)], source)
    moved = [block + 10 for block in request.blocks]
    for layer in donor.pages.layers:
        pages = bytearray(len(moved) * donor.pages.page_bytes(layer))
        donor.engine.gather_pages(layer, np.array(request.blocks, np.int32), memoryview(pages))
        acquirer.engine.scatter_pages(layer, np.array(moved, np.int32), memoryview(pages))
    continued = Request(prompt, blocks=moved, fed=20)
    feed([acquirer], [(continued, 10)], source)
    feed([donor], [(request, 10)], source)
    assert torch.equal(torch.stack(request.logits[20:]), torch.stack(continued.logits))


def test_pages_outside_are_errors(llama):
    engine = whole(llama, blocks=3)[0].engine
    page = memoryview(bytearray(engine.pages.page_bytes(0)))
    one = np.array([2], np.int32)
    engine.gather_pages(0, one, page)
    for layer, blocks, data, sentence in (
        (0, np.array([3], np.int32), page, "among the 3"),
        (0, np.array([-1], np.int32), page, "among the 3"),
        (0, np.array([], np.int32), page[:0], "among the 3"),
        (17, one, page, "layer 17"),
        (0, one, page[:-1], "do not fit"),
    ):
        with pytest.raises(EngineError, match=sentence):
            engine.gather_pages(layer, blocks, data)
        with pytest.raises(EngineError, match=sentence):
            engine.scatter_pages(layer, blocks, data)


def test_one_engine_runs_the_atoms_of_two_epochs_and_takes_more_between_steps(llama):
    """What a merge does: the left half serves alone, then the same engine gets the right half and its pages."""
    folder, program_file = llama
    atoms = len(load_program(program_file).atoms)
    prompt = some_tokens(30, 12)
    straight, source = Request(prompt), BlockSource(8, 2)
    feed(whole(llama), [(straight, 20)], source)
    feed_rest = Request(prompt)
    left, right = load_stages(folder, program_file, [0, 3, atoms])
    source = BlockSource(8, 2)
    feed([left, right], [(feed_rest, 20)], source)
    facts = left.engine.load(range(atoms), lambda _done, _total: None)
    assert facts.weights.kept_bytes > 0
    assert facts.weights.disk_bytes > 0
    left.engine.reserve(range(atoms), 64)
    for layer in right.pages.layers:
        if layer not in range(1):
            blocks = np.array(feed_rest.blocks, np.int32)
            pages = memoryview(bytearray(len(blocks) * right.pages.page_bytes(layer)))
            right.engine.gather_pages(layer, blocks, pages)
            left.engine.scatter_pages(layer, blocks, pages)
    merged = Stage(left.engine, range(atoms))
    again, source = Request(prompt), BlockSource(8, 2)
    feed(whole(llama), [(again, 30)], source)
    feed([merged], [(feed_rest, 10)], BlockSource(8, 2))
    assert torch.equal(torch.stack(again.logits[20:]), torch.stack(feed_rest.logits[20:]))


def test_dropped_atoms_are_gone_with_their_pages_and_come_back_from_the_checkpoint(llama):
    atoms = len(load_program(llama[1]).atoms)
    stage = whole(llama)[0]
    logits = stage.forward(one_token_batch(), None)
    layers = set(stage.pages.layers)
    assert stage.engine.drop(range(3), 64) > 0
    assert set(stage.pages.layers) < layers
    with pytest.raises(EngineError, match="were not loaded"):
        stage.forward(one_token_batch(), None)
    stage.engine.load(range(atoms), lambda _done, _total: None)
    stage.engine.reserve(range(atoms), 64)
    assert torch.equal(stage.forward(one_token_batch(), None), logits)


def test_a_load_beside_running_steps_changes_no_bit(llama):
    folder, program_file = llama
    atoms = len(load_program(program_file).atoms)
    left = load_stages(folder, program_file, [0, 3])[0]
    hidden = bytes(left.run(one_token_batch(), None, ()).hidden.data)
    loader = threading.Thread(target=left.engine.load, args=(range(atoms), lambda _done, _total: None))
    loader.start()
    while loader.is_alive():
        assert bytes(left.run(one_token_batch(), None, ()).hidden.data) == hidden
    loader.join()
    assert bytes(left.run(one_token_batch(), None, ()).hidden.data) == hidden


def test_the_shared_copy_gives_the_same_bits_as_the_checkpoint(llama, tmp_path):
    folder, program_file = llama
    atoms = range(len(load_program(program_file).atoms))
    results = []
    for warm_folder in ("", str(tmp_path), str(tmp_path)):
        engine = new_engine(folder, program_file, warm_folder=warm_folder)
        facts = engine.load(atoms, lambda _done, _total: None)
        engine.reserve(atoms, 8)
        results.append((facts.weights, engine.forward(atoms, one_token_batch(), None)))
    (cold, expected), (first, written), (second, mapped) = results
    assert cold.warm_bytes == first.warm_bytes == second.disk_bytes == 0
    assert first.disk_bytes == second.warm_bytes > 0
    assert torch.equal(expected, written)
    assert torch.equal(expected, mapped)


def test_a_damaged_shared_copy_is_read_past_and_written_again(llama, tmp_path):
    folder, program_file = llama

    def shared():
        return new_engine(folder, program_file, warm_folder=str(tmp_path))

    first = shared().load(range(3), lambda _done, _total: None)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    again = shared().load(range(3), lambda _done, _total: None)
    assert again.weights == first.weights
    assert shared().load(range(3), lambda _done, _total: None).weights.disk_bytes == 0


def test_without_room_for_the_shared_copy_weights_serve_from_where_they_are(llama):
    folder, program_file = llama
    engine = new_engine(folder, program_file, warm_folder="/dev/null/nowhere")
    facts = engine.load(range(3), lambda _done, _total: None)
    assert facts.weights.disk_bytes > 0


def test_more_pages_than_memory_is_an_error_by_name(llama, monkeypatch):
    (stage,) = whole(llama, blocks=4)
    monkeypatch.setattr(device_memory, "free_bytes", lambda _device: 1 << 20)
    with pytest.raises(OutOfMemoryError, match="KV blocks"):
        stage.engine.reserve(stage.atoms, 1 << 20)
    assert stage.engine.pages.blocks == 4


def test_sampling_through_the_stage_gives_its_rows_tokens(llama):
    stages = whole(llama)
    request = Request(some_tokens(12, 10))
    batch = build_batch([(request, 12)], BlockSource(8, 5), sample_all=False)
    tokens = stages[0].run(batch, None, [SampleRow(GREEDY, 12)]).tokens
    assert tokens[0].token_id == int(run_step(stages, batch)[0].argmax())


def test_a_step_without_sampled_tokens_gives_none(llama):
    stages = whole(llama)
    batch = dataclasses.replace(one_token_batch(), sample_tokens=np.empty(0, np.int32))
    assert stages[0].run(batch, None, []).tokens == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"token_ids": [VOCABULARY]}, "vocabulary"),
        ({"token_ids": [-1]}, "vocabulary"),
        ({"positions": [16]}, "beyond"),
        ({"positions": [-1]}, "beyond"),
        ({"block_tables": [[-1]]}, "KV blocks"),
        ({"block_tables": [[64]]}, "KV blocks"),
        ({"row_starts": [0, 2]}, "row starts"),
        ({"row_starts": [1, 1]}, "row starts"),
        ({"row_starts": [0]}, "row starts"),
        ({"sample_tokens": [1]}, "samples tokens"),
        ({"positions": [0, 0]}, "do not match"),
        ({"token_ids": []}, "0 tokens"),
        ({"token_ids": [5] * 600}, "600 tokens"),
    ],
)
def test_a_step_that_contradicts_itself_is_an_error(llama, changes, sentence):
    stages = whole(llama)
    with pytest.raises(EngineError, match=sentence):
        stages[0].run(one_token_batch(**changes), None, [SampleRow(GREEDY, 1)])


def test_rows_whose_positions_jump_are_an_error(llama):
    stages = whole(llama)
    batch = one_token_batch(token_ids=[3, 4], positions=[0, 2], row_starts=[0, 2])
    with pytest.raises(EngineError, match="follow each other"):
        stages[0].run(batch, None, [SampleRow(GREEDY, 1)])


def test_a_hidden_state_of_another_shape_is_an_error(llama):
    folder, program_file = llama
    program = load_program(program_file)
    stage = load_stages(folder, program_file, [2, len(program.atoms)])[0]
    good = BufferView("float32", (1, program.hidden_size), memoryview(bytes(4 * program.hidden_size)))
    stage.run(one_token_batch(), good, [SampleRow(GREEDY, 1)])
    for bad in (
        dataclasses.replace(good, shape=(2, program.hidden_size)),
        dataclasses.replace(good, dtype="float16"),
        dataclasses.replace(good, data=good.data[:-1]),
        None,
    ):
        with pytest.raises(EngineError):
            stage.run(one_token_batch(), bad, [SampleRow(GREEDY, 1)])


def test_a_first_stage_refuses_a_hidden_state(llama):
    folder, program_file = llama
    stage = load_stages(folder, program_file, [0, 2])[0]
    with pytest.raises(EngineError, match="first stage"):
        stage.run(one_token_batch(), BufferView("float32", (1, 64), memoryview(bytes(256))), [])


def test_running_before_loading_is_an_error(llama):
    folder, program_file = llama
    engine = new_engine(folder, program_file)
    with pytest.raises(EngineError, match="were not loaded"):
        engine.run(range(1), one_token_batch(), None, [])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dtype": "int3"}, "int3"),
        ({"device": "abacus"}, "abacus"),
        ({"model": "b" * 64}, "is bbbbbbbbbbbb, the one on this host unnamed: give every node the same"),
    ],
)
def test_a_stage_that_cannot_be_is_an_error(llama, changes, sentence):
    folder, program_file = llama
    with pytest.raises(EngineError, match=sentence):
        new_engine(folder, program_file, **changes)


def test_a_program_that_cannot_be_read_is_an_error(llama):
    folder, _ = llama
    with pytest.raises(EngineError, match="nowhere"):
        new_engine(folder, "/nowhere.json")


@pytest.mark.parametrize("atoms", [range(99), range(3, 3), range(-1, 2)])
def test_atoms_that_do_not_exist_are_an_error(llama, atoms):
    folder, program_file = llama
    with pytest.raises(EngineError, match="were asked for"):
        new_engine(folder, program_file).load(atoms, lambda _done, _total: None)


def test_a_model_folder_without_weights_is_an_error(llama, tmp_path):
    _, program_file = llama
    engine = new_engine(tmp_path, program_file)
    with pytest.raises(WeightsError, match="neither"):
        engine.load(range(1), lambda _done, _total: None)


def test_a_backend_comes_with_its_reason(llama):
    _, program_file = llama
    backend, reason = choose_backend(EngineSpec(), load_program(program_file), torch.device("cpu"), torch.bfloat16)
    assert backend.name == "torch"
    assert "bfloat16" in reason


def test_bfloat16_stays_near_float32(llama):
    prompt = some_tokens(33, 11)
    exact, rough = Request(prompt), Request(prompt)
    feed(whole(llama), [(exact, 33)], BlockSource(8, 1))
    feed(whole(llama, dtype="bfloat16"), [(rough, 33)], BlockSource(8, 1))
    difference = (torch.stack(exact.logits) - torch.stack(rough.logits).float()).abs().max()
    assert difference < 0.15
