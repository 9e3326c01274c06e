"""What a worker knows of its KV blocks from the plans it runs: how full each is, and when it last changed.

A block's *life* begins when its first token is written; ids are used again, so a block may have many lives. A full block does
not change any more in its life (KV is append-only). Pure, and kept for the worker's whole time: what was written in one epoch
is handed over in a later one. The cost of a step is some numpy calls over its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..runtime.interface import BLOCK_TOKENS, Int32Array
from .messages import StepPlan

Int64Array = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_ARRIVED = 1
"""Version of a block that came from another worker and was not written to since; own writes count from above it."""


@dataclass(frozen=True, slots=True)
class BlocksAtCut:
    """What a `PageLedger` said at one moment; see there."""

    filled: Int64Array
    version: Int64Array
    life: Int64Array
    owner: Int64Array


class PageLedger:
    """Arrays over block ids: ``filled`` tokens (0 while a step writes to it), ``version``, ``life`` and ``owner`` (a request)."""

    def __init__(self) -> None:
        self.clock = _ARRIVED
        self.filled: Int64Array = np.zeros(0, np.int64)
        self.version: Int64Array = np.zeros(0, np.int64)
        self.life: Int64Array = np.zeros(0, np.int64)
        self.owner: Int64Array = np.zeros(0, np.int64)

    def ensure(self, blocks: int) -> None:
        """Know at least ``blocks`` blocks."""
        lacking = blocks - len(self.filled)
        if lacking > 0:
            new = np.zeros(lacking, np.int64)
            self.filled, self.version = np.concatenate((self.filled, new)), np.concatenate((self.version, new))
            self.life, self.owner = np.concatenate((self.life, new)), np.concatenate((self.owner, new))

    def begin_step(self, plan: StepPlan) -> None:
        """A step is about to run: what it writes to is neither full nor copied until it has."""
        blocks, _ = self._touched(plan)
        self.filled[blocks] = 0

    def end_step(self, plan: StepPlan) -> None:
        """It has run."""
        blocks, positions = self._touched(plan)
        offsets = positions % BLOCK_TOKENS
        self.clock += 1
        self.version[blocks] = self.clock
        self.life[blocks[offsets == 0]] = self.clock
        # Positions ascend within a row and no two rows share a block, so the last assignment is the highest fill.
        self.filled[blocks] = offsets + 1
        self.owner[blocks] = np.repeat(np.asarray(plan.requests, np.int64), _row_lengths(plan))

    def arrived(self, blocks: Int32Array, filled: npt.NDArray[np.uint8]) -> None:
        """Pages of ``blocks`` came from another worker. Where this one has run steps itself, it knows better."""
        new = self.version[blocks] <= _ARRIVED
        self.version[blocks[new]] = _ARRIVED
        self.filled[blocks[new]] = filled[new]

    def at_cut(self) -> BlocksAtCut:
        """How things stand now, for good."""
        return BlocksAtCut(self.filled.copy(), self.version.copy(), self.life.copy(), self.owner.copy())

    def forget(self) -> None:
        """No page means anything any more."""
        for array in (self.filled, self.version, self.life, self.owner):
            array[:] = 0

    def _touched(self, plan: StepPlan) -> tuple[Int64Array, Int64Array]:
        """For each token of the step: its block and its position."""
        positions = np.frombuffer(plan.positions, np.int32).astype(np.int64)
        tables = np.frombuffer(plan.block_tables, np.int32).reshape(len(plan.requests), -1)
        rows = np.repeat(np.arange(len(plan.requests)), _row_lengths(plan))
        blocks = tables[rows, positions // BLOCK_TOKENS].astype(np.int64)
        if len(blocks):
            self.ensure(int(blocks.max()) + 1)
        return blocks, positions


def _row_lengths(plan: StepPlan) -> npt.NDArray[np.int32]:
    return np.diff(np.frombuffer(plan.row_starts, np.int32))


def blocks_in(bits: bytes, blocks: int) -> Bools:
    """The set bits of `messages.Open.live` as an array over ``blocks`` block ids; missing ones are not set."""
    found = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").astype(bool)[:blocks]
    return np.concatenate((found, np.zeros(blocks - len(found), bool)))
