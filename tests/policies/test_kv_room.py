"""How many KV blocks a pipeline has: what the tightest stage can hold, beside the pages that it has already."""

import pytest
from flexpipe.policies.kv_room import NoRoomError, StageRoom, kv_blocks
from hypothesis import given
from hypothesis import strategies as st

rooms = st.builds(
    StageRoom,
    memory_free_bytes=st.integers(0, 60),
    layers=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=3).map(tuple),
    memory=st.sampled_from(["", "host"]),
)


def fits(stages, blocks):
    """From the definition: every memory holds what the pages of each layer grow by."""
    own = [[stage] for stage in stages if not stage.memory]
    shared = [stage for stage in stages if stage.memory]
    for group in [*own, *([shared] if shared else [])]:
        needed = sum((blocks - held) * size for stage in group for size, held in stage.layers if held < blocks)
        if needed > min(stage.memory_free_bytes for stage in group):
            return False
    return True


@given(st.lists(rooms, min_size=1, max_size=4), st.integers(0, 3), st.integers(3, 12))
def test_it_is_the_largest_number_that_fits(stages, blocks_min, blocks_max):
    most = max((count for count in range(1, blocks_max + 1) if fits(stages, count)), default=0)
    if most < blocks_min:
        with pytest.raises(NoRoomError, match=f"needs? {blocks_min}: .* missing"):
            kv_blocks(stages, blocks_max, blocks_min)
    else:
        assert kv_blocks(stages, blocks_max, blocks_min) == most


def new(free, page_bytes, memory=""):
    """A stage of one layer without pages."""
    return StageRoom(free, ((page_bytes, 0),), memory)


def test_the_tightest_stage_decides():
    assert kv_blocks([new(1000, 10), new(500, 10), new(900, 10)], blocks_max=200) == 50


def test_no_more_than_is_useful():
    assert kv_blocks([new(1000, 10)], blocks_max=7) == 7


def test_a_stage_without_attention_does_not_bind():
    assert kv_blocks([StageRoom(0, ()), new(100, 10)], blocks_max=99) == 10


def test_pages_that_are_there_already_need_no_room_until_there_are_to_be_more():
    assert kv_blocks([StageRoom(0, ((10, 40),))], blocks_max=99) == 40
    assert kv_blocks([StageRoom(95, ((10, 40),))], blocks_max=99) == 49


def test_layers_that_have_fewer_pages_than_others_grow_first():
    tight = StageRoom(0, ((10, 32), (10, 12), (10, 12)))
    assert kv_blocks([tight], blocks_max=99) == 12
    assert kv_blocks([StageRoom(100, tight.layers)], blocks_max=99) == 17
    assert kv_blocks([StageRoom(430, tight.layers)], blocks_max=99) == 33


def test_stages_on_one_host_share_its_memory():
    assert kv_blocks([new(1000, 10, "host"), new(900, 20, "host")], blocks_max=99) == 30


def test_too_little_room_names_the_stage_and_what_is_missing():
    with pytest.raises(
        NoRoomError, match=r"stage 1 has room for 0 KV blocks and needs 1: 1\.0 MiB are missing; use more"
    ):
        kv_blocks([new(1 << 30, 1), new(0, 1 << 20)], blocks_max=5)
    tight = new(1 << 20, 1 << 19, "host")
    with pytest.raises(
        NoRoomError, match=r"stages 0, 1 have together room for 1 KV blocks and need 4: 3\.0 MiB are missing"
    ):
        kv_blocks([tight, tight], blocks_max=9, blocks_min=4)
