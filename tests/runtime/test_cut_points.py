"""Cuts by liveness, on tapes written by hand: one value crosses, or there is no cut."""

import pytest
from flexpipe.runtime.capturing.atoms import assemble
from flexpipe.runtime.capturing.cut_points import divide
from flexpipe.runtime.capturing.tape import Entry, Tape
from flexpipe.runtime.program import ATTEND, Literal, Node, Ref, WeightSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, LAYERS, captured

WIDTH = 8
HIDDEN = (1, "T", WIDTH)


class Writer:
    """Writes a tape line by line."""

    def __init__(self):
        self.tape = Tape()

    def op(self, name, operator, *inputs, scope="", shape=HIDDEN, dtype="float32"):
        node = Node(name, f"aten.{operator}.default", tuple(Ref(item) for item in inputs), {}, shape, dtype)
        self.tape.entries.append(Entry(node, scope))
        self.tape.output = name
        return name

    def linear(self, name, source, scope):
        weight = f"{scope}.{name.partition('_')[0]}.weight"
        self.tape.weights[weight] = WeightSpec(weight, (WIDTH, WIDTH), "float32")
        return self.op(name, "linear", source, weight, scope=scope)

    def embed(self):
        self.tape.weights["embed.weight"] = WeightSpec("embed.weight", (100, WIDTH), "float32")
        return self.op("embedding", "embedding", "embed.weight", "token_ids", scope="embed")

    def attend(self, name, source, layer, scope):
        heads = self.op(f"{name}_heads", "view", source, scope=scope, shape=(1, 2, "T", 4))
        args = (*(Ref(heads),) * 3, Literal(layer), Literal(1.0), *(Literal(None),) * 3)
        self.tape.entries.append(Entry(Node(name, ATTEND, args, {}, (1, "T", 2, 4), "float32"), scope))
        return name


def attention_block(writer, x, layer):
    scope = f"model.layers.{layer}"
    attended = writer.attend(f"attend_{layer}", writer.linear(f"qkv_{layer}", x, scope), layer, scope)
    return writer.op(f"mix_{layer}", "add", x, writer.linear(f"o_{layer}", attended, scope), scope=scope)


def mlp_block(writer, x, layer):
    scope = f"model.layers.{layer}"
    inner = writer.op(f"act_{layer}", "relu", writer.linear(f"up_{layer}", x, scope), scope=scope)
    return writer.op(f"out_{layer}", "add", x, writer.linear(f"down_{layer}", inner, scope), scope=scope)


def names(tape):
    return [piece.name for piece in divide(tape, WIDTH).pieces]


def decoder(layers):
    writer = Writer()
    x = writer.embed()
    for layer in range(layers):
        x = mlp_block(writer, attention_block(writer, x, layer), layer)
    writer.linear("head", x, "lm_head")
    return writer


def test_a_sequential_block_is_cut_between_attention_and_mlp():
    assert names(decoder(2).tape) == [
        "embed",
        "layers.0.attention",
        "layers.0.mlp",
        "layers.1.attention",
        "layers.1.mlp",
        "head",
    ]


def test_a_parallel_residual_block_stays_whole():
    writer = Writer()
    x = writer.embed()
    for layer in range(2):
        scope = f"model.layers.{layer}"
        attended = attention_block(writer, x, layer)
        up = writer.op(f"act_{layer}", "relu", writer.linear(f"up_{layer}", x, scope), scope=scope)
        x = writer.op(f"sum_{layer}", "add", attended, writer.linear(f"down_{layer}", up, scope), scope=scope)
    writer.linear("head", x, "lm_head")
    assert names(writer.tape) == ["embed", "layers.0", "layers.1", "head"]


def test_a_value_shared_across_layers_forbids_the_cuts_between():
    writer = Writer()
    x = writer.embed()
    x = mlp_block(writer, attention_block(writer, x, 0), 0)
    shared = writer.linear("shared", x, "model.layers.1")
    x = writer.op("join_1", "add", attention_block(writer, x, 1), shared, scope="model.layers.1")
    x = writer.op("join_2", "add", attention_block(writer, x, 2), shared, scope="model.layers.2")
    writer.linear("head", x, "lm_head")
    assert names(writer.tape) == ["embed", "layers.0.attention", "layers.0.mlp", "layers.1-2", "head"]


def test_what_positions_alone_determine_crosses_no_cut():
    writer = Writer()
    table = writer.op("table", "cos", "positions", scope="model.rotary")
    x = writer.embed()
    for layer in range(2):
        turned = writer.op(f"turned_{layer}", "mul", x, table, scope=f"model.layers.{layer}")
        x = mlp_block(writer, attention_block(writer, turned, layer), layer)
    writer.linear("head", x, "lm_head")
    division = divide(writer.tape, WIDTH)
    assert [entry.node.name for entry in division.recomputable] == ["table"]
    parts = assemble(division, writer.tape.weights, writer.tape.output)
    assert parts.prelude.outputs == ("prelude.cos_0",)
    assert ["prelude.cos_0" in parts.graphs[atom.graph].inputs for atom in parts.atoms] == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]


def test_what_one_atom_alone_needs_stays_out_of_the_prelude():
    writer = Writer()
    table = writer.op("table", "cos", "positions", scope="model.embed_positions")
    x = writer.op("placed", "add", writer.embed(), table, scope="model.embed_positions")
    x = mlp_block(writer, attention_block(writer, x, 0), 0)
    writer.linear("head", x, "lm_head")
    parts = assemble(divide(writer.tape, WIDTH), writer.tape.weights, writer.tape.output)
    assert parts.prelude.nodes == ()
    assert [node.name for node in parts.graphs[parts.atoms[0].graph].nodes] == ["cos_0", "embedding_0", "add_0"]


def test_norms_and_scales_are_no_atoms_of_their_own():
    writer = Writer()
    x = writer.op("scaled", "relu", writer.embed(), scope="model.embed")
    x = writer.op("norm_before", "relu", x, scope="model.layers.0")
    x = attention_block(writer, x, 0)
    x = writer.op("norm_after", "relu", x, scope="model.layers.0")
    x = mlp_block(writer, x, 0)
    x = writer.op("last_norm", "relu", x, scope="model.norm")
    x = writer.linear("head", x, "lm_head")
    writer.op("capped", "tanh", x, scope="")
    division = divide(writer.tape, WIDTH)
    assert [piece.name for piece in division.pieces] == ["embed", "layers.0.attention", "layers.0.mlp", "head"]
    inside = [[entry.node.name for entry in division.body[piece.start : piece.end]] for piece in division.pieces]
    assert inside[0] == ["embedding", "scaled"]
    assert inside[1][0] == "norm_before"
    assert inside[1][-1] == "norm_after"
    assert inside[3] == ["last_norm", "head", "capped"]


def test_a_wide_or_integer_value_may_not_cross():
    for shape, dtype in (((1, "T", 4 * WIDTH), "float32"), (HIDDEN, "int64"), ((1, "N", WIDTH), "float32")):
        writer = Writer()
        x = writer.op("strange", "relu", writer.embed(), scope="model.layers.0", shape=shape, dtype=dtype)
        x = attention_block(writer, x, 0)
        writer.linear("head", x, "lm_head")
        division = divide(writer.tape, WIDTH)
        assert "strange" not in {piece.crosses for piece in division.pieces}


def test_equal_atoms_share_a_graph_and_differ_in_weights_and_layers():
    writer = decoder(3)
    parts = assemble(divide(writer.tape, WIDTH), writer.tape.weights, writer.tape.output)
    attention = [atom for atom in parts.atoms if atom.layers]
    assert len(parts.graphs) == 4
    assert {atom.graph for atom in attention} == {1}
    assert [atom.layers for atom in attention] == [(0,), (1,), (2,)]
    assert attention[1].weights == ("model.layers.1.qkv.weight", "model.layers.1.o.weight")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=24))
@settings(max_examples=200, deadline=None)
def test_every_cut_of_any_graph_has_exactly_its_value_alive(edges):
    writer = Writer()
    values = [writer.embed()]
    for number, (first, second) in enumerate(edges):
        inputs = (values[first % len(values)], values[second % len(values)])
        values.append(writer.op(f"v{number}", "add", *inputs, scope=f"model.layers.{number // 5}"))
    division = divide(writer.tape, WIDTH)
    assert division.pieces[0].start == 0
    assert division.pieces[-1].end == len(division.body)
    for before, after in zip(division.pieces, division.pieces[1:], strict=False):
        assert before.end == after.start
        made = {entry.node.name for entry in division.body[: before.end]}
        used = {arg.name for entry in division.body[before.end :] for arg in entry.node.args} | {writer.tape.output}
        assert made & used == {before.crosses}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_real_families_are_cut_where_their_residuals_allow(family):
    atoms = captured(family).atoms
    per_layer = ["layers.{}"] if family in {"phi", "gpt_neox"} else ["layers.{}.attention", "layers.{}.mlp"]
    expected = ["embed", *(name.format(layer) for layer in range(LAYERS) for name in per_layer), "head"]
    assert [atom.name for atom in atoms] == expected
    assert all(len(atom.carries) == 1 for atom in atoms[:-1])
    assert atoms[-1].carries == ()
    assert [layer for atom in atoms for layer in atom.layers] == list(range(LAYERS))
