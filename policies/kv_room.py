"""How many KV blocks a pipeline can have: the same number on every stage, since block ids mean the same on all of them.

Pure: values in, values out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageRoom:
    """One stage's free memory after its weights, and what one block costs it. Bytes."""

    memory_free_bytes: int
    kv_bytes_per_block: int


class NoRoomError(Exception):
    """Some stage cannot hold even the least number of blocks; the sentence names it and what is missing."""


def kv_blocks(stages: Sequence[StageRoom], blocks_max: int, blocks_min: int = 1) -> int:
    """The most blocks that fit every stage, at most ``blocks_max``. Raises `NoRoomError` where below ``blocks_min``."""
    fits = [blocks_max]
    for index, room in enumerate(stages):
        if room.kv_bytes_per_block == 0:
            continue  # a stage of embeddings or the head alone keeps no KV
        blocks = room.memory_free_bytes // room.kv_bytes_per_block
        if blocks < blocks_min:
            missing = blocks_min * room.kv_bytes_per_block - room.memory_free_bytes
            raise NoRoomError(
                f"stage {index} has room for {blocks} KV blocks and needs {blocks_min}: {missing / 2**20:.1f} MiB are missing; "
                "use more stages, a larger device or a shorter context"
            )
        fits.append(blocks)
    return min(fits)
