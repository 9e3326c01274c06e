"""The CPU kernels against torch's own and against what the machine allows, interleaved in one run.

    python -m flexpipe.bench.kernels [--threads 1 2] [--rows 1 8 32] [--rounds 5] [--attention] [--linear] [--step]

Shapes are SmolLM2-135M's. Every layer's weights are distinct, so that they come from memory and not from a cache, as in a
real step. Contenders take turns within each round and the best round counts: on a shared machine ratios of one run mean
something, absolute times less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from ..runtime.kernels.attention import PageLayout, attend, plan_attention
from ..runtime.kernels.elementwise import rms_norm
from ..runtime.kernels.linear import PackedLinear, pack_gated, pack_linear
from ..runtime.kernels.memory import allocate
from ..runtime.kernels.threads import set_threads

SHAPES = {"qkv": (576, 960), "o": (576, 576), "gate_up": (576, 3072), "down": (1536, 576), "head": (576, 49152)}
LAYERS = 30
HEADS, KV_HEADS, HEAD_SIZE = 9, 3, 64
CACHE_BYTES = 128 << 20  # of distinct weights, so that none is still in a cache when its turn comes again

SETTLE_S = 0.02
"""OpenMP's threads spin for some milliseconds after a region; on two cores that halved whoever came next."""

Contenders = dict[str, Callable[[], object]]


def best_of(rounds: int, contenders: Contenders) -> dict[str, float]:
    """Seconds of each contender's best round; they take turns, once the threads of the one before have gone to sleep."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, run in contenders.items():
            time.sleep(SETTLE_S)
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def _use_threads(threads: int) -> None:
    set_threads(threads)
    torch.set_num_threads(threads)


def roofline(rounds: int) -> tuple[float, float]:
    """(bytes/s read from memory, multiply-adds/s in torch's best matrix product), each at its best."""
    memory = torch.ones(CACHE_BYTES)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = best_of(rounds, {"read": memory.sum, "gemm": lambda: a @ b})
    return memory.nbytes / best["read"], 1024**3 / best["gemm"]


def _linear_contenders(inputs: int, outputs: int, rows: int) -> tuple[Contenders, int]:
    copies = max(1, min(LAYERS, CACHE_BYTES // (inputs * outputs * 4)))
    weights = [torch.randn(outputs, inputs) for _ in range(copies)]
    packed = [pack_linear(weight) for weight in weights]
    onednn = [torch.ops.mkldnn._reorder_linear_weight(weight, 8) for weight in weights]  # noqa: SLF001
    x, out = torch.randn(rows, inputs), torch.empty(rows, outputs)

    def through_onednn() -> None:
        for weight in onednn:
            torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # noqa: SLF001

    contenders: Contenders = {
        "ours": lambda: [layer(x, out) for layer in packed],
        "F.linear": lambda: [torch.nn.functional.linear(x, weight) for weight in weights],
        "oneDNN": through_onednn,
    }
    return contenders, copies


def bench_linear(threads: int, rows_list: Sequence[int], rounds: int) -> None:
    """A line for each shape and number of rows."""
    _use_threads(threads)
    bytes_per_second, multiply_adds = roofline(rounds)
    print(f"threads {threads}: {bytes_per_second / 1e9:.1f} GB/s read, {2 * multiply_adds / 1e9:.0f} GFLOP/s")
    for name, (inputs, outputs) in SHAPES.items():
        for rows in rows_list:
            contenders, copies = _linear_contenders(inputs, outputs, rows)
            best = {key: value / copies for key, value in best_of(rounds, contenders).items()}
            limit = max(inputs * outputs * 4 / bytes_per_second, rows * inputs * outputs / multiply_adds)
            print(
                f"  {name:8} M {rows:4} {best['ours'] * 1e6:9.0f} us  of limit {limit / best['ours']:4.0%}"
                f"  F.linear {best['F.linear'] / best['ours']:5.2f}x  oneDNN {best['oneDNN'] / best['ours']:5.2f}x",
                flush=True,
            )


class _Layer:
    """One decoder layer's packed weights and pages."""

    def __init__(self, blocks: int, layout: PageLayout) -> None:
        self.norm = torch.ones(576)
        self.qkv = pack_linear(torch.randn(960, 576) * 0.04)
        self.o = pack_linear(torch.randn(576, 576) * 0.04)
        self.gate_up = pack_gated(torch.randn(1536, 576) * 0.04, torch.randn(1536, 576) * 0.04)
        self.down = pack_linear(torch.randn(576, 1536) * 0.03)
        self.pages = torch.from_numpy(allocate(blocks, layout.floats_per_page)).normal_()


def bench_step(threads: int, batches: Sequence[int], context: int, rounds: int) -> None:
    """A whole decode step's kernels at a context, by kind: what an engine made of them cannot beat."""
    _use_threads(threads)
    layout = PageLayout(KV_HEADS, HEAD_SIZE, HEAD_SIZE)
    width = context // 16
    layers = [_Layer(max(batches) * width, layout) for _ in range(LAYERS)]
    head = pack_linear(torch.randn(49152, 576) * 0.04)
    for batch in batches:
        seconds = min((_step(layers, head, layout, batch, width) for _ in range(rounds)), key=lambda s: sum(s.values()))
        parts = "  ".join(f"{name} {value * 1e3:.2f}" for name, value in seconds.items())
        total = sum(seconds.values())
        print(f"threads {threads} step B {batch:3} {total * 1e3:7.2f} ms = {batch / total:5.0f} tok/s  [ms: {parts}]")


def _step(layers: list[_Layer], head: PackedLinear, layout: PageLayout, batch: int, width: int) -> dict[str, float]:
    """Seconds of one decode step by kind of kernel."""
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def done(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[name] = seconds.get(name, 0.0) + now - clock
        clock = now

    x, angle = torch.randn(batch, 576), torch.randn(batch, HEAD_SIZE)
    tables = np.random.default_rng(0).permutation(batch * width).reshape(batch, width).astype(np.int32)
    positions, starts = np.full(batch, width * 16 - 1, np.int32), np.arange(batch + 1, dtype=np.int32)
    done("inputs")
    plan = plan_attention(positions, starts, tables, HEADS // KV_HEADS)
    seconds.clear()
    done("plan")
    for layer in layers:
        y = rms_norm(x, layer.norm, 1e-5)
        done("norm")
        qkv = layer.qkv(y)
        done("qkv")
        q, k, v = qkv.split([HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE], 1)
        mixed = attend(q, k, v, layer.pages, layout, plan, HEAD_SIZE**-0.5, rotary=(angle, angle))
        done("attend")
        layer.o(mixed, out=x, residual=x)
        done("o")
        y = rms_norm(x, layer.norm, 1e-5)
        done("norm")
        y = layer.gate_up(y)
        done("gate_up")
        layer.down(y, out=x, residual=x)
        done("down")
    head(x)
    done("head")
    return seconds


_sdpa: Callable[..., object] = torch.nn.functional.scaled_dot_product_attention


def bench_prefill(threads: int, tokens_list: Sequence[int], rounds: int) -> None:
    """Attention of one prompt in one chunk."""
    _use_threads(threads)
    layout = PageLayout(KV_HEADS, HEAD_SIZE, HEAD_SIZE)
    for tokens in tokens_list:
        pages = torch.zeros(tokens // 16, layout.floats_per_page)
        tables = np.arange(tokens // 16, dtype=np.int32)[None]
        plan = plan_attention(np.arange(tokens, dtype=np.int32), np.array([0, tokens]), tables, HEADS // KV_HEADS)
        q, k, v = (torch.randn(tokens, heads, HEAD_SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS))
        wide = [part.transpose(0, 1)[None].contiguous() for part in (q, k, v)]
        contenders: Contenders = {
            "ours": lambda: attend(q, k, v, pages, layout, plan, 0.125),  # noqa: B023 - run in this turn
            "sdpa": partial(_sdpa, *wide, is_causal=True, enable_gqa=True),
        }
        best = best_of(rounds, contenders)
        rate = tokens * tokens * HEADS * HEAD_SIZE * 2 / best["ours"] / 1e9
        print(
            f"threads {threads} prefill {tokens:5} {best['ours'] * 1e6:8.0f} us {rate:5.0f} GFLOP/s"
            f"  torch SDPA {best['sdpa'] / best['ours']:5.2f}x"
        )


def main() -> None:
    """Parse the command line and print the tables asked for (all by default)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 128, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["linear", "step", "prefill"])
    arguments = parser.parse_args()
    with torch.inference_mode():
        for threads in arguments.threads:
            if arguments.only in {None, "linear"}:
                bench_linear(threads, arguments.rows, arguments.rounds)
            if arguments.only in {None, "step"}:
                bench_step(threads, arguments.batches, arguments.context, arguments.rounds)
            if arguments.only in {None, "prefill"}:
                bench_prefill(threads, [128, 512, 1024], arguments.rounds)


if __name__ == "__main__":
    main()
