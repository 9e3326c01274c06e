"""The simulated cluster's state as the kernels see it: records of requests and replicas, heaps and trees in flat arrays.

Owns the layout and its growth. Knows no rule of movement (`event_kernels`) and no device: of a replica's devices only what they
come to stands here, as speeds, hops and KV room. A field of all records is a view, ``state.replicas["context"]``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Indices = NDArray[np.int32]
Records = NDArray[Any]

WAITS, PREFILLS, DECODES, DONE, REFUSED, FAILED, ABSENT = range(7)
"""Phases of a request: not yet arrived is ABSENT, REFUSED found a full queue, FAILED can never fit its replica's KV room."""
NOWHERE, STARTING, SERVING, DRAINING = range(4)
"""Phases of a replica's slot."""
LEAST_WORK, SHORTEST_QUEUE, CENTRAL = range(3)
"""Ways to dispatch."""

REQUEST = np.dtype(
    [
        ("arrival_s", np.float64),
        ("begun_s", np.float64),  # first step of the first time that it ran; NaN before
        ("first_s", np.float64),  # first token; NaN before
        ("end_s", np.float64),
        ("base", np.float64),  # its replica's cycle when its present run's first token came
        ("chunk", np.float64),  # prompt tokens that it adds to each cycle while it prefills
        ("left", np.float64),  # prompt tokens beyond its present chunks
        ("prompt", np.int32),
        ("output", np.int32),
        ("made", np.int32),  # tokens made in earlier runs, which a preemption keeps
        ("context", np.int32),  # tokens whose KV it held once its present run was admitted
        ("next", np.int32),  # the one behind it in a queue, -1 at the end
        ("replica", np.int32),  # slot where it is or was, -1 while at none
        ("preempted", np.int32),
        ("model", np.int16),
        ("phase", np.int16),
        ("short", np.int16),  # 1 while its chunk is less than a step holds and than it lacks: others left no room
    ],
    align=True,
)
REPLICA = np.dtype(
    [
        ("at_s", np.float64),  # until when the rest is true
        ("cycle", np.float64),  # cycles made
        ("rate", np.float64),  # cycles per second from at_s on
        ("paused_until_s", np.float64),
        ("context", np.float64),  # tokens of KV held or reserved
        ("squares", np.float64),  # the sum of the squared contexts of those that decode
        ("prefill_context", np.float64),  # those of them that belong to prompts not yet prefilled
        ("prefill_tokens", np.float64),  # prompt tokens of one cycle
        ("prefill_squares", np.float64),  # the sum of the squares of their chunks, and of the fourth powers
        ("prefill_fourths", np.float64),
        ("prefill_square_s", np.float64),  # what their attention adds to one cycle
        ("kv_tokens", np.float64),
        ("speed_sum", np.float64),  # a step's time through all stages, in whole-model times at speed 1
        ("speed_worst", np.float64),  # the slowest stage's
        ("hop_s", np.float64),
        ("hop_token_s", np.float64),
        ("waiting_tokens", np.float64),
        ("served_tokens", np.float64),
        ("prompt_tokens", np.float64),
        ("busy_s", np.float64),
        ("model", np.int64),
        ("phase", np.int64),
        ("stages", np.int64),
        ("running_max", np.int64),
        ("decoding", np.int64),
        ("prefilling", np.int64),
        ("prefill_short", np.int64),  # those of them whose chunk is short
        ("waiting_head", np.int64),
        ("waiting_tail", np.int64),
        ("waiting", np.int64),
    ],
    align=True,
)
MODEL = np.dtype(
    [
        ("context_s", np.float64),
        ("square_s", np.float64),
        ("step_tokens_max", np.int64),
        ("queue_max", np.int64),
        ("head", np.int64),  # requests that wait for any replica
        ("tail", np.int64),
        ("waiting", np.int64),
    ],
    align=True,
)
NEXT, ENDED, EVENTS, EMPTIED, DISPATCH = range(5)
"""Counters: the next request to arrive, requests ended, events, draining replicas that became empty, and the way to dispatch."""


class ClusterState(NamedTuple):
    """Everything. R slots of replicas, slot ``place * models + model``; C running requests each at most.

    ``tables`` [M, K, T+1]: `StepTimes.table` of each model. ``heap_due``, ``heap_id`` [R, C]: each replica's running requests, the
    one with the next event first. ``next_s`` [2 P]: a tournament of the times of each slot's next event, slot r at P + r.
    ``work`` [M, 2 W]: one of the work at each of a model's replicas, infinite where it takes none. ``done``: requests in the order
    in which they ended. ``emptied`` [R]: draining slots that became empty. ``counters``, ``join_wait`` [1]: see `event_kernels`.
    """

    requests: Records
    replicas: Records
    models: Records
    tables: NDArray[np.float64]
    heap_due: Numbers
    heap_id: Indices
    next_s: Numbers
    work: NDArray[np.float64]
    done: Indices
    emptied: Integers
    counters: Integers
    join_wait: Numbers

    @property
    def events(self) -> int:
        """Arrivals, first tokens, ends, preemptions and pauses that were simulated so far."""
        return int(self.counters[EVENTS])

    @property
    def ended(self) -> Indices:
        """The requests that ended or were refused, in that order."""
        return self.done[: int(self.counters[ENDED])]

    @property
    def arrived(self) -> int:
        """How many requests have arrived: those with lower numbers."""
        return int(self.counters[NEXT])


def new_state(
    requests: Records, models: Records, tables: NDArray[np.float64], running_max: int, dispatch: int, join_wait: float
) -> ClusterState:
    """A state without replicas, one place for each model."""
    empty = ClusterState(
        requests=requests,
        replicas=np.zeros(0, REPLICA),
        models=models,
        tables=tables,
        heap_due=np.zeros((0, running_max)),
        heap_id=np.zeros((0, running_max), np.int32),
        next_s=np.zeros(0),
        work=np.zeros((len(models), 0)),
        done=np.zeros(len(requests), np.int32),
        emptied=np.zeros(0, np.int64),
        counters=np.array([0, 0, 0, 0, dispatch], np.int64),
        join_wait=np.array([join_wait]),
    )
    return with_room(empty, 1, running_max)


def with_room(state: ClusterState, places: int, running_max: int) -> ClusterState:
    """The same state with at least so many places for replicas of each model, and so many running requests in each."""
    models = len(state.models)
    wide = 1 << max(0, places - 1).bit_length()
    slots, before = wide * models, len(state.replicas)
    replicas = np.zeros(slots, REPLICA)
    replicas["waiting_head"] = replicas["waiting_tail"] = -1
    replicas["model"] = np.arange(slots) % models
    replicas[:before] = state.replicas
    due, held = np.zeros((slots, running_max)), np.zeros((slots, running_max), np.int32)
    known = min(running_max, state.heap_due.shape[1])
    due[:before, :known], held[:before, :known] = state.heap_due[:, :known], state.heap_id[:, :known]
    times = np.full(slots, np.inf)
    times[:before] = state.next_s[len(state.next_s) // 2 :][:before]
    work = np.full((models, wide), np.inf)
    work[:, : state.work.shape[1] // 2] = state.work[:, state.work.shape[1] // 2 :]
    return state._replace(
        replicas=replicas,
        heap_due=due,
        heap_id=held,
        next_s=_tournament(times),
        work=np.array([_tournament(each) for each in work]),
        emptied=np.zeros(slots, np.int64),
    )


def _tournament(leaves: Numbers) -> Numbers:
    """A complete binary tree in an array: leaf i at P + i, and at 1 the least of all."""
    wide = 1 << max(0, len(leaves) - 1).bit_length()
    tree = np.full(2 * wide, np.inf)
    tree[wide : wide + len(leaves)] = leaves
    for node in range(wide - 1, 0, -1):
        tree[node] = min(tree[2 * node], tree[2 * node + 1])
    return tree
