"""From measured points to a calibration: what is known of the points comes out of the fit."""

from types import SimpleNamespace

import pytest
from flexpipe.bench.calibration import (
    DECODE_PROMPT,
    DECODE_TOKENS,
    DECODED,
    LONG_CONTEXT,
    LONG_PROMPT,
    LONG_ROWS,
    PROMPTS,
    _frozen,
    _Points,
    _rising,
)

CONTEXT_S, SQUARE_S, HOP_S = 4e-6, 3e-7, 1e-3
SHARES = (0.6, 0.4)


def plain_s(tokens, under_way):
    return under_way * (0.02 + 0.002 * tokens)


def measured():
    """What a pipeline of known times would show."""
    points = _Points(shares={1: (1.0,), 2: SHARES}, hops=[HOP_S], cuts=[0.08], cycles=[0.1], blocks=[12.0])
    points.changes = {"1>2": [0.4, 0.6, 0.5]}
    points.slowdowns = [0.1]
    for under_way, longest in ((1, 1.0), (2, 2 * max(SHARES))):
        for rows in DECODED[under_way]:
            attention = CONTEXT_S * rows * (DECODE_PROMPT + DECODE_TOKENS / 2)
            points.add(under_way, rows, (plain_s(rows, under_way) + attention) * longest)
        for tokens in PROMPTS[under_way]:
            points.add(under_way, tokens, (plain_s(tokens, under_way) + SQUARE_S * tokens**2) * longest)
    half = points.step_s(1, LONG_PROMPT // 2)
    points.long_prompts = [2 * half + SQUARE_S * (LONG_PROMPT**2 - 2 * (LONG_PROMPT // 2) ** 2)]
    points.long_rows = [points.step_s(1, LONG_ROWS) + CONTEXT_S * LONG_ROWS * (LONG_CONTEXT - DECODE_PROMPT)]
    return points


def test_what_a_pipeline_of_known_times_shows_gives_its_times():
    found = _frozen(SimpleNamespace(model=SimpleNamespace(name="known")), measured())
    assert found.context_s == pytest.approx(CONTEXT_S)
    assert found.square_s == pytest.approx(SQUARE_S)
    assert found.hop_s == HOP_S
    assert found.change_s == {"1>2": 0.5}
    assert found.cut_s == pytest.approx(0.03)
    assert found.seconds[0] == pytest.approx([plain_s(tokens, 1) for tokens in found.tokens])
    assert found.seconds[1] == pytest.approx([plain_s(tokens, 2) for tokens in found.tokens], rel=0.02)


def test_a_table_never_falls_and_one_noisy_point_raises_no_other_much():
    assert _rising([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert _rising([5.0, 1.0, 1.0, 1.0, 4.0]) == [2.0, 2.0, 2.0, 2.0, 4.0]
