"""A captured program against transformers' own eager model, run by the reference interpreter; and what capture refuses."""

import json
import subprocess
import sys

import pytest
import torch
from flexpipe.runtime.capturing.capture import capture, main, program_file
from flexpipe.runtime.capturing.operators import CaptureError
from flexpipe.runtime.capturing.reference import constant_tensors, run_atoms
from flexpipe.runtime.program import ListArg, Literal, load_program, save_program
from safetensors import safe_open
from tiny_models import FAMILIES, GROUPED, LAYERS, VOCABULARY, captured, random_model
from transformers import AutoConfig, BertConfig, BloomConfig, Llama4TextConfig, LlamaConfig, MambaConfig, T5Config

TOLERANCE = 2e-4
TOKENS = 37


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return request.param


def step_of(tokens, sampled):
    return {
        "token_ids": torch.randint(2, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(3)),
        "positions": torch.arange(tokens)[None],
        "sample_tokens": torch.tensor(sampled),
    }


def logits_through(program, weights, step, cuts):
    hidden = None
    for first, end in zip([0, *cuts], [*cuts, len(program.atoms)], strict=True):
        hidden = run_atoms(program, first, end, weights, step, hidden)
    return hidden


def test_every_family_equals_eager_transformers_at_every_cut(family):
    program, model = captured(family), random_model(FAMILIES[family]())
    weights = dict(model.state_dict()) | constant_tensors(program)
    step = step_of(TOKENS, [0, 20, TOKENS - 1])
    with torch.inference_mode():
        expected = model(step["token_ids"]).logits[:, step["sample_tokens"]]
        whole = logits_through(program, weights, step, [])
        everywhere = logits_through(program, weights, step, range(1, len(program.atoms)))
    assert (whole - expected).abs().max() <= TOLERANCE
    assert torch.equal(everywhere, whole)
    assert expected.std() > 0.05  # the model says something, so the difference above means something


def test_one_token_runs_although_the_trace_saw_several(family):
    program, model = captured(family), random_model(FAMILIES[family]())
    weights = dict(model.state_dict()) | constant_tensors(program)
    step = step_of(1, [0])
    with torch.inference_mode():
        expected = model(step["token_ids"]).logits
        assert (logits_through(program, weights, step, []) - expected).abs().max() <= TOLERANCE


def test_no_dead_or_empty_computation_remains(family):
    program = captured(family)
    for graph in (*program.graphs, program.prelude):
        read = {name for node in graph.nodes for argument in node.args for name in names_in(argument)}
        read |= {name for node in graph.nodes for argument in node.kwargs.values() for name in names_in(argument)}
        assert {node.name for node in graph.nodes} <= read | set(graph.outputs)
        assert set(graph.inputs) <= read
        assert set(graph.weights) <= read
        for node in graph.nodes:
            assert not node.target.endswith(("_.Tensor", "_.Scalar")), "an in-place operator"
            assert not node.target.startswith(("aten.dropout", "aten.detach", "aten._assert"))
            if node.target.startswith("aten.to."):
                source = next(other for other in graph.nodes if [other.name] == names_in(node.args[0]))
                assert source.dtype != node.dtype


def names_in(argument):
    if isinstance(argument, ListArg):
        return [name for item in argument.items for name in names_in(item)]
    return [] if isinstance(argument, Literal) else [argument.name]


def test_a_program_survives_its_file(family, tmp_path):
    save_program(captured(family), tmp_path / "program.json")
    assert load_program(tmp_path / "program.json") == captured(family)


def test_every_weight_is_in_the_checkpoint_under_its_stored_name(family, tmp_path):
    random_model(FAMILIES[family]()).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as checkpoint:
        stored = {name: tuple(checkpoint.get_slice(name).get_shape()) for name in checkpoint.keys()}  # noqa: SIM118
    wanted = {}
    for spec in captured(family).weights.values():
        if spec.stacked:
            wanted |= {part: stored[part] for row in spec.stacked for part in row}
            rows = sum(stored[part][0] for part in spec.stacked[0])
            assert (len(spec.stacked), rows, *stored[spec.stacked[0][0]][1:]) == spec.shape
        elif spec.value is None:
            wanted[spec.name if spec.name in stored else spec.tied_to] = spec.shape
    assert wanted == stored


def test_equal_layers_share_one_graph():
    program = captured("llama")
    assert len(program.graphs) == 4
    assert len({atom.graph for atom in program.atoms if atom.name.endswith(".attention")}) == 1


def test_layers_with_a_window_have_a_graph_of_their_own():
    program = captured("gemma3")
    attention = [atom.graph for atom in program.atoms if atom.name.endswith(".attention")]
    assert attention == [attention[0], attention[1]] * (LAYERS // 2)
    assert attention[0] != attention[1]
    assert [layer.window for layer in program.attention] == [8, None] * (LAYERS // 2)


def test_attention_layers_state_their_kv_needs():
    layers = captured("qwen3").attention
    assert [layer.layer for layer in layers] == list(range(LAYERS))
    assert {(layer.query_heads, layer.kv_heads, layer.key_dim, layer.value_dim) for layer in layers} == {(4, 2, 24, 24)}


def test_tied_weights_are_two_uses_of_one_checkpoint_key():
    weights = captured("llama").weights
    assert weights["lm_head.weight"].tied_to == "model.embed_tokens.weight"
    assert weights["model.embed_tokens.weight"].tied_to is None


@pytest.mark.parametrize("model_type", ["gpt_oss", "gemma2", "opt"])
def test_sinks_soft_caps_and_post_norms_are_captured(model_type):
    post_norm = {"do_layer_norm_before": False, "word_embed_proj_dim": 32, "ffn_dim": 96}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    extra = {"gpt_oss": experts, "gemma2": {"head_dim": 16, "attn_logit_softcapping": 2.0}, "opt": post_norm}
    config = AutoConfig.for_model(
        model_type, **{**GROUPED, "num_hidden_layers": 2, "pad_token_id": 1}, **extra[model_type]
    )
    program, model = capture(config), random_model(config)
    weights = dict(model.state_dict()) | constant_tensors(program)
    step = step_of(TOKENS, [TOKENS - 1])
    with torch.inference_mode():
        expected = model(step["token_ids"]).logits[:, -1:]
        assert (logits_through(program, weights, step, [2]) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (BloomConfig(n_layer=1, hidden_size=32, n_head=2), "attention of BloomForCausalLM"),
        (BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2), "both directions"),
        (T5Config(num_layers=1), "encoder-decoder"),
        (MambaConfig(num_hidden_layers=1), "linear_attention"),
        (Llama4TextConfig(num_hidden_layers=1), "chunked_attention"),
        (LlamaConfig(**GROUPED, quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
    ],
    ids=["alibi", "encoder", "encoder_decoder", "recurrent", "chunked", "quantised"],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(config, sentence):
    with pytest.raises(CaptureError, match=sentence) as refusal:
        capture(config)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", [None, "{", '{"model_type": "no_such_model"}'])
def test_a_folder_without_a_readable_config_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CaptureError) as refusal:
        capture(tmp_path)
    assert "config.json" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_cache_key_follows_the_config(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXPIPE_CACHE", str(tmp_path / "cache"))
    config = json.loads(FAMILIES["llama"]().to_json_string())
    (tmp_path / "config.json").write_text(json.dumps(config))
    first = program_file(tmp_path)
    assert program_file(tmp_path) == first
    assert first.is_relative_to(tmp_path / "cache")
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert program_file(tmp_path) != first


def test_the_command_writes_a_program(tmp_path):
    FAMILIES["gpt2"]().save_pretrained(tmp_path)
    assert main([str(tmp_path), str(tmp_path / "out.json")]) == 0
    assert load_program(tmp_path / "out.json") == captured("gpt2")


def test_the_command_says_what_was_wrong(tmp_path, capsys):
    assert main([str(tmp_path / "absent"), str(tmp_path / "out.json")]) == 1
    assert "config.json" in capsys.readouterr().err
    assert main([]) == 2
    assert not (tmp_path / "out.json").exists()


def test_asking_for_the_cached_file_imports_no_torch():
    script = "import sys, flexpipe.runtime.capturing.capture, flexpipe.planning; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
