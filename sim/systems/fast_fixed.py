"""Fixed depth with equally fast loading: `replicas_only`, in a cluster where its few stages load as fast as many would.

The simulated links that weights come through are faster for it by `LOADING` (`sim.systems.catalogue`), so that one of its
replicas starts as quickly as one of four times its depth. Where it does as well as `fluid`, what `fluid` wins is loading, and
not granularity. Simplified: host memory and links are faster for everything that is loaded, not for this model alone.
"""

from __future__ import annotations

from .controlled import Controlled
from .replicas_only import fixed_settings
from .situation import Situation

LOADING = 4.0
"""How many times faster weights come."""


def fast_fixed(situation: Situation) -> Controlled:
    """The system; it must run on a map whose rates of loading are `LOADING` times as high."""
    return Controlled("replicas only, fast loading", situation, lambda model: fixed_settings(situation, model))
