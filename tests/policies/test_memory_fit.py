"""Devices for stages of known sizes: preferred where they fit, the tightest otherwise, and found whenever there are some."""

from itertools import permutations

from flexpipe.policies.memory_fit import no_room, roomiest, stated_in_words, tightest
from hypothesis import given
from hypothesis import strategies as st

MIB = 1 << 20


def named(sizes):
    return {f"d{number}": size for number, size in enumerate(sizes)}


def test_the_roomiest_devices_come_in_their_order_and_those_without_a_limit_first():
    stated = {"a": 5, "b": 9, "c": 7}
    assert roomiest(["a", "b", "c"], stated, 2) == ("b", "c")
    assert roomiest(["a", "b", "free", "c"], stated, 2) == ("b", "free")


def test_a_stage_stays_where_it_is_preferred_and_fits():
    stated = named([10, 10, 4])
    assert tightest([3, 3], ["d0", "d1"], list(stated), stated) == ("d0", "d1")
    assert tightest([3, 6], ["d0", "d2"], list(stated), stated) == ("d0", "d1")


def test_a_preference_yields_where_another_stage_needs_the_place():
    stated = named([10, 5])
    assert tightest([4, 9], ["d0", "d1"], list(stated), stated) == ("d1", "d0")


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4), st.lists(st.integers(0, 9), min_size=4, max_size=5), st.data()
)
def test_devices_are_found_whenever_there_are_some(needed, sizes, data):
    stated = named(sizes)
    preferred = data.draw(st.permutations(list(stated)))[: len(needed)]
    exists = any(
        all(size <= stated[device] for size, device in zip(needed, chosen, strict=True))
        for chosen in permutations(stated, len(needed))
    )
    chosen = tightest(needed, preferred, list(stated), stated)
    assert (chosen is not None) == exists
    if chosen is not None:
        assert len(set(chosen)) == len(needed)
        assert all(size <= stated[device] for size, device in zip(needed, chosen, strict=True))
    else:
        assert "and the largest device left for it is" in no_room(needed, list(stated), stated)


def test_what_is_missing_is_said_by_name():
    stated = {"cpu:0": 2048 * MIB, "cpu:1": 512 * MIB}
    assert stated_in_words(["cpu:0", "cpu:2"], stated) == "cpu:0 (2,048 MiB), cpu:2"
    assert no_room([600 * MIB, 700 * MIB], list(stated), stated) == (
        "stage 0 needs 600 MiB for weights and KV, and the largest device left for it is cpu:1 (512 MiB)"
    )
    assert no_room([1, 1, 1], list(stated), stated) == "3 stages need 3 devices, and there are 2"
