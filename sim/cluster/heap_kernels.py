"""Heaps and tournaments in flat arrays, compiled: what is due first of a replica's requests, and of all replicas.

Owns the two structures. Knows nothing of what their values mean. Import it late: numba takes a moment.
"""

from __future__ import annotations

from typing import Any

import numba

_njit: Any = numba.njit
_compiled = _njit(cache=True, nogil=True, error_model="numpy", _nrt=False)


@_compiled
def push(due: Any, ids: Any, size: int, at: float, request: int) -> None:
    """One more in a heap of ``size``, due ``at``."""
    due[size], ids[size] = at, request
    sift_up(due, ids, size)


@_compiled
def sift_up(due: Any, ids: Any, place: int) -> None:
    """Move what stands at ``place`` to where nothing above it is due later."""
    at, request = due[place], ids[place]
    while place > 0 and due[(place - 1) >> 1] > at:
        due[place], ids[place] = due[(place - 1) >> 1], ids[(place - 1) >> 1]
        place = (place - 1) >> 1
    due[place], ids[place] = at, request


@_compiled
def sift_down(due: Any, ids: Any, place: int, size: int) -> None:
    """Move what stands at ``place`` to where nothing below it is due sooner."""
    at, request = due[place], ids[place]
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and due[child + 1] < due[child]:
            child += 1
        if due[child] >= at:
            break
        due[place], ids[place] = due[child], ids[child]
        place = child
    due[place], ids[place] = at, request


@_compiled
def put(tree: Any, leaf: int, value: float) -> None:
    """A new value at a leaf of a tournament."""
    node = len(tree) // 2 + leaf
    tree[node] = value
    while node > 1:
        node >>= 1
        least = min(tree[2 * node], tree[2 * node + 1])
        if tree[node] == least:
            return
        tree[node] = least


@_compiled
def least(tree: Any) -> int:
    """The first leaf with the least value."""
    node, wide = 1, len(tree) // 2
    while node < wide:
        node = 2 * node if tree[2 * node] == tree[node] else 2 * node + 1
    return node - wide
