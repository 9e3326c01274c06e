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
    chosen = choose_batch(candidates, active=4, depth=1, limits=BatchLimits(step_tokens_max=10))
    assert chosen == [Share(1, 1), Share(3, 1), Share(0, 8)]


def test_a_deep_pipeline_takes_an_even_share_of_the_requests_in_each_step():
    candidates = [Candidate(request, 1) for request in range(7)]
    assert len(choose_batch(candidates, active=7, depth=3, limits=BatchLimits())) == 3


@given(CANDIDATES, st.integers(1, 5), st.integers(1, 30), st.integers(1, 10))
def test_no_limit_is_exceeded_and_no_request_gets_more_than_it_lacks(candidates, depth, tokens, rows):
    chosen = choose_batch(candidates, len(candidates), depth, BatchLimits(tokens, rows))
    missing = {candidate.request: candidate.missing for candidate in candidates}
    assert sum(share.tokens for share in chosen) <= tokens
    assert len(chosen) <= rows
    assert len({share.request for share in chosen}) == len(chosen)
    assert all(1 <= share.tokens <= missing[share.request] for share in chosen)
    assert bool(chosen) == bool(candidates)


def test_limits_that_allow_no_step_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        BatchLimits(step_tokens_max=0)
