"""What clients may send to /flexpipe/v1/refactor, and the check of every field.

Owns field names' errors and the bounds of their values. It must never know of HTTP or of the pipeline: whether a plan fits the
model and the devices is for whoever refactors to say.
"""

from __future__ import annotations

import msgspec

from ..refactor import RefactorRequest
from ..route import STRATEGIES
from .openai_errors import invalid_parameter
from .request_json import decode_json

PLAN_CHARACTERS_MAX = 4096
"""Length of `partition` and `move`: thousands of stages fit."""
SHAPES = ("stages", "partition", "move", "replicas")
"""The fields of which a request gives exactly one."""

_DECODER = msgspec.json.Decoder(RefactorRequest)


def decode_refactor(body: bytes) -> RefactorRequest:
    """Read and check the body. Raises `ApiError` (400) that names the parameter."""
    request = decode_json(_DECODER, body)
    given = [name for name in SHAPES if getattr(request, name) is not None]
    if len(given) != 1:
        found = " and ".join(f"`{name}`" for name in given) or "none of them"
        choices = ", ".join(f"`{name}`" for name in SHAPES)
        raise invalid_parameter(
            given[1] if given else None, f"Give exactly one of {choices}; this request has {found}."
        )
    for name in ("stages", "replicas"):
        count = getattr(request, name)
        if count is not None and count < 1:
            raise invalid_parameter(name, f"`{name}` is {count}; it must be 1 or more.")
    if request.replica is not None and (request.replica < 0 or request.replicas is not None):
        raise invalid_parameter(
            "replica", "`replica` is the number of one replica, from 0, and does not go with `replicas`."
        )
    for name in ("partition", "move"):
        plan = getattr(request, name)
        if plan is not None and not 0 < len(plan) <= PLAN_CHARACTERS_MAX:
            raise invalid_parameter(name, f"`{name}` must have 1 to {PLAN_CHARACTERS_MAX} characters.")
    if request.strategy not in STRATEGIES:
        choices = ", ".join(STRATEGIES)
        raise invalid_parameter("strategy", f"`strategy` is {request.strategy[:64]!r}; it must be one of {choices}.")
    return request
