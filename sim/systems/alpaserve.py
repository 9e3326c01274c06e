"""AlpaServe (OSDI 2023): a static placement found by replaying a history in a simulator, then kept whatever comes.

What makes it itself is here: the search over group sizes and replica counts by simulated attainment, model-parallel groups that
absorb bursts by multiplexing, a central queue whose head goes to the first group with room. Simplified:

- it takes the plan with the fewest devices that serves 99 % of the history in time, found in this evaluation's own simulator. Its
  own objective adds replicas while any device is free; so many idle devices would only flatter what is compared with it;
- groups are pipelines only: tensor parallelism inside a group is not modelled anywhere in this evaluation;
- devices are taken first fit, as its placement assumes equal and empty devices.
"""

from __future__ import annotations

from ..cluster.system import Dispatch
from .placing import first_fit
from .search import cheapest_plan
from .situation import Situation
from .static import Static


class AlpaServe(Static):
    """The plan of the history, with one queue."""

    dispatch: Dispatch = "central"


def alpaserve(situation: Situation) -> AlpaServe:
    """The system."""
    plans = [cheapest_plan(situation, model, first_fit) for model in range(len(situation.models))]
    return AlpaServe("AlpaServe", plans, first_fit)
