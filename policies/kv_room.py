"""How many KV blocks a pipeline can have: the same number on every stage, since block ids mean the same on all of them.

Pure: values in, values out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageRoom:
    """One stage's free memory after its weights, in bytes, and for each layer of it the bytes of a page and the pages that it has.

    Whatever else the worker holds (layers that it is about to give away) is not free and does not grow. Stages with the same
    ``memory`` draw on one; "" is one of its own.
    """

    memory_free_bytes: int
    layers: tuple[tuple[int, int], ...]
    memory: str = ""

    def needed_bytes(self, blocks: int) -> int:
        """What ``blocks`` blocks take beside the pages that are here already. Never falls as ``blocks`` grows."""
        return sum(page_bytes * max(0, blocks - held) for page_bytes, held in self.layers)


class NoRoomError(Exception):
    """Some stage cannot hold even the least number of blocks; the sentence names it and what is missing."""


def kv_blocks(stages: Sequence[StageRoom], blocks_max: int, blocks_min: int = 1) -> int:
    """The most blocks that fit every stage, at most ``blocks_max``. Raises `NoRoomError` where below ``blocks_min``."""
    fits = [blocks_max]
    for places in _by_memory(stages):
        sharing = [stages[place] for place in places]
        free = min(room.memory_free_bytes for room in sharing)
        blocks = _most(sharing, free, blocks_max)
        if blocks < blocks_min:
            missing = sum(room.needed_bytes(blocks_min) for room in sharing) - free
            raise NoRoomError(_sentence(places, blocks, blocks_min, missing))
        fits.append(blocks)
    return min(fits)


def _most(sharing: Sequence[StageRoom], free: int, blocks_max: int) -> int:
    """The most blocks, at most ``blocks_max``, that need no more than ``free`` bytes; none take any."""
    counts = range(1, blocks_max + 1)
    return bisect_right(counts, max(0, free), key=lambda count: sum(room.needed_bytes(count) for room in sharing))


def _by_memory(stages: Sequence[StageRoom]) -> list[list[int]]:
    """Places of the stages that draw on one memory, together."""
    places: dict[str, list[int]] = {}
    for place, stage in enumerate(stages):
        places.setdefault(stage.memory or f"of stage {place}", []).append(place)
    return list(places.values())


def _sentence(places: Sequence[int], blocks: int, blocks_min: int, missing_bytes: int) -> str:
    who = f"stage {places[0]} has" if len(places) == 1 else f"stages {', '.join(map(str, places))} have together"
    needs = "needs" if len(places) == 1 else "need"
    return (
        f"{who} room for {blocks} KV blocks and {needs} {blocks_min}: {missing_bytes / 2**20:.1f} MiB are missing; "
        "use more stages, a larger device or a shorter context"
    )
