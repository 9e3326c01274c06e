"""The checksum under which KV pages travel: both ends, and the modelled engine, compute it alike. Imports no torch."""

from __future__ import annotations

import xxhash


def page_checksum(data: memoryview) -> int:
    """64 bits of XXH3 over ``data``: as fast as memory where the bytes were just copied, and so lie in the cache."""
    return xxhash.xxh3_64_intdigest(data)
