import json

import pytest
from flexpipe.actors.refactor import Pauses, RefactorReport
from flexpipe.bench.refactor_figures import Session, Window, by_context, by_strategy, compared, figures, medians
from flexpipe.bench.token_streams import TokenStream
from flexpipe.runtime.interface import WeightSources

REPORT = RefactorReport(
    epoch=2,
    strategy="precopy",
    stages=("a…b on cpu:0",),
    phase_ms={"load": 10.0},
    weights=WeightSources(),
    kv_sent_bytes=1000,
    kv_resent_bytes=20,
    kv_final_bytes=100,
    kv_rounds=2,
    residual_tokens=3,
    cut_step=7,
    pauses=Pauses(1, 1.0, 1.0, 1.0),
    tpot_before_ms=None,
    tpot_load_ms=None,
    tpot_copy_ms=None,
    requests_lost=0,
    requests_preempted=0,
    requests_reprefilled=0,
)


def stream(*arrivals_s, tokens=(), logprobs=(), lost=""):
    return TokenStream([1], list(arrivals_s), list(tokens), list(logprobs), lost)


def window(began_s, ended_s, *, before=2, after=4, strategy="precopy", **phases_s):
    return Window(strategy, before, after, began_s, ended_s, phases_s, REPORT)


def session(*windows, streams, context=256, began_s=0.0, ended_s=100.0):
    return Session(context, began_s, ended_s, windows, streams, 1.5, 0.1)


def steady(*, gap_s, begin_s, end_s):
    count = round((end_s - begin_s) / gap_s)
    return [begin_s + gap_s * number for number in range(count + 1)]


def test_a_pause_is_the_longest_gap_that_overlaps_the_change_less_the_usual_gap():
    # Steps of 0.1 s; the change lasts from 1.05 to 1.2, and one gap of 0.4 s begins within it.
    arrivals = [*steady(gap_s=0.1, begin_s=0, end_s=1.1), *steady(gap_s=0.1, begin_s=1.5, end_s=3)]
    (row,) = figures(session(window(1.05, 1.2), streams=(stream(*arrivals),), ended_s=3))
    assert row["pause_p99_ms"] == pytest.approx(300)
    assert row["step_before_ms"] == pytest.approx(100)
    assert row["pause_in_steps"] == pytest.approx(3)


def test_each_change_is_held_against_the_time_since_the_one_before():
    slow_after_first = [*steady(gap_s=0.1, begin_s=0, end_s=2), *steady(gap_s=0.2, begin_s=2.2, end_s=8)]
    first, second = figures(
        session(window(1.9, 2.1), window(5.0, 5.1, before=4, after=2), streams=(stream(*slow_after_first),), ended_s=8)
    )
    assert (first["step_before_ms"], first["step_after_ms"]) == (pytest.approx(100), pytest.approx(200))
    assert second["step_before_ms"] == pytest.approx(200)
    assert second["pause_p99_ms"] == pytest.approx(0, abs=1e-6)


def test_tokens_while_copying_are_told_from_those_while_loading_and_at_the_cut():
    arrivals = [
        *steady(gap_s=0.1, begin_s=0, end_s=1),
        *steady(gap_s=0.2, begin_s=1.2, end_s=2),  # loading
        *steady(gap_s=0.15, begin_s=2.15, end_s=3.05),  # copying
        3.6,  # the cut
        *steady(gap_s=0.1, begin_s=3.7, end_s=5),
    ]
    (row,) = figures(session(window(1.0, 3.5, load=1.0, copy=2.0, commit=3.1), streams=(stream(*arrivals),), ended_s=5))
    assert row["tpot_load_ms"] == pytest.approx(200)
    assert row["tpot_copy_ms"] == pytest.approx(150)
    assert row["copy_ratio"] == pytest.approx(1.5)
    assert row["cut_pause_p99_ms"] == pytest.approx(550 - 150)  # beside what was usual up to the commit


def test_a_change_without_tokens_has_no_figures_but_is_counted():
    (row,) = figures(session(window(1, 2), streams=(stream(0.1, lost="gone"),)))
    assert (row["pause_p99_ms"], row["step_before_ms"], row["pause_in_steps"], row["lost"]) == (None, None, None, 1)


def test_rounds_of_the_same_change_are_brought_to_their_median_and_lost_requests_added_up():
    rows = [
        {**figures(session(window(1, 2), streams=(stream(0, 0.1),)))[0], "pause_p99_ms": pause_ms, "lost": 1}
        for pause_ms in (5.0, None, 100.0, 7.0)
    ]
    (median,) = medians(rows)
    assert (median["pause_p99_ms"], median["rounds"], median["lost"]) == (7.0, 4, 4)
    (summary,) = by_strategy(rows)
    assert summary["resent_share"] == pytest.approx(0.02)


def test_growth_is_the_slope_over_context():
    rows = [
        {**row, "context": context, "pause_p99_ms": 5 + context * 0.5}
        for context in (256, 1024, 4096)
        for row in figures(session(window(1, 2), streams=(stream(0, 0.1),)))
    ]
    (growth,) = by_context(rows)
    assert growth["growth_ms"] == pytest.approx(512)
    assert growth["contexts"] == [256, 1024, 4096]


def test_streams_are_equal_when_all_that_was_delivered_is():
    quiet = (stream(tokens="abcdef", logprobs=[-1.0] * 6),)
    result = compared([session(window(1, 2), streams=(stream(tokens="abcd", logprobs=[-1.0] * 4),))], quiet)
    assert (result["equal"], result["streams"], result["nll_difference"]) == (1, 1, 0.0)


def test_streams_that_differ_are_compared_up_to_the_difference():
    quiet = (stream(tokens="abcdef", logprobs=[-1.0] * 6),)
    disturbed = (stream(tokens="abXdef", logprobs=[-1.0, -1.5, -9.0, 0, 0, 0]),)
    result = compared([session(window(1, 2), streams=disturbed)], quiet)
    assert (result["equal"], result["tokens"], result["tokens_compared"]) == (0, 6, 2)
    assert result["nll_difference"] == pytest.approx(0.25)
    assert result["logprob_difference"] == pytest.approx(0.5)


def test_a_stream_with_more_tokens_than_the_undisturbed_one_is_not_equal():
    quiet = (stream(tokens="ab", logprobs=[-1.0] * 2),)
    result = compared([session(window(1, 2), streams=(stream(tokens="abc", logprobs=[-1.0] * 3),))], quiet)
    assert result["equal"] == 0


def test_figures_can_be_printed_as_json():
    rows = figures(session(window(1, 2), streams=(stream(0, 0.1),)))
    (read,) = json.loads(json.dumps(rows, allow_nan=False))
    assert (read["pause_p99_ms"], read["report"]["kv_sent_bytes"]) == (None, 1000)
