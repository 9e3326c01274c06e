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
