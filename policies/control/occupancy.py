"""How many requests a pipeline will hold when new capacity could serve, and how many each shape has room for.

Owns the forecast of requests in the system over one start-up, and the room of a shape: places in full steps, or KV, if that is
less. Requests live long (tens of seconds) beside a start-up (seconds), so what has to be provided for is not the worst that
ever came, but what is here, plus what comes before more capacity could help:

    N(h) = N e^(-h/L) + r L (1 - e^(-h/L)),    Var N(h) = I(h) r L (1 - e^(-2h/L)) / 2

the heavy-traffic limit of a queue with a server for everyone (G/GI/inf as an Ornstein-Uhlenbeck process: mean life L, rate r, index
of dispersion I at the horizon h). A falling number is not run ahead of: what is here stays the least. It must never know when a
change is allowed, nor what a device costs.
"""

from __future__ import annotations

from math import exp, sqrt

from .granularity import Shape
from .observation import Observation

SPREAD = 1.0
"""Standard deviations beyond the mean that are provided for; waiting within the deadline is there for the rest. Calibrated on
simulated Gamma loads: the most goodput per GPU with 98 % in time on each; 3 has 2 to 4 % less, and
99.5 % in time."""


def expected_requests(observation: Observation, present: Shape, horizon_s: float) -> float | None:
    """Requests in the system ``horizon_s`` from now, with `SPREAD`; None where it is not known how many there is room for."""
    if not observation.rows:
        return None
    here = float(observation.queue + min(observation.running, observation.rows))
    life_s = observation.service_s or observation.tokens_per_request * present.tpot_s
    if life_s <= 0:
        return here
    left = exp(-horizon_s / life_s)
    at_rest = observation.rate_per_s * life_s
    mean = max(here, here * left + at_rest * (1 - left))
    usual = max(observation.rate_per_s, observation.arrivals / max(observation.observed_s, 1.0)) * life_s
    dispersion = observation.idc_at(horizon_s) or 1.0
    return mean + SPREAD * sqrt(max(dispersion, 0.0) * usual * (1 - left * left) / 2)


def room_for(observation: Observation, present: Shape, shape: Shape) -> float:
    """How many requests like those that run now ``shape`` holds at once, and serves no slower than the present shape when full.

    Rows grow with its devices, as full steps do. Room alone is not enough: a deep shape holds more for its devices than it serves.
    """
    room = _room(observation, present, shape)
    if shape.same_as(present):
        return room
    served = shape.capacity_tokens_per_s / present.capacity_tokens_per_s
    return min(room, _room(observation, present, present) * served)


def _room(observation: Observation, present: Shape, shape: Shape) -> float:
    rows = observation.rows / present.devices * shape.devices
    held = observation.kv_used_share * present.kv_tokens
    if not (observation.running and held and shape.kv_tokens):
        return rows
    return min(rows, shape.kv_tokens * observation.running / held)


def asked_by_occupancy(observation: Observation, present: Shape, horizon_s: float) -> float | None:
    """The capacity that holds those requests, tokens/s: the present one's times how full it will be; None as above."""
    coming = expected_requests(observation, present, horizon_s)
    if coming is None:
        return None
    return present.capacity_tokens_per_s * coming / room_for(observation, present, present)
