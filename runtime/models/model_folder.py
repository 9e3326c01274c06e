"""A model on disk in Hugging Face's layout: what a folder must hold before anything may be built from it.

Owns the check of a folder and the errors about models; knows nothing of where a folder came from, of torch, or of what
the tensors mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
GENERATION_CONFIG_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"

SAFETENSORS_HEADER_BYTES_MAX = 100_000_000
"""The format's own limit; a larger length means that the file is something else."""


class ModelError(Exception):
    """A model cannot be used; the sentence names what was wrong and what to do."""


class ModelNotFoundError(ModelError):
    """Nothing is known under the given name or path."""


class BrokenCheckpointError(ModelError):
    """A file of the model is missing, cut short, or not what its name says."""


class MissingTensorError(BrokenCheckpointError):
    """The weights lack a tensor that the architecture needs."""


class UnknownArchitectureError(ModelError):
    """The model's family cannot be read here."""


class Report(Protocol):
    """How a long step tells how far it is. Called from the thread that works; must be quick and must not raise."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes of ``phase``; ``total`` 0 where nobody knows."""
        ...


def silent(phase: str, done: int, total: int) -> None:
    """A `Report` for callers who show no progress."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A checked folder. ``weights`` maps each tensor's name to its safetensors file; empty where none were asked for."""

    path: Path
    config: dict[str, Any]
    weights: dict[str, Path]

    @property
    def model_type(self) -> str:
        """The family by its transformers name ("llama", "opt", ...)."""
        return str(self.config["model_type"])

    def require_tensors(self, names: Iterable[str]) -> None:
        """Raise `MissingTensorError` naming the first absent tensors."""
        missing = [name for name in names if name not in self.weights]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise MissingTensorError(
                f"the weights in {self.path} lack the tensor {missing[0]!r}{more}: the files do not belong to the"
                f" {self.model_type} model that config.json describes; fetch the model again"
            )


def open_model_folder(path: Path, *, need_weights: bool = True) -> ModelFolder:
    """Check the folder at ``path`` and return what it holds; with ``need_weights`` False config.json is enough.

    Reads headers only, so it takes milliseconds whatever the model's size. Raises `BrokenCheckpointError`.
    """
    config = read_json_object(path / CONFIG_FILE)
    if not isinstance(config.get("model_type"), str):
        raise BrokenCheckpointError(f'{path / CONFIG_FILE} has no "model_type"; is it a transformers config?')
    weights = _weight_map(path) if need_weights else {}
    return ModelFolder(path=path, config=config, weights=weights)


def first_line(error: Exception, characters_max: int = 200) -> str:
    """What a library's error says, short enough to stand inside one sentence."""
    line = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
    return line if len(line) <= characters_max else f"{line[:characters_max]}..."


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; raises `BrokenCheckpointError` where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenCheckpointError(f"{path.parent} holds no {path.name}; is it the folder of a model?") from None
    except (OSError, ValueError) as error:
        raise BrokenCheckpointError(f"{path} cannot be read as JSON ({error}); fetch the model again") from error
    if not isinstance(value, dict):
        raise BrokenCheckpointError(f"{path} holds no JSON object; fetch the model again")
    return value


def safetensors_names(path: Path) -> tuple[str, ...]:
    """Names of the tensors in one safetensors file, after checking that no byte of it is missing."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= header_bytes <= min(SAFETENSORS_HEADER_BYTES_MAX, size - 8):
                raise BrokenCheckpointError(f"{path} is not a whole safetensors file; fetch it again")
            header = json.loads(file.read(header_bytes))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + header_bytes + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except FileNotFoundError:
        raise BrokenCheckpointError(f"{path} is missing; fetch the model again") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise BrokenCheckpointError(f"{path} has a damaged safetensors header; fetch it again") from error
    if size != end:
        raise BrokenCheckpointError(f"{path} is cut short: it holds {size} bytes of {end}; fetch it again")
    return tuple(tensors)


def _weight_map(path: Path) -> dict[str, Path]:
    index = path / WEIGHTS_INDEX_FILE
    if index.exists():
        return _sharded_weight_map(index)
    single = path / WEIGHTS_FILE
    if single.exists():
        return dict.fromkeys(safetensors_names(single), single)
    if any(path.glob("*.bin")) or any(path.glob("*.pt")):
        raise BrokenCheckpointError(
            f"{path} holds its weights as pickle files, which may run code and are not read here; "
            "convert them to safetensors (transformers: save_pretrained)"
        )
    raise BrokenCheckpointError(f"{path} holds no weights ({WEIGHTS_FILE}); fetch the model again")


def _sharded_weight_map(index: Path) -> dict[str, Path]:
    entries = read_json_object(index).get("weight_map")
    if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
        raise BrokenCheckpointError(f'{index} has no "weight_map"; fetch the model again')
    for file in entries.values():
        if Path(file).name != file:
            raise BrokenCheckpointError(f"{index} names the weight file {file!r}, which is outside of its folder")
    present = {file: frozenset(safetensors_names(index.parent / file)) for file in sorted(set(entries.values()))}
    for name, file in entries.items():
        if name not in present[file]:
            raise MissingTensorError(f"{index.parent / file} lacks the tensor {name!r} of its index; fetch it again")
    return {name: index.parent / file for name, file in entries.items()}
