"""Our choice of granularity: a token's time, the wait that a burst would cost, the devices held and the fragments made.

    J(S) = TPOT(S) / TPOT_least  +  W(S) / wait_s  +  w_f dF(S)  +  w_d devices(S)
    W(S) = sup_t { D(t) - C_have min(t, T_up) - C_S (t - T_up)+ } / C_S

D is the measured demand curve (`control.demand`), C the capacity, T_up the start-up time: until the new shape serves, the
present one does. So depth pays exactly where it really pays: through start-up (S stages load 1/S of the bytes each, in
parallel), through KV room, and because small stages fit into fragments; not through a queueing formula that takes stages in
series for servers in parallel. The replicas are one pool of work. Relative to the least TPOT, so that the weights mean the
same for every model. It must never know when a change is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .demand import demand
from .granularity import PLAUSIBLE_MIN, Score, Shape
from .observation import Observation
from .occupancy import expected_requests, room_for

COST_SHARE_MIN = 0.01


@dataclass(frozen=True, slots=True)
class FluidWeights:
    """What is worth a whole token time: ``wait_s`` of waiting, 1 / ``per_device`` devices, fragments by 1 / ``fragmentation``.

    A device must cost something, or more would always be better: holding less than the peak is the point of the exercise.
    """

    wait_s: float = 5.0
    per_device: float = 0.25
    fragmentation: float = 1.0


class FluidPolicy:
    """See the module's docstring. ``switch_cost`` of a score is the token time lost while streams stand still."""

    name = "fluid"

    def __init__(self, weights: FluidWeights | None = None) -> None:
        self._weights = weights or FluidWeights()

    def scores(
        self, observation: Observation, present: Shape, candidates: Sequence[Shape], *, forecast: bool
    ) -> tuple[Score, ...]:
        """One score per candidate, in order; terms are the summands of J and what they were made of."""
        if not candidates:
            return ()
        tpot = np.array([shape.tpot_s for shape in candidates])
        relative = tpot / tpot.min()
        capacity = _capacities(observation, present, candidates)
        startup = _startups(observation, present, candidates)
        have = float(_capacities(observation, present, [present])[0])
        wait = _waits_for_room(observation, present, candidates, capacity, startup)
        if wait is None:
            wait = _waits(observation, have, capacity, startup, forecast=forecast)
        weights = self._weights
        fragments = weights.fragmentation * np.array([shape.fragmentation_share for shape in candidates])
        devices = weights.per_device * np.array([float(shape.devices) for shape in candidates])
        # A shape that mends fragments costs less than its token time, but never nothing.
        cost = np.maximum(relative + wait / weights.wait_s + fragments + devices, relative * COST_SHARE_MIN)
        columns = [column.tolist() for column in (relative, wait, fragments, devices, cost, startup, capacity)]
        return tuple(_score(shape, *row) for shape, row in zip(candidates, zip(*columns, strict=True), strict=True))


def _score(
    shape: Shape,
    relative: float,
    wait_s: float,
    fragments: float,
    devices: float,
    cost: float,
    startup_s: float,
    capacity: float,
) -> Score:
    return Score(
        shape,
        cost,
        relative * shape.switch_s,
        (
            ("relative_tpot", relative),
            ("wait_s", wait_s),
            ("fragmentation", fragments),
            ("devices", devices),
            ("startup_s", startup_s),
            ("capacity_tokens_per_s", capacity),
        ),
    )


def _waits_for_room(
    observation: Observation,
    present: Shape,
    candidates: Sequence[Shape],
    capacity: NDArray[np.float64],
    startup: NDArray[np.float64],
) -> NDArray[np.float64] | None:
    """[candidates] seconds until the requests beyond each one's room are let in; None where the room is not told.

    All are held against the same moment: when the slowest to start would serve.
    """
    coming = expected_requests(observation, present, float(startup.max()))
    if coming is None:
        return None
    rooms = np.array([room_for(observation, present, shape) for shape in candidates])
    waits: NDArray[np.float64] = np.maximum(coming - rooms, 0.0) * observation.tokens_per_request / capacity
    return waits


def _waits(
    observation: Observation,
    have: float,
    capacity: NDArray[np.float64],
    startup: NDArray[np.float64],
    *,
    forecast: bool,
) -> NDArray[np.float64]:
    """[candidates] seconds until the worst backlog of the demand curve is served."""
    curve = demand(observation, forecast=forecast)
    # D is straight between its points and the service curve has its corner at the start-up: the supremum is at one of them.
    n = len(capacity)
    windows = np.hstack([np.broadcast_to(curve.windows_s, (n, len(curve.windows_s))), startup[:, None]])
    corners = np.interp(startup, curve.windows_s, curve.tokens)
    tokens = np.hstack([np.broadcast_to(curve.tokens, (n, len(curve.tokens))), corners[:, None]])
    late = np.maximum(windows - startup[:, None], 0.0)
    served = have * (windows - late) + capacity[:, None] * late
    backlog = np.maximum((tokens - served).max(axis=1), 0.0)
    waits: NDArray[np.float64] = backlog / capacity
    return waits


def _startups(observation: Observation, present: Shape, candidates: Sequence[Shape]) -> NDArray[np.float64]:
    """[candidates] seconds until each serves: as planned, but no sooner than anything ever started; 0 for the present."""
    least = observation.startup_least_s or 0.0
    return np.array([0.0 if shape.same_as(present) else max(shape.startup_s, least) for shape in candidates])


def _capacities(observation: Observation, present: Shape, candidates: Sequence[Shape]) -> NDArray[np.float64]:
    """[candidates] tokens/s that each can serve: its own capacity, or what its KV room lets in (Little's law), if less.

    A request occupies the KV tokens that one running now does, for as long as it takes at the candidate's token time.
    """
    capacity = np.array([shape.capacity_tokens_per_s for shape in candidates])
    if not (observation.service_s and observation.running and observation.kv_used_share and present.kv_tokens):
        return capacity
    kv_per_request = observation.kv_used_share * present.kv_tokens / observation.running
    for number, shape in enumerate(candidates):
        if shape.kv_tokens:
            residence_s = observation.service_s * shape.tpot_s / present.tpot_s
            occupied = kv_per_request * residence_s
            let_in = shape.kv_tokens * observation.tokens_per_request / occupied if occupied > 0 else 0.0
            capacity[number] = max(PLAUSIBLE_MIN, min(capacity[number], let_in)) if let_in > 0 else capacity[number]
    return capacity
