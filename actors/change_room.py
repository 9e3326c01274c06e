"""How many KV blocks an epoch in the making can have, from what its workers said of their memory, and who would not fit."""

from __future__ import annotations

from collections.abc import Mapping

from ..policies.kv_room import StageRoom, kv_blocks
from ..runtime.interface import BLOCK_TOKENS
from .change import Change
from .coordinator_events import RoomKnown


def blocks_of(change: Change, blocks_max: int, stated_bytes: Mapping[str, int]) -> int:
    """The most blocks that fit every stage of ``change``, at most ``blocks_max``. Raises `NoRoomError`.

    ``stated_bytes`` are the memories of devices that have one of their own, though they are of one host.
    """
    rooms = []
    for stage in change.route.stages:
        facts = change.facts(stage.worker)
        assert facts is not None
        layers = tuple(zip(facts.page_bytes, facts.blocks_held, strict=True))
        rooms.append(StageRoom(facts.memory_free_bytes, layers, _memory_of(stage.device, stated_bytes)))
    return kv_blocks(rooms, blocks_max)


def _memory_of(device: str, stated_bytes: Mapping[str, int]) -> str:
    """See `StageRoom.memory`: CPU workers of a node share its memory, unless each has been told how much is its own."""
    return "host" if device.startswith("cpu") and device not in stated_bytes else ""


def refusal(change: Change, room: RoomKnown) -> str:
    """Why the requests that are here do not let the change be, "" where they do.

    Where nothing serves they have no say: the scheduler ends those that are too large with an error.
    """
    if change.base is None:
        return ""
    if room.largest_blocks > change.kv_blocks:
        return (
            f"the new stages have room for {change.kv_blocks} KV blocks of {BLOCK_TOKENS} tokens and a request that is "
            f"here may need {room.largest_blocks}; use more stages, or wait for it to end"
        )
    if room.beyond and not change.allow_preempt:
        return (
            f"the new stages have room for {change.kv_blocks} KV blocks, so {room.beyond} running requests would have to be "
            "prefilled again; allow that (allow-preempt), use more stages, or try again later"
        )
    return ""
