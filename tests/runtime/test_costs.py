"""Costs read off graphs against arithmetic done by hand, and against transformers' own parameter counts."""

import pytest
from flexpipe.runtime.costing.costs import (
    DeviceRates,
    StepLoad,
    activation_bytes,
    atom_costs,
    atom_work,
    blocks_of,
    estimated_seconds,
    kv_bytes_per_token,
    weight_bytes,
)
from tiny_models import FAMILIES, LAYERS, VOCABULARY, captured, random_model

DECODE = StepLoad.decode(8, 100)
HIDDEN, INNER, HEADS, KV_HEADS, HEAD = 64, 96, 4, 2, 16


def atom_named(program, name):
    return next(atom for atom in program.atoms if atom.name == name)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_weight_bytes_add_up_to_the_models_parameters(family):
    program, model = captured(family), random_model(FAMILIES[family]())
    tied = sum(spec.tied_to is not None for spec in program.weights.values()) * VOCABULARY * HIDDEN
    constants = sum(
        len(spec.value) for spec in program.weights.values() if spec.value and spec.name not in program.prelude_weights
    )
    held = sum(weight_bytes(program, atom) for atom in program.atoms) - constants
    assert held == 4 * (sum(parameter.numel() for parameter in model.parameters()) + tied)


def test_an_mlp_costs_two_operations_per_weight_and_token():
    program = captured("llama")
    work = atom_work(program, atom_named(program, "layers.0.mlp"), DECODE)
    matrices = 3 * HIDDEN * INNER
    assert 2 * matrices * 8 <= work.operations < 2 * matrices * 8 * 1.05
    assert work.weight_traffic == 4 * matrices
    assert work.kv_traffic == 0


def test_attention_reads_every_requests_context_once_and_scores_every_pair():
    program = captured("llama")
    atom = atom_named(program, "layers.0.attention")
    short, long = (atom_work(program, atom, StepLoad.decode(8, context)) for context in (100, 200))
    assert kv_bytes_per_token(program, atom) == 4 * KV_HEADS * 2 * HEAD
    assert short.kv_traffic == 8 * 100 * 4 * KV_HEADS * 2 * HEAD
    assert long.kv_traffic == 2 * short.kv_traffic
    assert long.operations - short.operations == 2 * 8 * 100 * HEADS * 2 * HEAD


def test_prefill_scores_half_the_square():
    assert StepLoad.prefill(101).pairs(None) == 101 * 51
    assert StepLoad(10, 1, 100, 1).pairs(None) == sum(range(91, 101))
    assert StepLoad.decode(4, 100).pairs(window=8) == 4 * 8


def test_a_window_bounds_attention_whatever_the_context():
    program = captured("mistral")
    atom = atom_named(program, "layers.0.attention")
    short, long = (atom_work(program, atom, StepLoad.decode(8, context)) for context in (100, 200))
    assert short == long


def test_a_mixture_reads_only_the_experts_that_are_hit():
    program = captured("mixtral")
    atom = atom_named(program, "layers.0.mlp")
    one, many = (atom_work(program, atom, StepLoad.decode(batch, 10)) for batch in (1, 512))
    expert, router = 3 * HIDDEN * INNER * 4, HIDDEN * 4 * 4
    assert one.weight_traffic == pytest.approx(router + expert * 4 * (1 - 0.75**2))
    assert many.weight_traffic == pytest.approx(router + expert * 4)
    assert 2 * 2 * 3 * HIDDEN * INNER <= one.operations < 2 * 2 * 3 * HIDDEN * INNER * 1.2


def test_the_head_computes_only_sampled_rows_and_an_embedding_reads_rows():
    program = captured("llama")
    head, embed = program.atoms[-1], program.atoms[0]
    prefill = atom_work(program, head, StepLoad.prefill(100))
    assert prefill.operations < 2 * HIDDEN * VOCABULARY * 2 + 100 * HIDDEN * 8
    assert prefill.weight_traffic == HIDDEN * VOCABULARY * 4
    assert atom_work(program, embed, DECODE).weight_traffic == 8 * HIDDEN * 4


def test_a_dtype_halves_bytes_and_leaves_constants():
    program = captured("gemma3")
    embed = program.atoms[0]
    assert weight_bytes(program, embed, "bfloat16") == VOCABULARY * HIDDEN * 2 + 4
    assert activation_bytes(embed, DECODE, "bfloat16") == 8 * HIDDEN * 2
    assert activation_bytes(program.atoms[-1], DECODE) == 0


def test_the_roofline_is_the_longer_of_arithmetic_and_traffic():
    program = captured("llama")
    fast_memory, fast_arithmetic = DeviceRates(1e9, 1e18), DeviceRates(1e18, 1e9)
    mlp = [atom.name for atom in program.atoms].index("layers.0.mlp")
    work = atom_work(program, program.atoms[mlp], DECODE)
    assert estimated_seconds(program, DECODE, fast_memory)[mlp] == pytest.approx(work.operations / 1e9)
    assert estimated_seconds(program, DECODE, fast_arithmetic)[mlp] == pytest.approx(work.traffic / 1e9)


def test_atom_costs_carry_blocks_and_integer_nanoseconds():
    program = captured("phi")
    costs = atom_costs(program, DECODE, [1.5e-6] * len(program.atoms))
    assert [cost.blocks for cost in costs] == [(), *((layer,) for layer in range(LAYERS)), ()]
    assert {cost.compute_ns for cost in costs} == {1500}
    assert [blocks_of(atom) for atom in captured("llama").atoms][:3] == [(), (0,), (0,)]


@pytest.mark.parametrize("numbers", [(0, 0, 1, 0), (1, 2, 1, 1), (4, 1, 0, 1), (4, 1, 4, 5)])
def test_a_step_that_cannot_be_is_refused(numbers):
    with pytest.raises(ValueError, match="is no step"):
        StepLoad(*numbers)
