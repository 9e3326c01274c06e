"""All systems that the evaluation compares, by the name that a run is stored under.

Owns the names, the order of tables, and which system is what: ours, a peer, a control, or an ablation of ours.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from inspect import getdoc
from typing import Literal

from ..cluster.startup import StartupModel
from ..cluster.system import System
from .alpaserve import alpaserve
from .depth_only import depth_only
from .fast_fixed import LOADING, fast_fixed
from .fluid import fluid, stop_and_copy, uncontrolled, without_fragments, without_kv
from .muxserve import muxserve
from .oracle import oracle
from .paper import paper
from .replicas_only import replicas_only
from .serverlessllm import serverlessllm
from .situation import Maker, Situation
from .static import static
from .tetris import tetris

Kind = Literal["ours", "peer", "control", "ablation"]

STATIC_DEPTHS = (4, 8, 16, 32)
"""The paper's."""


NEAR = StartupModel()
"""Weights that a node has loaded stay in its host memory, and others may have them from there: ours and the serverless systems'."""
FROM_STORAGE = StartupModel(keeps_host=False, peers=False)
"""Every load comes from storage, as in the paper's Table 2."""
FAST = StartupModel(
    stream_bytes_per_s=LOADING * NEAR.stream_bytes_per_s, storage_bytes_per_s=LOADING * NEAR.storage_bytes_per_s
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One system: ``title`` in tables. Weights come as ``startup`` says, over links ``loading`` times as fast."""

    title: str
    kind: Kind
    make: Maker
    startup: StartupModel = NEAR
    loading: float = 1.0

    @property
    def document(self) -> str:
        """What its file says of it: what it is, and what was simplified."""
        module = sys.modules[self.make.__module__]
        return getdoc(module) or ""


SYSTEMS: dict[str, Entry] = {
    "fluid": Entry("FlexPipe, fluid", "ours", fluid),
    "paper": Entry("FlexPipe, paper", "ours", paper),
    "alpaserve": Entry("AlpaServe", "peer", alpaserve),
    "muxserve": Entry("MuxServe", "peer", muxserve),
    "serverlessllm": Entry("ServerlessLLM", "peer", serverlessllm),
    "tetris": Entry("Tetris", "peer", tetris),
    "replicas-only": Entry("replicas only", "control", replicas_only),
    "depth-only": Entry("depth only", "control", depth_only),
    "fast-fixed": Entry("replicas only, fast loading", "control", fast_fixed, FAST, LOADING),
    "oracle": Entry("oracle", "control", oracle),
    "no-fragments": Entry("fluid, first-fit placing", "ablation", without_fragments),
    "cold": Entry("fluid, from storage", "ablation", fluid, FROM_STORAGE),
    "cold-replicas-only": Entry("replicas only, from storage", "ablation", replicas_only, FROM_STORAGE),
    "no-kv": Entry("fluid, KV room of four stages", "ablation", without_kv),
    "stop-copy": Entry("fluid, stop and copy", "ablation", stop_and_copy),
    "no-control": Entry("fluid, no hysteresis", "ablation", uncontrolled),
}


class UnknownSystemError(ValueError):
    """There is no system of that name."""


def static_name(depth: int, provision: float) -> str:
    """The name of static replicas of that depth for so many times the mean load."""
    return f"static-{depth}@{provision:g}"


def static_of(name: str) -> tuple[int, float] | None:
    """(depth, provision) of a static system's name; None for any other."""
    if not name.startswith("static-"):
        return None
    depth, _, provision = name.removeprefix("static-").partition("@")
    return int(depth), float(provision)


def entry(name: str) -> Entry:
    """The system of that name. Raises `UnknownSystemError`."""
    fixed = static_of(name)
    if fixed is not None:
        depth, provision = fixed
        return Entry(f"static {depth}", "control", _static_maker(depth, provision))
    try:
        return SYSTEMS[name]
    except KeyError:
        known = ", ".join([*SYSTEMS, *(f"static-{depth}@1.5" for depth in STATIC_DEPTHS)])
        raise UnknownSystemError(f"no system is called {name}; there are: {known}") from None


def _static_maker(depth: int, provision: float) -> Maker:
    def make(situation: Situation) -> System:
        return static(situation, depth, provision)

    return make
