"""From a model's config alone to a captured program, and the cache where programs lie.

Owns the order of the steps (skeleton, export, tape, cuts, atoms) and the cache key. Imports torch and transformers only
while capturing, so that light processes can ask for `program_file` and leave the work to a child process:
``python -m flexpipe.runtime.capturing.capture MODEL_FOLDER OUT.json``.
"""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache_folder import cache_folder
from ..interface import EngineError
from ..program import PROGRAM_VERSION, AttentionLayer, Program, save_program

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CAPTURED_WITH = ("torch", "transformers", "flexpipe-serve")
"""Distributions whose versions are part of a cached program's name."""


def capture(config: PretrainedConfig | Path | str) -> Program:
    """Capture the decoder-only causal language model that ``config`` (or a folder's config.json) describes, in fp32.

    No weights are read and none are allocated. Raises `CaptureError` with one sentence where the model is of an unknown
    architecture, no decoder, or does between tokens what `flexpipe::attend` cannot express.
    """
    from .atoms import assemble
    from .checkpoint_names import as_stored
    from .cut_points import divide
    from .recording import record
    from .skeleton import build_skeleton, export_skeleton, read_config

    settings = read_config(Path(config)) if isinstance(config, (str, Path)) else config
    skeleton = build_skeleton(settings)
    tape = record(skeleton, export_skeleton(skeleton))
    text = settings.get_text_config(decoder=True)
    parts = assemble(divide(tape, text.hidden_size), tape.weights, tape.output)
    _check_attention(parts.attention, int(text.num_hidden_layers), type(skeleton.model).__name__)
    return Program(
        version=PROGRAM_VERSION,
        architecture=type(skeleton.model).__name__,
        model=str(settings.model_type),
        hidden_size=int(text.hidden_size),
        vocabulary_size=int(text.vocab_size),
        context_tokens=int(text.max_position_embeddings),
        graphs=parts.graphs,
        prelude=parts.prelude,
        prelude_weights=parts.prelude_weights,
        atoms=parts.atoms,
        weights=as_stored(skeleton.model, tape.weights),
        attention=parts.attention,
    )


def _check_attention(attention: tuple[AttentionLayer, ...], layers: int, architecture: str) -> None:
    """Every layer must mix tokens through attention of its own, or the KV pages would not hold all of a request's state."""
    from .operators import CaptureError

    if sorted(layer.layer for layer in attention) != list(range(layers)):
        raise CaptureError(
            f"{architecture} has {layers} layers but calls attention for layers"
            f" {[layer.layer for layer in attention]}: models without one attention per layer are not supported"
        )


def program_file(model_folder: Path | str) -> Path:
    """Where ``model_folder``'s program is or will be cached. Reads its config.json; raises `OSError` without one."""
    digest = hashlib.sha256((Path(model_folder) / "config.json").read_bytes())
    for name in CAPTURED_WITH:
        digest.update(f"\n{name}=={version(name)}".encode())
    digest.update(f"\nprogram {PROGRAM_VERSION}".encode())
    return cache_folder("programs") / f"{digest.hexdigest()[:32]}.json"


def main(arguments: list[str]) -> int:
    """Capture ``MODEL_FOLDER`` into ``OUT.json``; exit code 0, 1 with a sentence on stderr, 2 for misuse."""
    if len(arguments) != 2:
        print("usage: python -m flexpipe.runtime.capturing.capture MODEL_FOLDER OUT.json", file=sys.stderr)
        return 2
    try:
        save_program(capture(Path(arguments[0])), Path(arguments[1]))
    except (EngineError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
