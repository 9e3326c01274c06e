"""What a worker knows of its blocks: fill, version, life and owner, against a simple model, and what garbage does to it."""

import random

import msgspec
import numpy as np
import pytest
from flexpipe.actors.messages import StepPlan
from flexpipe.actors.page_ledger import BLOCKS_MAX, PageLedger, blocks_in
from flexpipe.runtime.interface import BLOCK_TOKENS
from flexpipe.transport.interface import FrameError
from page_store import int32, live_bits, plan_of


def ran(ledger, *rows):
    plan = plan_of(0, rows)
    ledger.begin_step(plan)
    ledger.end_step(plan)


def state_of(ledger):
    return [array.tolist() for array in (ledger.filled, ledger.version, ledger.life, ledger.owner)] + [ledger.clock]


def test_a_prefill_fills_blocks_and_a_decode_step_goes_on():
    ledger = PageLedger()
    ran(ledger, (1, 0, 20, [3, 5]), (2, 0, 16, [4]))
    assert ledger.filled.tolist() == [0, 0, 0, 16, 16, 4]
    ran(ledger, (1, 20, 1, [3, 5]))
    assert ledger.filled.tolist() == [0, 0, 0, 16, 16, 5]


def test_a_block_that_a_step_writes_to_is_not_full_until_the_step_has_run():
    ledger = PageLedger()
    ran(ledger, (1, 0, 16, [0]))
    plan = plan_of(1, [(2, 0, 16, [0])])
    ledger.begin_step(plan)
    assert ledger.filled[0] == 0
    ledger.end_step(plan)
    assert ledger.filled[0] == 16


def test_every_step_that_writes_to_a_block_gives_it_a_new_version_and_only_its_first_token_a_new_life():
    ledger = PageLedger()
    ran(ledger, (1, 0, 3, [0]))
    life, version = int(ledger.life[0]), int(ledger.version[0])
    ran(ledger, (1, 3, 1, [0]))
    assert (int(ledger.life[0]), int(ledger.version[0])) == (life, version + 1)
    ran(ledger, (2, 0, 1, [0]))
    assert int(ledger.life[0]) == int(ledger.version[0]) == version + 2


def test_pages_that_came_are_known_and_older_than_any_step():
    ledger = PageLedger()
    ledger.ensure(4)
    ledger.arrived(np.array([1, 3], np.int32), np.array([16, 7], np.uint8))
    assert ledger.filled.tolist() == [0, 16, 0, 7]
    assert 0 < ledger.version[1] <= ledger.clock
    before = ledger.clock
    ran(ledger, (1, 0, 1, [0]))
    assert ledger.version[0] > before


def test_what_a_worker_wrote_itself_it_knows_better_than_the_donor_of_another_layer():
    ledger = PageLedger()
    ran(ledger, (1, 0, 20, [0, 1]))
    before = state_of(ledger)
    ledger.arrived(np.array([0, 1], np.int32), np.array([9, 9], np.uint8))
    assert state_of(ledger) == before


def test_blocks_that_came_belong_to_the_request_whose_step_names_them_first():
    ledger = PageLedger()
    ledger.ensure(6)
    ledger.arrived(np.array([1, 2, 4], np.int32), np.array([16, 16, 5], np.uint8))
    assert set(ledger.owner.tolist()) == {-1}
    ran(ledger, (0, 37, 1, [1, 2, 4]), (7, 0, 1, [5]))
    assert ledger.owner.tolist() == [-1, 0, 0, -1, 0, 7]


def test_what_is_known_at_the_cut_stays_as_it_was():
    ledger = PageLedger()
    ran(ledger, (1, 0, 5, [0]))
    at_cut = ledger.at_cut()
    ran(ledger, (1, 5, 1, [0]))
    assert (at_cut.filled[0], ledger.filled[0]) == (5, 6)
    assert at_cut.version[0] < ledger.version[0]


def test_a_ledger_that_forgot_knows_nothing_and_never_uses_a_version_again():
    ledger = PageLedger()
    ran(ledger, (1, 0, 5, [0]))
    clock = ledger.clock
    ledger.forget()
    assert state_of(ledger) == [[0], [0], [0], [-1], clock]


def plan_with(**fields):
    return msgspec.structs.replace(plan_of(1, [(1, 0, 2, [0]), (2, 0, 1, [1])]), **fields)


@pytest.mark.parametrize(
    "plan",
    [
        plan_with(requests=()),
        plan_with(requests=(1, 2, 3)),
        plan_with(positions=b"123"),
        plan_with(positions=int32([0, 1])),
        plan_with(positions=int32([0, 1, -16])),
        plan_with(positions=int32([0, 16, 0])),
        plan_with(row_starts=int32([0, 3, 2])),
        plan_with(row_starts=int32([0, 9])),
        plan_with(block_tables=b""),
        plan_with(block_tables=int32([0, -1])),
        plan_with(block_tables=int32([0, BLOCKS_MAX])),
        plan_with(block_tables=int32([0, 2**31 - 1])),
        StepPlan(0, 1, (1,), b"", b"", b"", b"", b"", ()),
    ],
)
def test_a_plan_of_garbage_is_refused_by_step_and_changes_nothing(plan):
    ledger = PageLedger()
    ran(ledger, (1, 0, 5, [0]))
    before = state_of(ledger)
    for note in (ledger.begin_step, ledger.end_step):
        with pytest.raises(FrameError, match="step 1"):
            note(plan)
        assert state_of(ledger) == before


def test_live_bits_beyond_what_was_sent_are_not_set():
    assert blocks_in(live_bits([0, 9], 10), 10).nonzero()[0].tolist() == [0, 9]
    assert blocks_in(live_bits([3], 4), 20).nonzero()[0].tolist() == [3]
    assert blocks_in(b"\xff" * 4, 3).tolist() == [True] * 3
    assert not blocks_in(b"", 5).any()


@pytest.mark.parametrize("seed", range(20))
def test_a_random_history_leaves_what_a_token_by_token_model_says(seed):
    chance = random.Random(seed)
    ledger = PageLedger()
    tokens = {}  # block -> {offset: (request, step)}
    held, lengths = {}, {}
    free = list(range(40))
    for step in range(1, 60):
        if held and chance.random() < 0.2:
            gone = chance.choice(sorted(held))
            free += held.pop(gone)
            del lengths[gone]
        rows = []
        for request in chance.sample(sorted(held), k=min(len(held), 3)) + ([100 + step] if len(free) > 8 else []):
            first = lengths.get(request, 0)
            count = 1 if first else chance.randint(1, 40)
            lacking = -(-(first + count) // BLOCK_TOKENS) - len(held.get(request, []))
            if lacking > len(free):
                continue
            held[request] = held.get(request, []) + [free.pop(chance.randrange(len(free))) for _ in range(lacking)]
            lengths[request] = first + count
            rows.append((request, first, count, held[request]))
        if not rows:
            continue
        ran(ledger, *rows)
        for request, first, count, blocks in rows:
            for position in range(first, first + count):
                block, offset = blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
                if offset == 0:
                    tokens[block] = {}
                tokens[block][offset] = (request, ledger.clock)
    assert len(tokens) > 10
    for block, written in tokens.items():
        assert ledger.filled[block] == len(written)
        assert ledger.version[block] == max(step for _, step in written.values())
        assert ledger.life[block] == written[0][1]
        assert ledger.owner[block] == written[0][0]
