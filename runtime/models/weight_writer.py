"""Weights to safetensors files, one shard in memory at a time.

Owns the file names of Hugging Face's sharded layout; knows nothing of what the tensors are.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from .model_folder import WEIGHTS_FILE, WEIGHTS_INDEX_FILE

SHARD_BYTES_MAX = 1 << 30
"""A shard is written when the next tensor would take it past this; it is what a conversion holds in memory."""

STORED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class WeightWriter:
    """A context manager: `add` every tensor once; leaving it without an error writes the last shard and the index.

    The number of shards is not known before the last tensor, so shards get their final names at the end. One shard
    alone becomes model.safetensors without an index. Both ways of writing raise OSError where the disk refuses.
    """

    def __init__(self, folder: Path, dtype: str, *, shard_bytes_max: int = SHARD_BYTES_MAX) -> None:
        """Write into the existing ``folder``, storing values as ``dtype`` (a key of `STORED_BYTES`)."""
        if dtype not in STORED_BYTES:
            raise ValueError(f"weights are stored as {', '.join(STORED_BYTES)}, not {dtype!r}")
        self._folder = folder
        self._dtype = dtype
        self._shard_bytes_max = shard_bytes_max
        self._pending: dict[str, Any] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, name: str, values: npt.NDArray[np.float32]) -> None:
        """Take one tensor; it may be held until the shard is full."""
        size = values.size * STORED_BYTES[self._dtype]
        if self._pending and self._pending_bytes + size > self._shard_bytes_max:
            self._write_shard()
        self._pending[name] = self._stored(values)
        self._pending_bytes += size
        self._total_bytes += size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._write_shard()
            self._name_shards()

    def _stored(self, values: npt.NDArray[np.float32]) -> Any:
        if self._dtype == "bfloat16":  # numpy has no such type
            import torch

            return torch.tensor(values, dtype=torch.bfloat16)
        return values.astype(self._dtype, copy=False)

    def _write_shard(self) -> None:
        path = self._partial(len(self._shards))
        framework = "torch" if self._dtype == "bfloat16" else "numpy"
        save_file = import_module(f"safetensors.{framework}").save_file
        try:
            save_file(self._pending, path, metadata={"format": "pt"})
        except SafetensorError as error:  # its own type even for a full disk
            raise OSError(f"{path}: {error}") from error
        self._shards.append(list(self._pending))
        self._pending = {}
        self._pending_bytes = 0

    def _name_shards(self) -> None:
        count = len(self._shards)
        if count == 1:
            self._partial(0).replace(self._folder / WEIGHTS_FILE)
            return
        weight_map: dict[str, str] = {}
        for index, names in enumerate(self._shards):
            file = f"model-{index + 1:05}-of-{count:05}.safetensors"
            self._partial(index).replace(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        described: dict[str, Any] = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        (self._folder / WEIGHTS_INDEX_FILE).write_text(json.dumps(described, indent=2), encoding="utf-8")

    def _partial(self, index: int) -> Path:
        return self._folder / f"shard-{index}.partial"
