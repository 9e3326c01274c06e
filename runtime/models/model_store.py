"""From what a user calls a model to a checked folder on this disk.

Owns the order in which a name is understood (short name, folder, GGUF file, hub id). Draws no progress and knows
nothing of what is inside the tensors.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from .gguf_import import import_gguf
from .model_cache import converted_model
from .model_folder import ModelError, ModelFolder, ModelNotFoundError, Report, first_line, open_model_folder, silent
from .pull import KNOWN_MODELS, pull

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
HUB_FILES_IGNORED = ("*/*", "consolidated*")
HUB_CONFIG_FILES = ("config.json", "generation_config.json")

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


class HubError(ModelError):
    """The hub could not be reached, or does not give this model to this user."""


def resolve(model: str, *, report: Report = silent, need_weights: bool = True, dtype: str = "float32") -> ModelFolder:
    """The folder that ``model`` means, fetched and converted first where it has to be.

    ``model`` is, tried in this order: a short name ("smollm2"); a path to a Hugging Face folder; a path to a GGUF file,
    converted into the cache once, stored as ``dtype``; a hub id ("owner/name"). With ``need_weights`` False a folder
    with a config.json is enough, and of a hub id only the config is fetched. Raises `ModelError`s, each one clear
    sentence.
    """
    if model in KNOWN_MODELS:
        return pull(model, report=report)
    path = Path(model).expanduser()
    if path.is_dir():
        return open_model_folder(path.resolve(), need_weights=need_weights)
    if path.is_file():
        return _from_file(path.resolve(), report, dtype)
    if _HUB_ID.fullmatch(model) and not path.parent.is_dir():
        return _from_hub(model, need_weights=need_weights, report=report)
    raise ModelNotFoundError(
        f"no model {model!r}: it is no path that exists, no hub id (owner/name), and the known names are "
        f"{', '.join(sorted(KNOWN_MODELS))}"
    )


def _from_file(path: Path, report: Report, dtype: str) -> ModelFolder:
    if path.suffix.lower() != ".gguf":
        raise ModelNotFoundError(f"{path} is neither a folder nor a .gguf file; name the folder that holds config.json")
    facts = path.stat()
    # A path with its size and change time stands for the content: hashing 40 GB before every start would take a minute.
    key = hashlib.sha256(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0{dtype}".encode()).hexdigest()[:16]
    return converted_model(f"{path.stem}-{key}", lambda partial: import_gguf(path, partial, report=report, dtype=dtype))


def _from_hub(model: str, *, need_weights: bool, report: Report) -> ModelFolder:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    report("download", 0, 0)
    patterns = HUB_FILES if need_weights else HUB_CONFIG_FILES
    try:
        folder = snapshot_download(model, allow_patterns=list(patterns), ignore_patterns=list(HUB_FILES_IGNORED))
    except GatedRepoError as error:
        raise HubError(
            f"the hub gives {model!r} only to users who accepted its terms; accept them and set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"the hub knows no model {model!r}; check the spelling, or set HF_TOKEN if it is private"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise HubError(
            f"cannot fetch {model!r} from the hub ({first_line(error)}); check the network, or pass the path of a "
            "local folder or GGUF file"
        ) from error
    return open_model_folder(Path(folder), need_weights=need_weights)
