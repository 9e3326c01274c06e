"""Plans from configs alone: two published models with their known sizes, user's partitions, and refusals."""

import json
from pathlib import Path

import msgspec
import pytest
from flexpipe.planning import Plan, make_plan
from flexpipe.policies.types import InfeasiblePartition
from flexpipe.runtime.capturing.capture import capture
from flexpipe.runtime.costing.costs import StepLoad
from flexpipe.runtime.costing.device_rates import STATED_RATES
from tiny_models import LAYERS, captured

CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
LOAD = StepLoad.decode(8, 128)
RATES = STATED_RATES["a100"]

LLAMA_2_7B = 2 * 32000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
OPT_66B_LAYER = 4 * (9216**2 + 9216) + 2 * 9216 * 36864 + 36864 + 9216 + 4 * 9216
OPT_66B = (50272 + 2050) * 9216 + 64 * OPT_66B_LAYER + 2 * 9216
"""Parameters, added up by hand: embeddings, layers, last norm (and Llama's head of its own)."""


def plan(family="llama", **options):
    return make_plan(captured(family), **({"load": LOAD, "rates": RATES} | options))


@pytest.mark.parametrize(
    ("folder", "parameters", "layers", "kv_bytes"),
    [
        ("llama-2-7b", LLAMA_2_7B, 32, 2 * 32 * 4096 * 2),
        ("opt-66b", OPT_66B, 64, 2 * 64 * 9216 * 2),
    ],
)
def test_a_published_model_is_planned_from_its_config_alone(folder, parameters, layers, kv_bytes):
    program = capture(CONFIGS / folder)
    found = make_plan(program, load=StepLoad.decode(128, 2048), rates=RATES, stages=8, dtype="bfloat16")
    assert found.parameters == parameters
    assert found.kv_bytes_per_token == kv_bytes
    assert found.graphs == 4
    assert [layer for stage in found.stages for layer in stage.layers] == list(range(layers))
    assert len(found.cut_points) == len(found.atoms) - 1 == 2 * layers + 1
    mean = sum(stage.step_s for stage in found.stages) / 8
    assert found.bottleneck_s < 1.15 * mean


def test_a_plan_is_consistent_in_itself_and_as_json():
    found = plan(stages=3)
    assert [stage.first_atom for stage in found.stages[1:]] == [stage.end_atom for stage in found.stages[:-1]]
    assert sum(stage.weight_bytes for stage in found.stages) == found.weight_bytes
    assert found.bottleneck_s == max(stage.step_s for stage in found.stages)
    assert found.stages[found.bottleneck_stage].step_s == found.bottleneck_s
    assert found.tokens_per_s == pytest.approx(8 / found.bottleneck_s)
    assert found.stages[0].activation_bytes == 8 * 64 * 4
    assert found.stages[-1].activation_bytes == 0
    assert {cut.bytes_per_token for cut in found.cut_points} == {64 * 4}
    assert msgspec.json.decode(found.to_json(), type=Plan) == found
    assert json.loads(found.to_json())["times_from"] == "roofline"


def test_a_plan_says_which_tied_weights_it_duplicates():
    (duplicate,) = plan(stages=2).duplicated_weights
    assert (duplicate.name, duplicate.tied_to) == ("lm_head.weight", "model.embed_tokens.weight")
    assert duplicate.stages == (0, 1)
    assert plan(stages=1).duplicated_weights == ()
    assert plan("qwen2", stages=2).duplicated_weights == ()


def test_a_users_partition_is_kept():
    found = plan(partition_text="1,2,1")
    assert [stage.layers for stage in found.stages] == [(0,), (1, 2), (3,)]
    half = plan(partition_text="0:2,2:10")
    assert half.stages[0].atoms == ("embed", "layers.0.attention")
    with pytest.raises(ValueError, match="has 3 stages, not the 2 asked for"):
        plan(partition_text="1,2,1", stages=2)


def test_measured_times_replace_the_estimate():
    count = len(captured("llama").atoms)
    found = plan(stages=2, measured_s=[0.1] + [0.01] * (count - 1))
    assert found.times_from == "profile"
    assert found.stages[0].atoms == ("embed",)
    assert found.bottleneck_s == pytest.approx(0.1, rel=0.01)


def test_memory_that_does_not_suffice_is_named():
    whole = plan(stages=1).stages[0].memory_bytes
    assert plan(stages=1, memory_bytes=[whole]).stages[0].memory_bytes == whole
    with pytest.raises(InfeasiblePartition, match="lacks at least 1 bytes") as refusal:
        plan(stages=1, memory_bytes=[whole - 1])
    assert refusal.value.missing_bytes == 1
    with pytest.raises(InfeasiblePartition):
        plan(partition_text="1,3", memory_bytes=[whole // 2] * 2)


@pytest.mark.parametrize("options", [{}, {"stages": 0}, {"stages": 1, "dtype": "float3"}])
def test_a_wrong_request_is_refused(options):
    with pytest.raises(ValueError, match=r"stages|dtype"):
        plan(**options)


@pytest.mark.parametrize("stages", [LAYERS + 3, 10**12])
def test_more_stages_than_pieces_are_refused(stages):
    with pytest.raises(InfeasiblePartition, match="can be cut at 5 places; ask for at most 6"):
        plan("phi", stages=stages)
