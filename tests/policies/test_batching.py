"""The next step's rows: decoding first, prefill in chunks, an even share for each stage."""

import pytest
from flexpipe.policies.batching import BatchLimits, Candidate, Share, choose_batch
from hypothesis import given
from hypothesis import strategies as st

CANDIDATES = st.lists(st.integers(1, 50), max_size=20).map(
    lambda missing: [Candidate(request, tokens) for request, tokens in enumerate(missing)]
)


def test_decoding_comes_before_prefill_and_order_of_arrival_decides_within_each():
    candidates = [Candidate(0, 9), Candidate(1, 1), Candidate(2, 7), Candidate(3, 1)]
    chosen = choose_batch(candidates, decoding=2, prefilling=2, depth=1, limits=BatchLimits(step_tokens_max=10))
    assert chosen == [Share(1, 1), Share(3, 1), Share(0, 8)]


def test_a_deep_pipeline_takes_an_even_share_of_the_requests_in_each_step():
    candidates = [Candidate(request, 1) for request in range(7)]
    assert len(choose_batch(candidates, decoding=7, prefilling=0, depth=3, limits=BatchLimits())) == 3


def test_prompts_have_an_even_share_of_each_step_beside_full_rows():
    # Of eight rows and three prompts in four stages a step takes two rows and one prompt, though two steps of four rows
    # and one of three prompts would hold all of them.
    rows = [Candidate(request, 1) for request in range(8)]
    prompts = [Candidate(8 + request, 100) for request in range(3)]
    chosen = choose_batch([*rows, *prompts], decoding=8, prefilling=3, depth=4, limits=BatchLimits())
    assert chosen == [Share(0, 1), Share(1, 1), Share(8, 100)]


def test_requests_that_wait_for_room_make_no_step_take_more_than_its_share_of_rows():
    rows = [Candidate(request, 1) for request in range(8)]
    queue = [Candidate(8 + request, 100) for request in range(100)]
    chosen = choose_batch([*rows, *queue], decoding=8, prefilling=100, depth=4, limits=BatchLimits())
    assert sum(share.request < 8 for share in chosen) == 2


@given(CANDIDATES, st.integers(1, 5), st.integers(1, 30), st.integers(1, 10))
def test_no_limit_is_exceeded_and_no_request_gets_more_than_it_lacks(candidates, depth, tokens, rows):
    decoding = sum(candidate.missing == 1 for candidate in candidates)
    chosen = choose_batch(candidates, decoding, len(candidates) - decoding, depth, BatchLimits(tokens, rows))
    missing = {candidate.request: candidate.missing for candidate in candidates}
    assert sum(share.tokens for share in chosen) <= tokens
    assert len(chosen) <= rows
    assert len({share.request for share in chosen}) == len(chosen)
    assert all(1 <= share.tokens <= missing[share.request] for share in chosen)
    assert bool(chosen) == bool(candidates)


def test_limits_that_allow_no_step_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        BatchLimits(step_tokens_max=0)
