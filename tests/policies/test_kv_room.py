"""How many KV blocks a pipeline has: what the tightest stage can hold."""

import pytest
from flexpipe.policies.kv_room import NoRoomError, StageRoom, kv_blocks


def test_the_tightest_stage_decides():
    assert kv_blocks([StageRoom(1000, 10), StageRoom(500, 10), StageRoom(900, 10)], blocks_max=200) == 50


def test_no_more_than_is_useful():
    assert kv_blocks([StageRoom(1000, 10)], blocks_max=7) == 7


def test_a_stage_without_attention_does_not_bind():
    assert kv_blocks([StageRoom(0, 0), StageRoom(100, 10)], blocks_max=99) == 10


def test_too_little_room_names_the_stage_and_what_is_missing():
    with pytest.raises(NoRoomError, match=r"stage 1 has room for 0 KV blocks .* 1\.0 MiB are missing"):
        kv_blocks([StageRoom(1 << 30, 1), StageRoom(0, 1 << 20)], blocks_max=5)
