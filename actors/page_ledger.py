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
from ..transport.interface import FrameError
from .messages import StepPlan

Int64Array = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
BLOCKS_MAX = 1 << 22
"""Above every block id that a plan may name: 67 million tokens, for which a ledger takes 128 MiB."""
NOBODY = -1
"""Owner of a block that came from another worker and that no step here has named yet."""
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
            self.life, self.owner = np.concatenate((self.life, new)), np.concatenate((self.owner, new + NOBODY))

    def begin_step(self, plan: StepPlan) -> None:
        """A step is about to run: what it writes to is not full until it has.

        Raises `FrameError`, with nothing changed, where the plan's arrays do not fit together or name impossible blocks.
        """
        writes = _read(plan)
        self.ensure(writes.blocks_end)
        self.filled[writes.blocks] = 0

    def end_step(self, plan: StepPlan) -> None:
        """It has run: what it wrote to has changed, so a copy taken meanwhile counts for nothing. Raises as `begin_step`."""
        writes = _read(plan)
        offsets = writes.positions % BLOCK_TOKENS
        self.clock += 1
        self.version[writes.blocks] = self.clock
        self.life[writes.blocks[offsets == 0]] = self.clock
        # Positions ascend within a row and no two rows share a block, so the last assignment is the highest fill.
        self.filled[writes.blocks] = offsets + 1
        self._own(writes)

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
        for array in (self.filled, self.version, self.life):
            array[:] = 0
        self.owner[:] = NOBODY

    def _own(self, writes: _Writes) -> None:
        """Rows whose first block is not known as theirs came from another worker: all of their blocks become theirs.

        That happens once in a request's time here, so a step's cost stays that of its tokens.
        """
        self.owner[writes.blocks] = writes.requests[writes.rows]
        strange = self.owner[writes.tables[:, 0]] != writes.requests
        if strange.any():
            tables = writes.tables[strange]
            held = (tables >= 0) & (tables < len(self.owner))
            self.owner[tables[held]] = np.repeat(writes.requests[strange], np.count_nonzero(held, axis=1))


@dataclass(frozen=True, slots=True)
class _Writes:
    """A plan's arrays: for each token its row, position and block; for each row its request and table."""

    rows: Int64Array
    positions: Int64Array
    blocks: Int64Array
    requests: Int64Array
    tables: Int32Array

    @property
    def blocks_end(self) -> int:
        """One more than the highest block that is named, at least in the first column or by a token."""
        return int(max(self.blocks.max(initial=-1), self.tables[:, 0].max(initial=-1))) + 1


def _read(plan: StepPlan) -> _Writes:
    try:
        requests = np.asarray(plan.requests, np.int64)
        tables = np.frombuffer(plan.block_tables, np.int32).reshape(len(requests), -1)
        positions = np.frombuffer(plan.positions, np.int32).astype(np.int64)
        row_starts = np.frombuffer(plan.row_starts, np.int32)
        rows = np.repeat(np.arange(len(requests)), row_starts[1:] - row_starts[:-1])
        blocks = tables[rows, positions // BLOCK_TOKENS].astype(np.int64)
        lowest = min(positions.min(), blocks.min(), tables[:, 0].min())
    except (ValueError, IndexError) as error:
        raise FrameError(f"step {plan.step} holds arrays that do not fit together: {error}") from error
    writes = _Writes(rows, positions, blocks, requests, tables)
    if lowest < 0 or writes.blocks_end > BLOCKS_MAX:
        raise FrameError(f"step {plan.step} names positions or blocks below 0, or blocks from {BLOCKS_MAX} on")
    return writes


def blocks_in(bits: bytes, blocks: int) -> Bools:
    """The set bits of `messages.Open.live` as an array over ``blocks`` block ids; missing ones are not set."""
    found = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").astype(bool)[:blocks]
    return np.concatenate((found, np.zeros(blocks - len(found), bool)))
