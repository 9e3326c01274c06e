"""How many KV blocks an epoch in the making can have, from what its workers said of their memory."""

from __future__ import annotations

from collections.abc import Mapping

from ..policies.kv_room import StageRoom, kv_blocks
from ..runtime.interface import StageFacts
from .change import Change


def blocks_of(change: Change, held: Mapping[int, StageFacts], blocks_now: int, blocks_max: int) -> int:
    """The most blocks that fit every stage of ``change``, at most ``blocks_max``. Raises `NoRoomError`."""
    rooms = []
    for worker in change.route.workers:
        facts = change.facts(worker)
        assert facts is not None
        rooms.append(StageRoom(facts.memory_free_bytes, facts.kv_bytes_per_block))
    return kv_blocks(rooms, blocks_max)
