"""Who holds which block: nobody holds two, nothing is lost."""

import pytest
from flexpipe.actors.block_ledger import BlockLedger, LedgerError
from hypothesis import given
from hypothesis import strategies as st


def test_growing_takes_what_is_lacking_and_keeps_what_is_held():
    ledger = BlockLedger(10)
    assert ledger.grow(1, 3)
    first = list(ledger.blocks_of(1))
    assert ledger.grow(1, 5)
    assert ledger.blocks_of(1)[:3] == first
    assert (ledger.used, ledger.free) == (5, 5)


def test_growing_beyond_what_is_free_changes_nothing():
    ledger = BlockLedger(4)
    ledger.grow(1, 3)
    assert not ledger.grow(2, 2)
    assert ledger.blocks_of(2) == []
    assert ledger.free == 1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8)), max_size=40))
def test_whatever_is_asked_every_block_is_free_or_held_once(moves):
    ledger = BlockLedger(12)
    for request, blocks in moves:
        if blocks == 0:
            ledger.release(request)
        else:
            ledger.grow(request, blocks)
        ledger.check(range(5))


def test_blocks_of_a_request_that_is_gone_are_noticed():
    ledger = BlockLedger(4)
    ledger.grow(7, 1)
    with pytest.raises(LedgerError, match="7"):
        ledger.check([1, 2])


def test_beyond_a_limit_nothing_is_handed_out_and_what_is_held_stays_held():
    ledger = BlockLedger(8)
    ledger.grow(1, 6)
    ledger.limit(4)
    assert ledger.holders_beyond(4) == [1]
    assert not ledger.grow(2, 1)
    ledger.release(1)
    assert (ledger.free, ledger.holders_beyond(4)) == (4, [])
    ledger.limit(8)
    assert ledger.grow(2, 8)


def test_a_resize_waits_for_the_holders_of_what_will_not_be_there():
    ledger = BlockLedger(8)
    ledger.grow(1, 3)
    ledger.grow(2, 3)
    with pytest.raises(LedgerError, match="2"):
        ledger.resize(4)
    assert ledger.capacity == 8
    ledger.release(2)
    ledger.resize(4)
    assert (ledger.capacity, ledger.free) == (4, 1)
    ledger.resize(6)
    assert ledger.free == 3


def test_a_limit_beyond_the_capacity_is_our_bug():
    ledger = BlockLedger(4)
    with pytest.raises(LedgerError, match="limit of 5"):
        ledger.limit(5)
    assert ledger.limit_blocks == 4


def test_held_blocks_are_told_as_bits_lowest_first():
    ledger = BlockLedger(12)
    ledger.grow(1, 2)
    ledger.grow(2, 8)
    ledger.release(1)
    assert list(ledger.held_bits()) == [0b11111100, 0b00000011]


LIMITED = st.tuples(st.sampled_from(["grow", "release", "limit", "resize"]), st.integers(0, 4), st.integers(0, 14))


@given(st.lists(LIMITED, max_size=40))
def test_limits_and_resizes_neither_lose_nor_double_a_block(moves):
    ledger = BlockLedger(12)
    for action, request, number in moves:
        if action == "grow":
            if ledger.grow(request, number) and number:
                assert max(ledger.blocks_of(request)) < ledger.capacity
        elif action == "release":
            ledger.release(request)
        elif action == "limit":
            ledger.limit(min(number, ledger.capacity))
        elif not ledger.holders_beyond(number):
            ledger.resize(number)
        ledger.check(range(5))
