"""The name under which hosts recognise that they have the same model."""

import shutil

import pytest
import torch
from flexpipe.runtime.models.model_digest import model_digest
from flexpipe.runtime.models.model_folder import BrokenCheckpointError, open_model_folder
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, random_model


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    random_model(FAMILIES["llama"]()).save_pretrained(folder)
    program = tmp_path / "program.json"
    program.write_text("{}")
    return folder, program


def digest(model):
    folder, program = model
    return model_digest(open_model_folder(folder), program)


def test_a_copy_elsewhere_has_the_same_digest(model, tmp_path):
    folder, program = model
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert digest((copy, program)) == digest(model)


@pytest.mark.parametrize("change", [lambda weight: weight + 1e-3, lambda weight: weight.clone().to(torch.bfloat16)])
def test_other_weights_have_another_digest(model, change):
    before = digest(model)
    weights = model[0] / "model.safetensors"
    save_file({name: change(weight) for name, weight in load_file(weights).items()}, weights)
    assert digest(model) != before


def test_another_program_has_another_digest(model):
    before = digest(model)
    model[1].write_text("[]")
    assert digest(model) != before


def test_a_model_without_its_program_is_an_error(model):
    model[1].unlink()
    with pytest.raises(BrokenCheckpointError, match="fetch the model again"):
        digest(model)
