"""Depth only: FlexPipe's own policy and controller, with as many replicas as it began with.

More capacity is had only by cutting every replica finer. Simplified as `controlled` says.
"""

from __future__ import annotations

from dataclasses import replace

from .controlled import Controlled
from .fluid import settings_of
from .situation import Situation


def depth_only(situation: Situation) -> Controlled:
    """The system."""
    return Controlled(
        "depth only", situation, lambda model: replace(settings_of(situation, model), fixed_replicas=True)
    )
