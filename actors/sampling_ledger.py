"""The last stage's memory of each request's sampling: parameters, and the tokens so far where penalties need them.

Pure. The scheduler is the authority: it admits a request with its tokens (again in a new epoch) and retires it; between
the two the ledger appends each token that this stage draws, in step order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.interface import SampledToken, SampleRow, SamplingParams
from .messages import AdmitSampling, StepPlan


class SamplingLedgerError(Exception):
    """A plan samples a request that was never admitted, or admits one twice: the scheduler and this stage disagree."""


@dataclass(slots=True)
class _Sampling:
    params: SamplingParams
    prompt_tokens: int
    tokens: list[int]


class SamplingLedger:
    """Requests that may be sampled in this epoch."""

    def __init__(self) -> None:
        self._requests: dict[int, _Sampling] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def rows(self, plan: StepPlan) -> list[SampleRow]:
        """Take in the plan's admissions and retirements, and say how to draw each of its samples."""
        for request in plan.retire:
            self._requests.pop(request, None)
        for admission in plan.admit:
            self._admit(admission)
        positions = np.frombuffer(plan.positions, np.int32)[np.frombuffer(plan.sample_tokens, np.int32)]
        return [
            self._row(plan.requests[row], int(position)) for row, position in zip(plan.samples, positions, strict=True)
        ]

    def drawn(self, plan: StepPlan, tokens: Sequence[SampledToken]) -> None:
        """Remember the tokens that were drawn for ``plan``'s samples."""
        for row, token in zip(plan.samples, tokens, strict=True):
            sampling = self._requests[plan.requests[row]]
            if sampling.params.needs_history:
                sampling.tokens.append(token.token_id)

    def _admit(self, admission: AdmitSampling) -> None:
        if admission.request in self._requests:
            raise SamplingLedgerError(f"request {admission.request} was admitted to sampling twice in one epoch")
        tokens = np.frombuffer(admission.tokens, np.int32).tolist()
        self._requests[admission.request] = _Sampling(admission.params, admission.prompt_tokens, tokens)

    def _row(self, request: int, position: int) -> SampleRow:
        sampling = self._requests.get(request)
        if sampling is None:
            raise SamplingLedgerError(f"request {request} is to be sampled but was never admitted")
        history = np.asarray(sampling.tokens, np.int32) if sampling.params.needs_history else None
        return SampleRow(sampling.params, position + 1, history, sampling.prompt_tokens)
