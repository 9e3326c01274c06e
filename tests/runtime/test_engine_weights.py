"""Reading checkpoints: what is there comes back exactly, what is not is one sentence."""

import json

import pytest
import torch
from flexpipe.runtime.program import WeightSpec
from flexpipe.runtime.weights import Checkpoint, WeightsError
from safetensors.torch import save_file


@pytest.fixture
def tensors():
    torch.manual_seed(1)
    return {
        "model.a": torch.randn(5, 3),
        "model.b": torch.randn(7).to(torch.bfloat16),
        "model.empty": torch.zeros(0, 4),
        "model.scalar": torch.tensor(2.5),
    }


def spec(name, *shape, **more):
    return WeightSpec(name, shape, "float32", **more)


def test_a_tensor_comes_back_exactly(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with Checkpoint(tmp_path) as checkpoint:
        for name, tensor in tensors.items():
            got = checkpoint.read(spec(name, *tensor.shape), torch.float32)
            assert got.dtype == torch.float32
            assert torch.equal(got, tensor.float())


def test_a_slice_reads_only_its_rows(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        got = checkpoint.read(spec("model.a", 5, 3), torch.float32, 1, 4)
    assert torch.equal(got, tensors["model.a"][1:4])


def test_a_sharded_checkpoint_reads_like_one(tmp_path, tensors):
    save_file({"model.a": tensors["model.a"]}, tmp_path / "one.safetensors")
    save_file({"model.b": tensors["model.b"]}, tmp_path / "two.safetensors")
    index = {"metadata": {}, "weight_map": {"model.a": "one.safetensors", "model.b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with Checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read(spec("model.a", 5, 3), torch.float32), tensors["model.a"])
        assert torch.equal(checkpoint.read(spec("model.b", 7), torch.bfloat16), tensors["model.b"])


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "lost.safetensors"}}')
    with pytest.raises(WeightsError, match=r"lost\.safetensors"):
        Checkpoint(tmp_path)


def test_a_tied_weight_is_read_from_its_twin(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        got = checkpoint.read(spec("lm_head.weight", 5, 3, tied_to="model.a"), torch.float32)
    assert torch.equal(got, tensors["model.a"])


def test_a_name_without_the_base_prefix_is_found(tmp_path, tensors):
    save_file({"a": tensors["model.a"]}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read(spec("model.a", 5, 3), torch.float32), tensors["model.a"])


def test_a_constant_needs_no_file(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    value = torch.tensor([1.0, 2.0]).numpy().tobytes()
    with Checkpoint(tmp_path) as checkpoint:
        got = checkpoint.read(spec("inv_freq", 2, value=value), torch.float32)
    assert got.tolist() == [1.0, 2.0]


def test_a_missing_tensor_names_itself_and_the_folder(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(WeightsError, match=r"model\.lost") as caught:
        checkpoint.read(spec("model.lost", 1), torch.float32)
    assert str(tmp_path) in str(caught.value)


def test_a_wrong_shape_names_both_shapes(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(WeightsError, match=r"\[5, 3\].*\[3, 5\]"):
        checkpoint.read(spec("model.a", 3, 5), torch.float32)


@pytest.mark.parametrize("kept", [0, 4, 20, -10])
def test_a_truncated_file_is_named(tmp_path, tensors, kept):
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="truncated"):
        Checkpoint(tmp_path)


def test_a_header_of_garbage_is_one_sentence(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((5).to_bytes(8, "little") + b"hello" + bytes(20))
    with pytest.raises(WeightsError, match="header"):
        Checkpoint(tmp_path)


def test_a_folder_without_weights_is_one_sentence(tmp_path):
    with pytest.raises(WeightsError, match="neither"):
        Checkpoint(tmp_path)
