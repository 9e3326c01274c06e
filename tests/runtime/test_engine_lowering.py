"""What the passes make of each family: the operators that are left, in order. A pass that stops matching shows here."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from flexpipe.runtime import lowered
from flexpipe.runtime.capturing.capture import capture
from flexpipe.runtime.interface import EngineError
from flexpipe.runtime.lowering import lower
from flexpipe.runtime.program import Graph, Literal, Node, Ref
from flexpipe.runtime.recipes import Computed, PackedGated, PackedLinear, Slot, Stacked
from tiny_models import FAMILIES


class Names:
    """A backend whose operators are their own names, so that graphs can be read."""


for operator in lowered.OPERATORS:
    setattr(Names, operator.__name__, staticmethod(operator))

FREE = {"getitem", "split_with_sizes"}
"""Operators that only take apart what is there."""


def lowered_graphs(family):
    program = capture(FAMILIES[family]())
    shapes = {node.name: node.shape for node in program.prelude.nodes}
    atoms = {atom.name: program.graphs[atom.graph] for atom in program.atoms}
    return {name: lower(graph, Names(), shapes) for name, graph in atoms.items()}


def operators(graph):
    names = [
        getattr(node.target, "_opname", getattr(node.target, "__name__", ""))
        for node in graph.graph.nodes
        if node.op == "call_function"
    ]
    return [name for name in names if name not in FREE]


@pytest.fixture(scope="module")
def llama():
    return lowered_graphs("llama")


def test_llama_attention_is_four_operators(llama):
    assert operators(llama["layers.1.attention"]) == ["rms_norm", "linear", "attend", "linear_add"]


def test_llama_mlp_is_three_operators(llama):
    assert operators(llama["layers.1.mlp"]) == ["rms_norm", "linear", "linear_add"]


def test_equal_layers_lose_their_leading_axis(llama):
    assert llama["layers.1.attention"].flat
    assert llama["layers.1.mlp"].flat
    assert not llama["embed"].flat
    assert not llama["head"].flat


def test_queries_keys_and_values_are_one_weight(llama):
    merged = next(recipe for recipe in llama["layers.0.attention"].recipes if isinstance(recipe, PackedLinear))
    assert isinstance(merged.weight, Stacked)
    assert [part.name.split(".")[1] for part in merged.weight.parts] == ["q_proj", "k_proj", "v_proj"]


def test_the_gate_comes_before_what_it_gates(llama):
    gated = next(recipe for recipe in llama["layers.0.mlp"].recipes if isinstance(recipe, PackedGated))
    assert (gated.gate, gated.up) == (Slot("mlp.gate_proj.weight"), Slot("mlp.up_proj.weight"))
    assert gated.activation == "silu"


def test_gemmas_one_plus_weight_is_computed_at_load(llama):
    graphs = lowered_graphs("gemma3")
    assert "add" not in operators(graphs["layers.0.attention"])[:-1]  # the last one is the residual
    assert any(isinstance(recipe, Computed) for recipe in graphs["layers.0.attention"].recipes)


@pytest.mark.parametrize(
    ("family", "attend", "linears"),
    [("opt", 1, 2), ("gpt2", 1, 2), ("qwen2", 1, 2), ("qwen3", 1, 2), ("gemma3", 1, 2), ("mistral", 1, 2)],
)
def test_attention_atoms_have_two_linear_layers(family, attend, linears):
    counts = Counter(operators(lowered_graphs(family)["layers.2.attention"]))
    assert counts["attend"] == attend
    assert counts["linear"] + counts["linear_add"] == linears


@pytest.mark.parametrize("family", ["phi", "gpt_neox"])
def test_partial_rotation_goes_into_attention(family):
    names = operators(lowered_graphs(family)["layers.0"])
    assert "attend" in names
    assert not {"cat", "neg", "slice"} & set(names)


@pytest.mark.parametrize("family", ["gpt2", "phi"])
def test_the_spelled_out_gelu_goes_into_a_linear_layer(family):
    graphs = lowered_graphs(family)
    recipes = [recipe for graph in graphs.values() for recipe in graph.recipes if isinstance(recipe, PackedLinear)]
    assert "gelu_tanh" in {recipe.activation for recipe in recipes}
    assert not any("tanh" in operators(graph) for graph in graphs.values())


def test_a_value_used_twice_is_not_swallowed():
    """The linear layer's result is also an output: its activation must not go into it."""
    shape = (1, "T", 4)
    graph = Graph(
        inputs=("hidden",),
        weights=("w",),
        nodes=(
            Node("linear_0", "aten.linear.default", (Ref("hidden"), Ref("w")), {}, shape, "float32"),
            Node("relu_0", "aten.relu.default", (Ref("linear_0"),), {}, shape, "float32"),
            Node("add_0", "aten.add.Tensor", (Ref("relu_0"), Ref("linear_0")), {}, shape, "float32"),
        ),
        outputs=("add_0",),
    )
    assert operators(lower(graph, Names(), {})) == ["linear", "relu", "add"]


def test_a_broadcast_sum_is_no_residual():
    """A [4] addend is not a token's row: it must stay a plain addition."""
    graph = Graph(
        inputs=("hidden",),
        weights=("w", "shift"),
        nodes=(
            Node("linear_0", "aten.linear.default", (Ref("hidden"), Ref("w")), {}, (1, "T", 4), "float32"),
            Node("add_0", "aten.add.Tensor", (Ref("linear_0"), Ref("shift")), {}, (1, "T", 4), "float32"),
        ),
        outputs=("add_0",),
    )
    assert operators(lower(graph, Names(), {})) == ["linear", "add"]


def test_an_unknown_operator_is_an_error():
    node = Node("x_0", "aten.levitate.default", (Ref("hidden"), Literal(1)), {}, (1, "T", 4), "float32")
    with pytest.raises(EngineError, match="levitate"):
        lower(Graph(("hidden",), (), (node,), ("x_0",)), Names(), {})


def test_names_are_not_computations():
    with pytest.raises(NotImplementedError, match="rms_norm"):
        lowered.rms_norm(torch.ones(1), torch.ones(1), 0.0)
