"""When a pipeline changes its shape: `decide` about once a second, `settled` at the end of each change that it began."""

from __future__ import annotations

from collections.abc import Sequence

from .decision import ControllerMemory, Decision, Guard, Limits
from .granularity import GranularityPolicy, Shape
from .observation import Observation


def decide(
    memory: ControllerMemory,
    observation: Observation,
    present: Shape,
    candidates: Sequence[Shape],
    policy: GranularityPolicy,
    limits: Limits,
    guard: Guard | None = None,
) -> tuple[ControllerMemory, Decision]:
    """What to do with a pipeline of shape ``present`` now.

    ``candidates`` need not contain ``present``; refused ones are welcome, since the decision then names why they are out. After a
    "change", every decision holds until `settled` is called. Never raises on values that are wrong: it holds and says why.
    """
    raise NotImplementedError


def settled(memory: ControllerMemory, at_s: float, *, succeeded: bool) -> ControllerMemory:
    """The change that the last "change" began has ended at ``at_s``, on the observation's clock; or was refused by whoever acts."""
    raise NotImplementedError
