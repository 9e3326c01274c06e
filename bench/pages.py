"""How fast KV pages are gathered and scattered, with and without their checksum, as a share of memcpy in the same run.

    python -m flexpipe.bench.pages [--page-bytes 24576] [--rounds 30]

Contenders take turns and the best round counts; memcpy's source and target lie on huge pages, too. Block lists are scattered, in
runs of eight, and in order, as a pool hands them out when it is old and when it is new.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..runtime.kv_pages import KvPages
from ..runtime.mapped_memory import AddressSpace
from ..runtime.page_checksum import page_checksum
from ..runtime.program import AttentionLayer

POOL_BLOCKS = 8192
RUN_BLOCKS = 8
CHUNK_BYTES = (1 << 20, 4 << 20, 16 << 20)
"""What a transfer sends at a time."""

Blocks = np.ndarray[Any, np.dtype[np.int32]]


def block_lists(count: int) -> dict[str, Blocks]:
    """``count`` blocks of the pool, in three orders."""
    random = np.random.default_rng(0)
    starts = random.permutation(POOL_BLOCKS // RUN_BLOCKS)[: -(-count // RUN_BLOCKS), None] * RUN_BLOCKS
    return {
        "scattered": random.permutation(POOL_BLOCKS)[:count].astype(np.int32),
        "runs": (starts + np.arange(RUN_BLOCKS)).reshape(-1)[:count].astype(np.int32),
        "in order": np.arange(count, dtype=np.int32),
    }


def best_of(rounds: int, contenders: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each contender's best round."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def bench(page_bytes: int, rounds: int) -> None:
    """A line for each size of chunk and order of blocks."""
    layer = AttentionLayer(0, kv_heads=1, key_dim=1, value_dim=1, query_heads=1)
    pages = KvPages([layer], lambda _: page_bytes // 4, torch.float32, torch.device("cpu"))
    pages.add([pages.make(0)])
    pages.reserve([0], POOL_BLOCKS)
    pages.layers[0].pages.fill_(1.0)
    for size in CHUNK_BYTES:
        count = size // page_bytes
        source, target = (AddressSpace(count * page_bytes).open(count * page_bytes) for _ in range(2))
        source[:] = target[:] = 1
        for order, blocks in block_lists(count).items():
            best = best_of(rounds, _contenders(pages, blocks, source, target))
            shares = "  ".join(f"{name} {best['memcpy'] / best[name]:4.0%}" for name in best if name != "memcpy")
            print(f"{count:5d} pages {order:9}  memcpy {source.nbytes / best['memcpy'] / 1e9:5.1f} GB/s  {shares}")


def _contenders(pages: KvPages, blocks: Blocks, source: Any, target: Any) -> dict[str, Callable[[], object]]:
    def gather_and_sum() -> None:
        pages.gather(0, blocks, target.data)
        page_checksum(target.data)

    def check_and_scatter() -> None:
        page_checksum(source.data)
        pages.scatter(0, blocks, source.data)

    return {
        "memcpy": lambda: np.copyto(target, source),
        "gather": lambda: pages.gather(0, blocks, target.data),
        "scatter": lambda: pages.scatter(0, blocks, source.data),
        "gather+checksum": gather_and_sum,
        "checksum+scatter": check_and_scatter,
    }


def main() -> int:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page-bytes", type=int, default=24576)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    bench(options.page_bytes, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
