"""A modelled engine that takes as long as the real one was measured to, alone and beside others that compute.

Owns the turning of a calibration into virtual time. It must never know whose steps it runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import trio
from numpy.typing import NDArray

from ...actors.engine_port import LoadProgressed
from ...runtime.interface import EngineSpec, RaggedBatch, StageFacts
from ..modelled_engine import ModelledEngine, ModelledModel, ModelledSpeed
from .calibration import Calibration

MODEL = ModelledModel(layers=6, vocabulary=1000)
"""Small: that its pages are right is `sim.world`'s to check, here its time counts."""


def atom_edges(stages: int) -> tuple[int, ...]:
    """Where the modelled model is cut into so many stages."""
    return tuple(round(MODEL.atoms * place / stages) for place in range(stages + 1))


@dataclass(slots=True)
class Host:
    """What the engines of one pipeline share: cores, and the change under way, for which each load takes ``load_s``."""

    calibration: Calibration
    load_s: float = 0.0
    changing: bool = False
    computing: int = 0
    tables: NDArray[np.float64] = field(init=False)
    shares: dict[tuple[int, int], float] = field(init=False)
    _news: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot, init=False)

    def __post_init__(self) -> None:
        known = self.calibration
        self.tables = known.times.table(known.step_tokens_max)
        self.shares = {
            edge: share
            for stages, shares in known.shares.items()
            for edge, share in zip(pairwise(atom_edges(stages)), shares, strict=True)
        }

    async def compute(self, atoms: range, batch: RaggedBatch) -> None:
        """Take a step's time for these atoms; what is left of it takes longer or shorter when others begin and end."""
        left = 1.0
        self.computing += 1
        self._news.unpark_all()
        try:
            while left > 0:
                seconds, began_s = self.step_s(atoms, batch), trio.current_time()
                with trio.move_on_after(left * seconds):
                    await self._news.park()
                    left -= (trio.current_time() - began_s) / seconds
                    continue
                left = 0.0
        finally:
            self.computing -= 1
            self._news.unpark_all()

    def step_s(self, atoms: range, batch: RaggedBatch) -> float:
        """As it is now."""
        known, crowd = self.calibration, min(self.computing, len(self.tables))
        lengths, ends = np.diff(batch.row_starts), batch.positions[batch.row_starts[1:] - 1] + 1
        context = float(ends[lengths == 1].sum())
        begins = ends - lengths
        squares = float((ends[lengths > 1] ** 2 - begins[lengths > 1] ** 2).sum())
        whole_s = float(self.tables[crowd - 1][batch.tokens]) - 2 * known.hop_s
        whole_s += known.context_s * context + known.square_s * squares
        slowed = 1 + known.change_slowdown if self.changing else 1.0
        return max(whole_s, known.hop_s) * self.shares[atoms.start, atoms.stop] * slowed


class TimedEngine(ModelledEngine):
    """See the module."""

    def __init__(self, host: Host) -> None:
        known = host.calibration
        copies_s = known.cut_s / (2 * known.cut_blocks * MODEL.layers) if known.cut_blocks else 0.0
        super().__init__(MODEL, ModelledSpeed(page_s=copies_s, memory_bytes=1 << 40))
        self._host = host

    async def load(self, spec: EngineSpec, atoms: range, progress: LoadProgressed) -> StageFacts:
        """See `EnginePort`."""
        await trio.sleep(self._host.load_s)
        return await super().load(spec, atoms, progress)

    async def _compute(self, atoms: range, batch: RaggedBatch) -> None:
        await self._host.compute(atoms, batch)
