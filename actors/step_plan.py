"""From the scheduler's choice to the arrays of one `StepPlan`: which tokens, at which positions, in which blocks, sampled where.

Pure. Owns what the scheduler knows of one request (`Sequence`), since a plan is read off it.
"""

from __future__ import annotations

import collections.abc
from dataclasses import dataclass

import numpy as np

from ..runtime.interface import BLOCK_TOKENS
from .generation import GenerationRequest
from .messages import AdmitSampling, StepPlan


def blocks_for(tokens: int) -> int:
    """KV blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


@dataclass(slots=True)
class Sequence:
    """What the scheduler knows of one request. ``tokens`` is prompt + delivered; ``computed`` of them have KV."""

    id: int
    spec: GenerationRequest
    tokens: list[int]
    computed: int = 0
    in_step: bool = False
    cancelled: bool = False
    sampling_admitted: bool = False

    @property
    def blocks_max(self) -> int:
        """KV blocks that it may come to need: for its prompt and all tokens that it may have."""
        return blocks_for(len(self.spec.prompt) + self.spec.max_tokens)

    @property
    def outputs(self) -> int:
        """Tokens delivered so far."""
        return len(self.tokens) - len(self.spec.prompt)

    @property
    def missing(self) -> int:
        """Tokens without KV: 1 while decoding."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One request's part of a step: its next ``tokens`` tokens, and the blocks that it holds."""

    sequence: Sequence
    tokens: int
    blocks: list[int]


def plan_step(
    epoch: int, step: int, rows: collections.abc.Sequence[PlannedRow], retired: collections.abc.Sequence[int]
) -> StepPlan:
    """The plan of ``rows``; marks their sequences as in a step, and as admitted to sampling where they are from now on."""
    block_tables = np.full((len(rows), max(len(row.blocks) for row in rows)), -1, np.int32)
    token_ids: list[int] = []
    positions: list[int] = []
    row_starts = [0]
    sample_tokens: list[int] = []
    samples: list[int] = []
    admit: list[AdmitSampling] = []
    for place, row in enumerate(rows):
        sequence, end = row.sequence, row.sequence.computed + row.tokens
        block_tables[place, : len(row.blocks)] = row.blocks
        token_ids.extend(sequence.tokens[sequence.computed : end])
        positions.extend(range(sequence.computed, end))
        row_starts.append(len(token_ids))
        sequence.in_step = True
        if end == len(sequence.tokens):
            sample_tokens.append(len(token_ids) - 1)
            samples.append(place)
            if not sequence.sampling_admitted:
                sequence.sampling_admitted = True
                admit.append(_admission(sequence))
    return StepPlan(
        epoch=epoch,
        step=step,
        requests=tuple(row.sequence.id for row in rows),
        token_ids=_int32(token_ids),
        positions=_int32(positions),
        row_starts=_int32(row_starts),
        block_tables=block_tables.tobytes(),
        sample_tokens=_int32(sample_tokens),
        samples=tuple(samples),
        admit=tuple(admit),
        retire=tuple(retired),
    )


def _admission(sequence: Sequence) -> AdmitSampling:
    tokens = sequence.tokens if sequence.spec.params.needs_history else []
    return AdmitSampling(sequence.id, sequence.spec.params, len(sequence.spec.prompt), _int32(tokens))


def _int32(values: list[int]) -> bytes:
    return np.asarray(values, np.int32).tobytes()
