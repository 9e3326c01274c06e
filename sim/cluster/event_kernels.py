"""The macro-step core: arrivals, first tokens, ends, preemptions and pauses, each in a fraction of a microsecond.

A replica's requests advance in cycles. In one cycle of a pipeline every decoding request makes one token and every prefilling one
a chunk of its prompt; how long a cycle takes depends on who takes part (`cycle_seconds`), and is constant between two events.
So a request admitted at cycle c has its first token at cycle c + chunks and its end at c + chunks + tokens - 1, whatever the
clock will say then: a replica's heap is ordered by cycles and never re-ordered when its speed changes, and an event costs
O(log requests + log replicas) however many run. What this leaves out:

- all steps of one cycle take what the slowest takes, since they cannot overtake each other, and begin one after the other, evenly;
  a request that is admitted while others run waits for the next to begin (where ``join_wait`` is 0, for none: closed forms know no
  steps), and slows none before;
- context grows evenly within a cycle, prompts reserve their KV whole, and pages are counted as tokens and half a page a request;
- prompts fill the steps of a cycle as if these were one budget, the oldest first.

Held against the same pipeline step by step with `policies.batching` (tests/sim/test_cluster_steps.py) at 1 to 16 stages and
loads of 0.3, 0.7 and 1.5, on Azure's conversations and on a code assistant's long prompts: capacity within 5 %, median time per
token within 6 %, its 99th percentile at most 14 % too short, median time to the first token within 5 % (at 16 stages up to 27 %
too short), its 99th percentile within 10 %, and the time to the end within 7 % (10 %).

Admission and preemption are the scheduler's (`actors.scheduler_machine`): oldest first, a prompt whole and a page for each runner;
the youngest goes back to the queue when KV runs out, keeps its tokens and is prefilled again. LEAST_WORK is `policies.dispatch`
in a tournament instead of a sort; tests hold the two against each other.

Numba keeps the code between processes and sees changes of the file of a kernel only: who changes `heap_kernels`,
`replica_kernels` or a constant of `state` removes the caches (`__pycache__/*.nb?`). Nothing here allocates.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from .heap_kernels import least, put
from .replica_kernels import (
    CLOCK_ULP,
    SAME_CYCLE,
    admit,
    advance,
    cycle_now,
    cycle_seconds,
    end,
    fail_running,
    finish,
    first_token,
    kv_left,
    next_chunk,
    preempt_youngest,
    take_head,
)
from .state import (
    CENTRAL,
    DISPATCH,
    DRAINING,
    EMPTIED,
    ENDED,
    EVENTS,
    LEAST_WORK,
    NEXT,
    NOWHERE,
    PREFILLS,
    REFUSED,
    SERVING,
    WAITS,
    ClusterState,
)

__all__ = ["advance", "cycle_seconds", "dispatch_waiting", "evict", "refresh", "run", "touch"]

_njit: Any = numba.njit
_compiled = _njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
_inlined = _njit(inline="always", error_model="numpy", _nrt=False)

MACRO_CYCLES_MAX = 128.0
"""Cycles without an event after which a replica's speed is computed anew: contexts have grown by as many tokens."""


@_compiled
def run(state: ClusterState, until_s: float) -> float:
    """Simulate up to ``until_s``, or until a draining replica is empty or all requests have ended. Returns the time reached."""
    requests, counters = state.requests, state.counters
    while True:
        arrival_s = requests[counters[NEXT]].arrival_s if counters[NEXT] < len(requests) else np.inf
        event_s = state.next_s[1]
        if min(arrival_s, event_s) > until_s:
            return until_s
        counters[EVENTS] += 1
        now_s = min(arrival_s, event_s)
        if arrival_s <= event_s:
            request = counters[NEXT]
            counters[NEXT] += 1
            requests[request].phase = WAITS
            _dispatch(state, request, now_s)
        else:
            _replica_event(state, least(state.next_s), now_s)
        if counters[EMPTIED] > 0 or counters[ENDED] == len(requests):
            return float(now_s)


@_compiled
def touch(state: ClusterState, slot: int, now_s: float) -> None:
    """Bring a replica to ``now_s`` and let it go on as it is now: after its speed, room, phase or pause was changed."""
    _replica_event(state, slot, now_s)


@_compiled
def refresh(state: ClusterState, now_s: float) -> None:
    """Bring all replicas to ``now_s``, to be looked at."""
    for slot in range(len(state.replicas)):
        if state.replicas[slot].phase != NOWHERE:
            _replica_event(state, slot, now_s)


@_compiled
def evict(state: ClusterState, slot: int, now_s: float, waiting_too: bool) -> None:
    """All that runs at a replica loses its KV and waits at its head again; with ``waiting_too`` all waits at the model."""
    advance(state, slot, now_s)
    replica = state.replicas[slot]
    while replica.decoding + replica.prefilling > 0:
        preempt_youngest(state, slot)
    if waiting_too:
        model = state.models[replica.model]
        while replica.waiting > 0:
            request = take_head(state, slot)
            _insert_by_age(state, model, request)
    _settle(state, slot, now_s, 0.0)


@_compiled
def dispatch_waiting(state: ClusterState, number: int, now_s: float) -> None:
    """What waits for any replica of a model goes to those that serve now."""
    model = state.models[number]
    for _ in range(model.waiting):
        if state.work[number, 1] == np.inf:
            return
        request = model.head
        _unlink_model_head(state, model)
        _dispatch(state, request, now_s)


@_compiled
def _dispatch(state: ClusterState, request: int, now_s: float) -> None:
    """Give a request to the best replica, or let it wait for one."""
    requests, number = state.requests, state.requests[request].model
    tree, model = state.work[number], state.models[number]
    if tree[1] == np.inf or (state.counters[DISPATCH] == CENTRAL and model.waiting > 0):
        if state.counters[DISPATCH] == CENTRAL and model.waiting >= model.queue_max:
            end(state, request, REFUSED, now_s)
            return
        _append_to_model(state, model, request)
        return
    slot = least(tree) * len(state.models) + number
    replica = state.replicas[slot]
    if replica.waiting >= model.queue_max:
        end(state, request, REFUSED, now_s)
        return
    requests[request].replica = slot
    requests[request].next = -1
    if replica.waiting == 0:
        replica.waiting_head = request
    else:
        requests[replica.waiting_tail].next = request
    replica.waiting_tail = request
    replica.waiting += 1
    replica.waiting_tokens += requests[request].prompt + requests[request].made
    if replica.waiting == 1:  # behind others it changes nothing
        advance(state, slot, now_s)
        _settle(state, slot, now_s, state.join_wait[0])
        if state.counters[DISPATCH] == CENTRAL and replica.waiting > 0:  # room for a row, but not for its KV
            take_head(state, slot)
            _insert_by_age(state, model, request)
            _weigh(state, slot)
    else:
        _weigh(state, slot)


@_compiled
def _replica_event(state: ClusterState, slot: int, now_s: float) -> None:
    """Whatever of a replica is due: first tokens and ends, KV that ran out, a pause that is over."""
    advance(state, slot, now_s)
    replica = state.replicas[slot]
    same = max(SAME_CYCLE, CLOCK_ULP * now_s * replica.rate)
    running = replica.decoding + replica.prefilling
    while running > 0 and state.heap_due[slot, 0] <= replica.cycle + same:
        record = state.requests[state.heap_id[slot, 0]]
        if record.phase == PREFILLS and record.left > 0.5:
            next_chunk(state, slot)
        elif record.phase == PREFILLS:
            first_token(state, slot, now_s)
        else:
            finish(state, slot, now_s)
        running = replica.decoding + replica.prefilling
    while running > 0 and kv_left(replica) <= same * max(replica.decoding, 1):
        if running == 1:
            fail_running(state, slot, now_s)
        else:
            preempt_youngest(state, slot)
        running = replica.decoding + replica.prefilling
    _settle(state, slot, now_s, 0.0)


@_compiled
def _settle(state: ClusterState, slot: int, now_s: float, join_wait: float) -> None:
    """Admit what there is room for, and set the replica's speed and the time of its next event."""
    replica = state.replicas[slot]
    model = state.models[replica.model]
    serves = replica.phase in (SERVING, DRAINING)
    paused = not serves or replica.paused_until_s > now_s
    if not paused:
        while replica.waiting > 0 and admit(state, slot, replica.waiting_head, now_s, join_wait):
            pass
        if state.counters[DISPATCH] == CENTRAL and replica.phase == SERVING:
            while replica.waiting == 0 and model.waiting > 0 and _admit_central(state, slot, now_s, join_wait):
                pass
    running = replica.decoding + replica.prefilling
    replica.rate, next_s = 0.0, np.inf
    if paused and serves:
        next_s = replica.paused_until_s
    elif running > 0 and not paused:
        seconds = cycle_now(state, replica, model)
        replica.rate = 1.0 / seconds
        cycles = min(state.heap_due[slot, 0] - replica.cycle, MACRO_CYCLES_MAX)
        if replica.decoding > 0:
            cycles = min(cycles, kv_left(replica) / replica.decoding)
        next_s = now_s + max(cycles, 0.0) * seconds
    elif replica.phase == DRAINING and running + replica.waiting == 0:
        state.emptied[state.counters[EMPTIED]] = slot
        state.counters[EMPTIED] += 1
        replica.phase = NOWHERE
    put(state.next_s, slot, next_s)
    _weigh(state, slot)


@_compiled
def _weigh(state: ClusterState, slot: int) -> None:
    """Tell the dispatcher how much work the replica has; infinite where it takes none."""
    replica = state.replicas[slot]
    running = replica.decoding + replica.prefilling
    if replica.phase != SERVING:
        work = np.inf
    elif state.counters[DISPATCH] == LEAST_WORK:
        work = replica.context + replica.waiting_tokens
    elif state.counters[DISPATCH] == CENTRAL and (running >= replica.running_max or replica.waiting > 0):
        work = np.inf
    else:
        work = float(running + replica.waiting)
    put(state.work[replica.model], slot // len(state.models), work)


@_compiled
def _admit_central(state: ClusterState, slot: int, now_s: float, join_wait: float) -> bool:
    """Admit the head of the model's queue; False where there is no room, and it stays there."""
    replica = state.replicas[slot]
    model = state.models[replica.model]
    request = model.head
    _unlink_model_head(state, model)
    state.requests[request].replica = slot
    replica.waiting_head = replica.waiting_tail = request
    replica.waiting = 1
    replica.waiting_tokens += state.requests[request].prompt + state.requests[request].made
    if admit(state, slot, request, now_s, join_wait):
        return True
    take_head(state, slot)
    _insert_by_age(state, model, request)
    return False


@_compiled
def _append_to_model(state: ClusterState, model: Any, request: int) -> None:
    state.requests[request].next = -1
    state.requests[request].replica = -1
    if model.waiting == 0:
        model.head = request
    else:
        state.requests[model.tail].next = request
    model.tail = request
    model.waiting += 1


@_compiled
def _insert_by_age(state: ClusterState, model: Any, request: int) -> None:
    """Into the model's queue, in the order of arrival: after the few that are older."""
    requests = state.requests
    before = -1
    after = model.head if model.waiting > 0 else -1
    if model.waiting > 0 and model.tail < request:
        before, after = model.tail, -1
    while after >= 0 and after < request:
        before, after = after, requests[after].next
    requests[request].next, requests[request].replica, requests[request].phase = after, -1, WAITS
    if before < 0:
        model.head = request
    else:
        requests[before].next = request
    if after < 0:
        model.tail = request
    model.waiting += 1


@_inlined
def _unlink_model_head(state: ClusterState, model: Any) -> None:
    model.head = state.requests[model.head].next
    model.waiting -= 1
