"""Layers moved to another device: how it is written, which stages come of it, and what is refused."""

import pytest
from flexpipe.policies.move import BrokenRunError, MoveError, parse_move, stages_after
from flexpipe.policies.reassignment import HeldStage, SameShapeError, WantedStage
from flexpipe.policies.types import AtomCost


def atom(name, *blocks):
    return AtomCost(name, 1, 1, 1, 1, blocks)


def halves(layer):
    return (atom(f"layers.{layer}.attention", layer), atom(f"layers.{layer}.mlp", layer))


MODEL = (atom("embed"), *(half for layer in range(8) for half in halves(layer)), atom("head"))
"""Layer l is atoms 2l + 1 and 2l + 2 of 18."""
FUSED = (atom("embed"), atom("layers.0", 0), atom("layers.1-2", 1, 2), atom("layers.3", 3), atom("head"))


def pipeline(*cuts):
    bounds = [0, *cuts, len(MODEL)]
    return tuple(HeldStage(w, bounds[w], bounds[w + 1], f"cpu:{w}") for w in range(len(cuts) + 1))


@pytest.mark.parametrize(
    ("text", "atoms", "device"),
    [
        ("2-4:cpu:3", (5, 11), "cpu:3"),
        (" 2:cpu:3 ", (5, 7), "cpu:3"),
        ("2-2:cuda:0", (5, 7), "cuda:0"),
        ("0-1:cpu:03", (0, 5), "cpu:3"),
        ("6-7:cpu:1", (13, 18), "cpu:1"),
        ("0-7:cpu:1", (0, 18), "cpu:1"),
    ],
)
def test_a_move_is_layers_and_a_device(text, atoms, device):
    move = parse_move(text, MODEL)
    assert ((move.first_atom, move.end_atom), move.device) == (atoms, device)


@pytest.mark.parametrize(
    "text",
    ["", "cpu:3", "2-4", "2-4:cpu", "2-4:", "-4:cpu:3", "2-:cpu:3", "2-4:tpu:1", "2,4:cpu:1", "2-4:cpu:-1", "a:cpu:1"],
)
def test_what_is_no_move_is_refused_with_an_example(text):
    with pytest.raises(MoveError, match="is not layers and a device; write 12-17:cpu:3"):
        parse_move(text, MODEL)


@pytest.mark.parametrize(
    ("text", "model", "sentence"),
    [
        ("4-2:cpu:3", MODEL, "runs backwards; write 2-4"),
        ("6-8:cpu:3", MODEL, "goes beyond the model, which has layers 0-7"),
        ("8:cpu:3", MODEL, "goes beyond the model, which has layers 0-7"),
        ("2:cpu:3", FUSED, "layers.1-2 is one piece: move all of layers 1-2, or none"),
        ("0-1:cpu:3", FUSED, "layers.1-2 is one piece"),
    ],
)
def test_layers_that_cannot_be_cut_out_are_refused(text, model, sentence):
    with pytest.raises(MoveError, match=sentence):
        parse_move(text, model)


@pytest.mark.parametrize(
    ("present", "text", "after"),
    [
        (pipeline(), "2-4:cpu:3", [(0, 5, None), (5, 11, "cpu:3"), (11, 18, None)]),
        (pipeline(), "0-3:cpu:3", [(0, 9, "cpu:3"), (9, 18, None)]),
        (pipeline(9), "3-4:cpu:5", [(0, 7, None), (7, 11, "cpu:5"), (11, 18, None)]),
        (pipeline(9), "2-3:cpu:1", [(0, 5, None), (5, 18, "cpu:1")]),
        (pipeline(9), "4-5:cpu:0", [(0, 13, "cpu:0"), (13, 18, None)]),
        (pipeline(9), "3-5:cpu:0", [(0, 13, "cpu:0"), (13, 18, None)]),
        (pipeline(9), "4-7:cpu:5", [(0, 9, None), (9, 18, "cpu:5")]),
        (pipeline(9), "0-7:cpu:1", [(0, 18, "cpu:1")]),
        (pipeline(5, 9), "2-3:cpu:5", [(0, 5, None), (5, 9, "cpu:5"), (9, 18, None)]),
        (pipeline(5, 9, 13), "2-5:cpu:3", [(0, 5, None), (5, 18, "cpu:3")]),
        (pipeline(4, 10), "1-4:cpu:7", [(0, 3, None), (3, 11, "cpu:7"), (11, 18, None)]),
        (pipeline(10), "2-4:cpu:1", [(0, 5, None), (5, 18, "cpu:1")]),
    ],
    ids=[
        "out of the middle",
        "off the front, with the embedding",
        "across a boundary",
        "join the next",
        "join the one before",
        "overlap",
        "a whole stage",
        "all",
        "a whole middle stage",
        "swallow a stage on the way",
        "leave parts of blocks at both sides",
        "join in the middle of a block",
    ],
)
def test_layers_are_cut_out_and_the_rest_stays(present, text, after):
    found = stages_after(parse_move(text, MODEL), present, MODEL)
    assert found == tuple(WantedStage(*stage) for stage in after)


def test_layers_that_are_there_already_change_nothing():
    with pytest.raises(SameShapeError, match="cpu:1 already holds layers 5-6"):
        stages_after(parse_move("5-6:cpu:1", MODEL), pipeline(9), MODEL)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        (
            "0-1:cpu:2",
            "cpu:2 holds layers.5.attention to head, which layers 0-1 do not touch, .* move 0-4:cpu:2, or name a free",
        ),
        ("6:cpu:0", "cpu:0 holds embed to layers.1.mlp, which layers 6 do not touch, .* move 2-6:cpu:0"),
    ],
)
def test_a_stage_of_two_separate_runs_is_refused_with_the_move_that_would_do(text, advice):
    present = pipeline(5, 11)
    with pytest.raises(BrokenRunError, match=advice):
        stages_after(parse_move(text, MODEL), present, MODEL)
    better = advice.rpartition("move ")[2].partition(",")[0]
    assert any(stage.device == text[-5:] for stage in stages_after(parse_move(better, MODEL), present, MODEL))
