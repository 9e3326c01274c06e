"""One replica's requests: how fast they advance, who is admitted, who makes a token, ends, or is preempted; compiled.

Owns the changes of one replica's record and of its requests. It must never know other replicas, nor when anything happens
(`event_kernels`, which says what the model leaves out). Nothing here allocates: no reference counts are kept.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numba
import numpy as np

from .heap_kernels import push, sift_down, sift_up
from .state import DECODES, DONE, ENDED, EVENTS, FAILED, PREFILLS, WAITS, ClusterState

_njit: Any = numba.njit
_compiled = _njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
_inlined = _njit(inline="always", error_model="numpy", _nrt=False)

PAGE = 16.0
"""Tokens of a KV page (`runtime.interface.BLOCK_TOKENS`)."""
SAME_CYCLE = 1e-7
"""Cycles that are one moment: sums of floats differ by less."""
JOINS_AFTER = 1e-6
"""Cycles by which requests that join a step come after those that leave the one before."""
EXPECTED_MOST = np.array([0.0, 0.0, *(NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) for n in range(2, 65))])
"""The expected largest of so many standard normal values (Blom's approximation)."""
CLOCK_ULP = 1e-15
"""What a time is rounded by, as a share of it."""


@_compiled
def cycle_seconds(
    table: Any,
    context_s: float,
    stages: int,
    speed_sum: float,
    speed_worst: float,
    hop_s: float,
    hop_token_s: float,
    decoding: int,
    prefilling: int,
    context: float,
    squares: float,
    prefill_tokens: float,
    prefill_largest: float,
    prefill_square_s: float,
) -> float:
    """One cycle of a pipeline with so many requests: the way through all stages, or what the slowest stage takes for all steps.

    The requests are spread over as many steps as there are stages, and since steps do not overtake each other the slowest sets the
    pace: the one with the largest chunk of a prompt, or that whose rows happen to have the most context. ``squares`` is the sum of
    their squared contexts, of which this is the expected most.
    """
    running = decoding + prefilling
    if running == 0:
        return math.inf
    steps = min(running, stages)
    rows = float(-(-decoding // steps))
    attention = context_s * context / steps
    times = table[min(steps, len(table)) - 1]
    plain = _step(times, rows) + attention
    spread = math.sqrt(max(0.0, squares - context * context / max(decoding, 1)) / steps)
    tokens, mixed, full = rows, 0, plain
    slowest = plain + context_s * spread * EXPECTED_MOST[min(steps, len(EXPECTED_MOST) - 1)]
    if prefilling > 0:
        mixed = min(steps, prefilling)
        tokens = rows + max(prefill_largest, prefill_tokens / mixed)
        full = _step(times, tokens)
        if steps > 1:  # a step is crowded while others compute, which shorter ones do for less than its time
            crowd = ((mixed - 1) * full + (steps - mixed) * min(plain, full)) / ((steps - 1) * full)
            full = crowd * full + (1.0 - crowd) * _step(table[0], tokens)
        full += attention + prefill_square_s / mixed
        slowest = max(slowest, full)
    through = slowest * speed_sum + hop_s + hop_token_s * tokens
    mean = plain if mixed == 0 else _step(times, rows + prefill_tokens / mixed) + attention + prefill_square_s / mixed
    return max(through, (mixed * mean + (steps - mixed) * plain) * speed_worst)


@_inlined
def _step(table: Any, tokens: float) -> float:
    below = min(int(tokens), len(table) - 2)
    return table[below] + (tokens - below) * (table[below + 1] - table[below])


@_inlined
def kv_left(replica: Any) -> float:
    """Tokens of KV room beyond what is held, with half a page for each running request."""
    return replica.kv_tokens - replica.context - PAGE / 2 * (replica.decoding + replica.prefilling)


@_compiled
def advance(state: ClusterState, slot: int, now_s: float) -> None:
    """Bring the replica to ``now_s``, before something of it is changed."""
    replica = state.replicas[slot]
    if replica.rate > 0.0:
        passed_s = now_s - replica.at_s
        cycles = passed_s * replica.rate
        decoded = replica.context - replica.prefill_context
        replica.squares += cycles * (2 * decoded + cycles * replica.decoding)
        replica.cycle += cycles
        replica.context += cycles * replica.decoding
        replica.served_tokens += cycles * replica.decoding
        replica.busy_s += passed_s
    replica.at_s = now_s


@_inlined
def cycle_now(state: ClusterState, replica: Any, model: Any) -> float:
    """Seconds of a cycle of the replica as it is."""
    return cycle_seconds(
        state.tables[replica.model],
        model.context_s,
        replica.stages,
        replica.speed_sum,
        replica.speed_worst,
        replica.hop_s,
        replica.hop_token_s,
        replica.decoding,
        replica.prefilling,
        replica.context - replica.prefill_context,
        replica.squares,
        replica.prefill_tokens,
        math.sqrt(replica.prefill_fourths / replica.prefill_squares) if replica.prefill_squares > 0 else 0.0,
        replica.prefill_square_s,
    )


@_compiled
def admit(state: ClusterState, slot: int, request: int, now_s: float, join_wait: float) -> bool:
    """Admit the head of the replica's queue; False where there is no room. What can never fit fails, and is out of the way."""
    replica, record = state.replicas[slot], state.requests[request]
    model = state.models[replica.model]
    running = replica.decoding + replica.prefilling
    context = record.prompt + record.made
    if running >= replica.running_max:
        return False
    if replica.prefilling > 0 and _prefill_room(replica, model.step_tokens_max) < 1.0:
        return False
    if replica.prefill_short > 0:  # room for a prompt's tokens is for the oldest first
        return False
    if replica.context + context + PAGE * (running + 1) > replica.kv_tokens:
        if running > 0:
            return False
        take_head(state, slot)
        end(state, request, FAILED, now_s)
        return True
    take_head(state, slot)
    if math.isnan(record.begun_s):
        record.begun_s = now_s
    record.phase, record.context, record.left = PREFILLS, context, context
    replica.prefilling += 1
    replica.context += context
    replica.prefill_context += context
    if running == 0:
        replica.cycle = math.ceil(replica.cycle)
    wait = _wait_for_step(replica, running, join_wait) if join_wait > 0.0 and replica.rate > 0.0 else 0.0
    if wait > 0.0:  # the steps under way go on as they are until then
        record.chunk, record.short = 0.0, 0
        push(state.heap_due[slot], state.heap_id[slot], running, replica.cycle + wait + JOINS_AFTER, request)
    else:
        push(
            state.heap_due[slot], state.heap_id[slot], running, replica.cycle + _chunk(replica, record, model), request
        )
    return True


@_inlined
def _wait_for_step(replica: Any, running: int, join_wait: float) -> float:
    """Cycles until the next step begins, that a request gets into which is admitted now.

    Where all steps are under way they begin one after the other, evenly. Else one begins at once, unless the first stage is busy,
    and then after ``join_wait`` of its time.
    """
    if running == 0:
        return 0.0
    if running < replica.stages:
        return join_wait * running / (replica.stages * replica.stages)
    steps = replica.cycle * replica.stages
    return (math.ceil(steps - SAME_CYCLE) - steps) / replica.stages


@_inlined
def _prefill_room(replica: Any, step_tokens: int) -> float:
    """Prompt tokens that a cycle has room for beyond those that it has."""
    step = max(1.0, step_tokens - math.ceil(replica.decoding / replica.stages))
    return replica.stages * step - replica.prefill_tokens


@_inlined
def _chunk(replica: Any, record: Any, model: Any) -> float:
    """The request's next chunks, as many as are alike. Returns their number, and with it cycles."""
    step = max(1.0, model.step_tokens_max - math.ceil(replica.decoding / replica.stages))
    chunk = min(record.left, step, max(1.0, _prefill_room(replica, model.step_tokens_max)))
    chunks = math.floor(record.left / chunk) if chunk == step else 1.0
    record.chunk = chunk
    record.left -= chunk * chunks
    record.short = 1 if chunk < step and record.left > 0.5 else 0
    _count_chunk(replica, record, model, 1.0)
    return chunks


@_inlined
def _count_chunk(replica: Any, record: Any, model: Any, sign: float) -> None:
    """A chunk is in each cycle from now on, or no more.

    The largest of those of a cycle is taken to be sqrt(sum c^4 / sum c^2), which it is for one, and for any number of equals.
    """
    square = record.chunk * record.chunk
    replica.prefill_short += int(sign) * record.short
    replica.prefill_tokens += sign * record.chunk
    replica.prefill_squares += sign * square
    replica.prefill_fourths += sign * square * square
    replica.prefill_square_s += sign * model.square_s * record.context * record.chunk


@_compiled
def next_chunk(state: ClusterState, slot: int) -> None:
    """The request whose present chunks are done goes on with the next."""
    replica = state.replicas[slot]
    record, model = state.requests[state.heap_id[slot, 0]], state.models[replica.model]
    _count_chunk(replica, record, model, -1.0)
    state.heap_due[slot, 0] += _chunk(replica, record, model)
    sift_down(state.heap_due[slot], state.heap_id[slot], 0, replica.decoding + replica.prefilling)


@_compiled
def first_token(state: ClusterState, slot: int, now_s: float) -> None:
    """The request whose prompt is done makes its first token of this run, and decodes from now on."""
    replica, due = state.replicas[slot], state.heap_due[slot, 0]
    request = state.heap_id[slot, 0]
    record = state.requests[request]
    if math.isnan(record.first_s):
        record.first_s = now_s
    _leave_prefill(state, replica, record)
    replica.prompt_tokens += record.context
    replica.served_tokens += 1
    replica.decoding += 1
    replica.squares += float(record.context) ** 2
    record.phase, record.base = DECODES, due
    left = record.output - record.made - 1
    if left <= 0:
        finish(state, slot, now_s)
        return
    state.heap_due[slot, 0] = due + left
    sift_down(state.heap_due[slot], state.heap_id[slot], 0, replica.decoding + replica.prefilling)


@_compiled
def finish(state: ClusterState, slot: int, now_s: float) -> None:
    """The request with the least due cycle has made its last token."""
    due, request = state.heap_due[slot, 0], state.heap_id[slot, 0]
    record = state.requests[request]
    record.made += 1 + round(due - record.base)
    remove(state, slot, 0)
    end(state, request, DONE, now_s)


@_compiled
def fail_running(state: ClusterState, slot: int, now_s: float) -> None:
    """The only request that runs has filled all KV there is: it can never end here."""
    request = state.heap_id[slot, 0]
    if state.requests[request].phase == DECODES:
        _keep_tokens(state.replicas[slot], state.requests[request])
    remove(state, slot, 0)
    end(state, request, FAILED, now_s)


@_compiled
def preempt_youngest(state: ClusterState, slot: int) -> None:
    """The running request that arrived last loses its KV and goes to the head of the queue, with the tokens it made."""
    replica, ids = state.replicas[slot], state.heap_id[slot]
    place = 0
    for other in range(replica.decoding + replica.prefilling):
        if ids[other] > ids[place]:
            place = other
    request = ids[place]
    record = state.requests[request]
    if record.phase == DECODES:
        _keep_tokens(replica, record)
    remove(state, slot, place)
    record.phase = WAITS
    record.preempted += 1
    record.next = replica.waiting_head if replica.waiting > 0 else -1
    if replica.waiting == 0:
        replica.waiting_tail = request
    replica.waiting_head = request
    replica.waiting += 1
    replica.waiting_tokens += record.prompt + record.made
    state.counters[EVENTS] += 1


@_inlined
def _keep_tokens(replica: Any, record: Any) -> None:
    record.made += 1 + int(replica.cycle - record.base + SAME_CYCLE)


@_compiled
def remove(state: ClusterState, slot: int, place: int) -> None:
    """Take the request at this place of the heap out of the replica, with all that it holds."""
    replica = state.replicas[slot]
    due, ids = state.heap_due[slot], state.heap_id[slot]
    record = state.requests[ids[place]]
    if record.phase == PREFILLS:
        _leave_prefill(state, replica, record)
        replica.context -= record.context
    else:
        replica.decoding -= 1
        context = record.context + replica.cycle - record.base
        replica.context -= context
        replica.squares -= context * context
    last = replica.decoding + replica.prefilling
    due[place], ids[place] = due[last], ids[last]
    if place < last:
        sift_down(due, ids, place, last)
        sift_up(due, ids, place)
    if last == 0:
        replica.context = replica.squares = 0.0


@_inlined
def _leave_prefill(state: ClusterState, replica: Any, record: Any) -> None:
    replica.prefilling -= 1
    replica.prefill_context -= record.context
    _count_chunk(replica, record, state.models[replica.model], -1.0)
    if replica.prefilling == 0:  # sums of floats leave crumbs
        replica.prefill_context = replica.prefill_tokens = replica.prefill_square_s = 0.0
        replica.prefill_squares = replica.prefill_fourths = 0.0


@_compiled
def end(state: ClusterState, request: int, phase: int, now_s: float) -> None:
    """The request is over, for better or worse."""
    record = state.requests[request]
    record.phase, record.end_s = phase, now_s
    state.done[state.counters[ENDED]] = request
    state.counters[ENDED] += 1


@_compiled
def take_head(state: ClusterState, slot: int) -> int:
    """Take the oldest out of the replica's queue."""
    replica = state.replicas[slot]
    request = replica.waiting_head
    record = state.requests[request]
    replica.waiting_head = record.next
    record.next = -1
    replica.waiting -= 1
    replica.waiting_tokens -= record.prompt + record.made
    if replica.waiting == 0:
        replica.waiting_head = replica.waiting_tail = -1
        replica.waiting_tokens = 0.0
    return int(request)
