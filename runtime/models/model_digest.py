"""A short name for what a model computes: equal on every host that has the same weights and captured the same program.

Reads headers and a sample of the weights, so it takes milliseconds whatever the model's size. Knows no torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .model_folder import SAFETENSORS_HEADER_BYTES_MAX, BrokenCheckpointError, ModelFolder

SAMPLES = 64
"""Places of each weights file that are read; a fine-tuned copy differs in nearly all of them."""
SAMPLE_BYTES = 4096


def model_digest(folder: ModelFolder, program_file: Path) -> str:
    """SHA-256, in hex, of the program, and of name, size, header and a sample of each weights file.

    Raises `BrokenCheckpointError` where a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        digest.update(program_file.read_bytes())
        for path in sorted(set(folder.weights.values())):
            digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
            _add_sample(digest, path)
    except OSError as error:
        raise BrokenCheckpointError(f"{folder.path} cannot be read ({error}); fetch the model again") from error
    return digest.hexdigest()


def _add_sample(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = file.read(8)
        header_bytes = min(int.from_bytes(length, "little"), SAFETENSORS_HEADER_BYTES_MAX)
        digest.update(length + file.read(header_bytes))
        start = file.tell()
        for sample in range(SAMPLES):
            file.seek(start + (size - start) * sample // SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))
