"""MuxServe (ICML 2024): static units sized by each model's mean rate, as many models together on a device as have room.

What makes it itself is here: it plans for throughput at the popularity that it was told, not for bursts; it packs units onto
devices that others use already, the fullest that still have room first, and lives with their interference. Simplified:

- shares of a GPU's compute (MPS) are the simulator's interference of co-tenants; its own units of different models share
  devices where memory allows, those of one model never do;
- its scheduler's alternation of prefill and decode is the engine's chunked prefill, as for every system here;
- depth is the least at which the model fits.
"""

from __future__ import annotations

import numpy as np

from ..cluster.served_model import ServedModel
from ..cluster.system import Dispatch
from .fleet import replicas_for
from .model_shapes import ModelShapes
from .placing import Site, Stages, on_devices, stage_need_bytes
from .replicas_only import fixed_depth
from .situation import Situation
from .static import Static

HEADROOM = 1.15
"""Capacity over the mean rate: what its throughput estimate leaves."""


class MuxServe(Static):
    """Units for the mean rate."""

    dispatch: Dispatch = "shortest-queue"


def fullest_with_room(model: ServedModel, stages: int, site: Site) -> Stages | None:
    """Even stages on the devices with the least free memory that is enough: colocation before empty devices."""
    free = site.free_bytes()
    rows = np.flatnonzero(free >= stage_need_bytes(model, stages))
    if len(rows) < stages:
        return None
    return on_devices(model, [int(row) for row in rows[np.argsort(free[rows], kind="stable")][:stages]], site)


def muxserve(situation: Situation) -> MuxServe:
    """The system."""
    plans = []
    for model, facts in enumerate(situation.facts):
        stages = fixed_depth(situation, model)
        shapes = ModelShapes(facts, (stages,))
        plans.append((stages, replicas_for(shapes, stages, HEADROOM * situation.mean_work(model))))
    return MuxServe("MuxServe", plans, fullest_with_room)
