"""Attention over KV pages, straight from the pages: nothing is gathered, padded or masked by a matrix.

Owns the kernel (`attend`); the pages' layout and the step's plan are `paging`'s. Knows no model.

**Order of operations.** A token at position p reads positions ``max(0, p - window + 1) .. p`` in spans of 128 positions
that begin at multiples of 128; in each span scores, running maximum, exponentials and the weighted sum of values go in
ascending order of position (online softmax: Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022, Algorithm 1).
That order depends on p and the window alone, so a token's output has the same bits in a prefill chunk of any size, in a
decode step, beside any neighbours. Query heads that share a KV head, and neighbouring tokens of a row, share its loads.
"""

from __future__ import annotations

from .arrays import Array, KernelInputError, empty_beside, rows_of
from .attention_tile import ARGUMENTS, SPAN_BYTES, attend_tile, write_tile
from .elementwise import Rows, rotate_rows
from .lanes import LANES_BYTES
from .machine import FLOAT_BYTES
from .paging import BLOCK_TOKENS, AttentionPlan, PageLayout, plan_attention
from .threads import Workspace, pool

__all__ = ["BLOCK_TOKENS", "AttentionPlan", "PageLayout", "attend", "plan_attention"]

_NO_WINDOW = 1 << 40  # no context reaches it

_TILES_PER_THREAD = 4
"""With at least so many tiles a thread, a chunk takes all KV heads of its tile and so reads whole pages from memory: random
reads of 24 KiB gave 17 GB/s a thread, of 8 KiB 11. With fewer, each KV head is a chunk."""


def attend(
    q: Array,
    k: Array,
    v: Array,
    pages: Array,
    layout: PageLayout,
    plan: AttentionPlan,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
    out: Array | None = None,
    rotary: tuple[Array, Array] | None = None,
) -> Array:
    """Write the step's keys and values into their pages, then attend: ``out`` [T, H, Dv].

    Args:
        q: [T, H, D] or [(1,) T, H x D]; tokens may be apart (slices of one merged projection), here and below.
        k: [T, KVH, D] or [(1,) T, KVH x D].
        v: [T, KVH, Dv] or [(1,) T, KVH x Dv].
        pages: [blocks, floats_per_page] of this layer, written in place.
        layout: the pages' sizes.
        plan: this step's, made for H / KVH query heads a KV head.
        scale: factor on q . k.
        window: positions a token sees, itself included; None for all.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 for none.
        out: where to write, T rows of H x Dv; a new array if not given, of q's form.
        rotary: cos and sin, each [T, R] or [1, T, R], to rotate q and k by first, in place (see `elementwise.rotate`).

    Raises KernelInputError where shapes do not fit the layout and the plan.
    """
    tokens, kv_heads, key_size, value_size = plan.tokens, layout.kv_heads, layout.key_size, layout.value_size
    heads = plan.group * kv_heads
    q_rows = _token_rows(q, tokens, heads * key_size)
    k_rows = _token_rows(k, tokens, kv_heads * key_size)
    v_rows = _token_rows(v, tokens, kv_heads * value_size)
    if out is None:
        merged = len(q.shape) == 2 or q.shape[-1] != key_size or q.shape[-2] != heads
        out = empty_beside(q, (*q.shape[:-1], heads * value_size) if merged else (tokens, heads, value_size))
    out_rows = _token_rows(out, tokens, heads * value_size)
    if rotary is not None:
        rotate_rows(q_rows, heads, k_rows, kv_heads, key_size, *rotary)
    decodes = plan.tile_tokens == 1 and len(plan.tiles) >= _TILES_PER_THREAD * pool.threads
    heads_per_chunk = kv_heads if decodes else 1
    chunks = len(plan.tiles) * (1 if decodes else kv_heads)
    row_bytes = SPAN_BYTES + LANES_BYTES + FLOAT_BYTES * (layout.value_stride + 1 + key_size)
    scratch_bytes = -(-plan.tile_tokens * plan.group * heads_per_chunk * row_bytes // 128) * 128
    with pool.lock:
        ARGUMENTS.pack_into(
            _arguments.memory, 0, q_rows[0], q_rows[2], k_rows[0], k_rows[2], v_rows[0], v_rows[2],
            out_rows[0], out_rows[2], rows_of(pages, layout.floats_per_page)[0], *plan.addresses,
            plan.block_tables.shape[1] * 4, kv_heads, plan.group, key_size, value_size,
            _NO_WINDOW if window is None else window, scale, softcap, plan.one_tile_a_row,
            pool.workspace("attention", scratch_bytes * pool.threads).address, scratch_bytes, heads_per_chunk,
        )  # fmt: skip
        if not plan.one_tile_a_row:  # a tile reads what the tiles before it wrote
            pool.run(write_tile, _arguments.address, chunks)
        pool.run(attend_tile, _arguments.address, chunks)
    return out


_arguments = Workspace.of(ARGUMENTS.size)


def _token_rows(array: Array, tokens: int, width: int) -> Rows:
    """Where ``tokens`` rows of ``width`` floats lie."""
    rows = rows_of(array, width)
    if rows[1] != tokens:
        raise KernelInputError(f"an array of {rows[1]} tokens met a plan of {tokens}")
    return rows
