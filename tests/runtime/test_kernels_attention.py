"""Paged attention against float64, and the same bits however a request's tokens are cut into steps."""

import numpy as np
import pytest
import torch
from flexpipe.runtime.kernels.arrays import KernelInputError
from flexpipe.runtime.kernels.attention import BLOCK_TOKENS, PageLayout, attend, plan_attention
from flexpipe.runtime.kernels.elementwise import rotate
from flexpipe.runtime.kernels.threads import get_threads, set_threads

LENGTHS = [300, 17, 1, 140]
BLOCKS = 200
TABLE_WIDTH = 20

# query heads, KV heads, key size, value size, window, softcap
SHAPES = [
    (9, 3, 64, 64, None, 0.0),
    (4, 4, 8, 8, None, 0.0),
    (2, 1, 80, 96, 33, 0.0),
    (16, 1, 16, 24, 7, 5.0),
    (14, 2, 64, 64, 130, 0.0),
    (40, 1, 32, 32, None, 2.0),
]


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = get_threads()
    yield
    set_threads(before)


class Requests:
    """Requests with random queries, keys and values, run through pages in steps of any shape."""

    def __init__(self, heads, kv_heads, key_size, value_size, window, softcap):
        rng = np.random.default_rng(0)
        self.layout = PageLayout(kv_heads, key_size, value_size)
        self.heads, self.window, self.softcap, self.scale = heads, window, softcap, key_size**-0.5
        self.q = [rng.standard_normal((n, heads, key_size), dtype=np.float32) for n in LENGTHS]
        self.k = [rng.standard_normal((n, kv_heads, key_size), dtype=np.float32) for n in LENGTHS]
        self.v = [rng.standard_normal((n, kv_heads, value_size), dtype=np.float32) for n in LENGTHS]

    def run(self, order, chunk, seed):
        """Every request to its end, ``chunk()`` tokens a step, in pages full of NaN and at shuffled places."""
        rng = np.random.default_rng(seed)
        pages = np.full((BLOCKS, self.layout.floats_per_page), np.nan, np.float32)
        tables = rng.permutation(BLOCKS)[: len(LENGTHS) * TABLE_WIDTH].reshape(-1, TABLE_WIDTH).astype(np.int32)
        done, pieces = [0] * len(LENGTHS), [[] for _ in LENGTHS]
        while any(d < n for d, n in zip(done, LENGTHS, strict=True)):
            rows = [row for row in order if done[row] < LENGTHS[row]]
            ends = [min(done[row] + chunk(), LENGTHS[row]) for row in rows]
            spans = [slice(done[row], end) for row, end in zip(rows, ends, strict=True)]
            starts = np.cumsum([0] + [span.stop - span.start for span in spans]).astype(np.int32)
            positions = np.concatenate([np.arange(span.start, span.stop) for span in spans]).astype(np.int32)
            plan = plan_attention(positions, starts, tables[rows], self.heads // self.layout.kv_heads)
            q, k, v = (
                np.concatenate([of[row][span] for row, span in zip(rows, spans, strict=True)])
                for of in (self.q, self.k, self.v)
            )
            out = attend(q, k, v, pages, self.layout, plan, self.scale, self.window, self.softcap)
            for index, row in enumerate(rows):
                pieces[row].append(out[starts[index] : starts[index + 1]])
                done[row] = ends[index]
        return [np.concatenate(row) for row in pieces]

    def reference(self, row):
        """The same in float64, one token and head after the other."""
        q, k, v = (of[row].astype(np.float64) for of in (self.q, self.k, self.v))
        group = self.heads // self.layout.kv_heads
        out = np.zeros((len(q), self.heads, v.shape[2]))
        for token in range(len(q)):
            low = 0 if self.window is None else max(0, token - self.window + 1)
            for head in range(self.heads):
                seen = slice(low, token + 1), head // group
                scores = k[seen] @ q[token, head] * self.scale
                if self.softcap:
                    scores = self.softcap * np.tanh(scores / self.softcap)
                weights = np.exp(scores - scores.max())
                out[token, head] = weights / weights.sum() @ v[seen]
        return out


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_equals_its_float64_reference(shape):
    requests = Requests(*shape)
    outputs = requests.run([0, 1, 2, 3], lambda: max(LENGTHS), seed=1)
    for row, output in enumerate(outputs):
        np.testing.assert_allclose(output, requests.reference(row), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_has_the_same_bits_in_prefill_chunks_of_any_size_and_in_decode(shape):
    requests = Requests(*shape)
    set_threads(1)
    whole = requests.run([0, 1, 2, 3], lambda: max(LENGTHS), seed=1)
    set_threads(2)
    sizes = np.random.default_rng(2)
    for chunk in (lambda: 1, lambda: int(sizes.integers(1, 40))):
        for expected, output in zip(whole, requests.run([3, 1, 0, 2], chunk, seed=3), strict=True):
            np.testing.assert_array_equal(output.view(np.int32), expected.view(np.int32))


def test_a_page_is_one_run_of_bytes_that_may_move():
    layout = PageLayout(kv_heads=2, key_size=16, value_size=16)
    rng = np.random.default_rng(4)
    pages = np.zeros((4, layout.floats_per_page), np.float32)
    q, k, v = (rng.standard_normal((20, heads, 16), dtype=np.float32) for heads in (4, 2, 2))
    plan = plan_attention(np.arange(19, dtype=np.int32), np.array([0, 19]), np.array([[0, 1]]), 2)
    attend(q[:19], k[:19], v[:19], pages, layout, plan, 0.25)
    moved = np.full_like(pages, np.nan)
    moved[3], moved[1] = pages[0], pages[1]
    outs = []
    for home, table in ((pages, [[0, 1]]), (moved, [[3, 1]])):
        plan = plan_attention(np.array([19], np.int32), np.array([0, 1]), np.array(table), 2)
        outs.append(attend(q[19:], k[19:], v[19:], home, layout, plan, 0.25))
    np.testing.assert_array_equal(outs[0], outs[1])
    assert pages[0].nbytes == layout.bytes_per_page


def test_slices_of_a_merged_projection_are_read_where_they_lie():
    layout = PageLayout(kv_heads=1, key_size=16, value_size=16)
    merged = torch.randn(5, 4 * 16, generator=torch.Generator().manual_seed(5))
    parts = merged[:, :32].view(5, 2, 16), merged[:, 32:48].view(5, 1, 16), merged[:, 48:].view(5, 1, 16)
    plan = plan_attention(np.arange(5, dtype=np.int32), np.array([0, 5]), np.array([[0]]), 2)
    outs = []
    for q, k, v in (parts, [part.contiguous() for part in parts]):
        outs.append(attend(q, k, v, torch.zeros(1, layout.floats_per_page), layout, plan, 0.25))
    assert torch.equal(outs[0], outs[1])


def test_rotation_within_the_call_equals_rotation_before_it():
    layout = PageLayout(kv_heads=1, key_size=16, value_size=16)
    generator = torch.Generator().manual_seed(6)
    merged = torch.randn(1, 5, 4 * 16, generator=generator)
    cos, sin = torch.randn(2, 1, 5, 8, generator=generator)
    plan = plan_attention(np.arange(5, dtype=np.int32), np.array([0, 5]), np.array([[0]]), 2)
    q, k, v = (part.contiguous() for part in merged.split([32, 16, 16], -1))
    rotate(q.view(5, 2, 16), k.view(5, 1, 16), cos, sin)
    pages = torch.zeros(2, 1, layout.floats_per_page)
    before = attend(q.view(5, 2, 16), k, v, pages[0], layout, plan, 0.25)
    within = attend(*merged.split([32, 16, 16], -1), pages[1], layout, plan, 0.25, rotary=(cos, sin))
    assert within.shape == (1, 5, 32)
    assert torch.equal(within.view(5, 2, 16), before)
    assert torch.equal(pages[0], pages[1])


def test_tokens_without_a_block_are_refused():
    with pytest.raises(KernelInputError, match="block table"):
        plan_attention(np.array([BLOCK_TOKENS], np.int32), np.array([0, 1]), np.array([[0]]), 1)
    with pytest.raises(KernelInputError, match="block table"):
        plan_attention(np.array([BLOCK_TOKENS], np.int32), np.array([0, 1]), np.array([[0, -1]]), 1)


def test_arrays_that_do_not_fit_the_plan_are_refused():
    layout = PageLayout(kv_heads=1, key_size=8, value_size=8)
    plan = plan_attention(np.arange(2, dtype=np.int32), np.array([0, 2]), np.array([[0]]), 1)
    pages = np.zeros((1, layout.floats_per_page), np.float32)
    three = np.zeros((3, 1, 8), np.float32)
    with pytest.raises(KernelInputError, match="3 tokens met a plan of 2"):
        attend(three, three, three, pages, layout, plan, 1.0)
    with pytest.raises(KernelInputError, match="4 tokens met a plan of 2"):
        attend(np.zeros((2, 2, 8), np.float32), three[:2], three[:2], pages, layout, plan, 1.0)
    with pytest.raises(KernelInputError, match="3 tokens met a plan of 2"):
        attend(three[:2], three, three[:2], pages, layout, plan, 1.0)
