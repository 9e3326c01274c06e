"""A stage engine without a model, whose KV pages carry verifiable content: one wrong page changes every later token.

Each token's hidden state is a 64-bit digest. A layer writes, for token p, ``content = mix(layer, p, hidden)`` into its page
and reads the contents of positions 0..p back through the block table: ``hidden' = mix(hidden + sum of contents)``. The next
token is a function of the last hidden state, so a lost, stale or misplaced page, a step that ran twice or a plan that named
the wrong block shows in the output. `expected_tokens` computes the truth without pages.

Implements ``actors.stage.EnginePort``; a step takes ``step_s`` of virtual time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import trio

from ..runtime.interface import (
    BLOCK_TOKENS,
    BufferView,
    EngineError,
    RaggedBatch,
    SampledToken,
    SampleRow,
    SamplingParams,
    StageFacts,
    StageOutput,
    StageSpec,
)

Digests = npt.NDArray[np.uint64]
_BYTES_PER_CONTENT = 8


@dataclass(frozen=True, slots=True)
class ModelledModel:
    """What is modelled: ``layers`` attention layers, one atom each, over a vocabulary."""

    layers: int = 6
    vocabulary: int = 1000


class ModelledEngine:
    """See the module."""

    def __init__(self, model: ModelledModel, *, step_s: float = 0.0, memory_free_bytes: int = 1 << 30) -> None:
        self._model = model
        self._step_s = step_s
        self._memory_free_bytes = memory_free_bytes
        self._layers: range = range(0)
        self._pages: dict[int, Digests] = {}

    async def load(self, spec: StageSpec, progress: Callable[[int, int], Awaitable[None]]) -> StageFacts:
        """Take layers ``[first_atom, end_atom)``."""
        if not 0 <= spec.first_atom < spec.end_atom <= self._model.layers:
            raise EngineError(
                f"atoms {spec.first_atom} to {spec.end_atom} do not exist; there are {self._model.layers}"
            )
        self._layers = range(spec.first_atom, spec.end_atom)
        await progress(1, 1)
        return StageFacts(
            weight_bytes=len(self._layers),
            kv_bytes_per_block=len(self._layers) * BLOCK_TOKENS * _BYTES_PER_CONTENT,
            memory_free_bytes=self._memory_free_bytes,
            layers=tuple(self._layers),
            backend="modelled",
        )

    async def reserve(self, blocks: int) -> int:
        """Make empty pages."""
        self._pages = {layer: np.zeros(blocks * BLOCK_TOKENS, np.uint64) for layer in self._layers}
        return sum(pages.nbytes for pages in self._pages.values())

    async def run(self, batch: RaggedBatch, hidden: BufferView | None, rows: Sequence[SampleRow]) -> StageOutput:
        """Compute one step through the block tables."""
        await trio.sleep(self._step_s)
        states = _mix(batch.token_ids.astype(np.uint64)) if hidden is None else np.frombuffer(hidden.data, np.uint64)
        for layer in self._layers:
            states = self._layer(layer, batch, states)
        if self._layers.stop < self._model.layers:
            # Digests cross the cut as pairs of float32, the dtype of a real hidden state; nobody computes with them there.
            return StageOutput(hidden=BufferView("float32", (1, batch.tokens, 2), states.view(np.uint8).data))
        drawn = [_draw(states[t], row, self._model) for t, row in zip(batch.sample_tokens, rows, strict=True)]
        return StageOutput(tokens=drawn)

    def peak_rss_bytes(self) -> int:
        """A model of a model weighs nothing."""
        return 0

    def _layer(self, layer: int, batch: RaggedBatch, states: Digests) -> Digests:
        pages = self._pages[layer]
        result = states.copy()
        for row in range(len(batch.row_starts) - 1):
            tokens = slice(batch.row_starts[row], batch.row_starts[row + 1])
            positions = batch.positions[tokens]
            where = batch.block_tables[row, np.arange(positions[-1] + 1) // BLOCK_TOKENS] * BLOCK_TOKENS
            where = where + np.arange(positions[-1] + 1) % BLOCK_TOKENS
            pages[where[positions]] = _content(layer, positions, states[tokens])
            read = np.cumsum(pages[where], dtype=np.uint64)
            result[tokens] = _mix(states[tokens] + read[positions])
        return result


def expected_tokens(model: ModelledModel, prompt: Sequence[int], params: SamplingParams, count: int) -> list[int]:
    """The ``count`` tokens that a faultless pipeline of any shape makes after ``prompt``."""
    tokens = list(prompt)
    for _ in range(count):
        states = _mix(np.asarray(tokens, np.uint64))
        positions = np.arange(len(tokens), dtype=np.int32)
        for layer in range(model.layers):
            states = _mix(states + np.cumsum(_content(layer, positions, states), dtype=np.uint64))
        history = np.asarray(tokens, np.int32) if params.needs_history else None
        row = SampleRow(params, len(tokens), history, len(prompt))
        tokens.append(_draw(states[-1], row, model).token_id)
    return tokens[len(prompt) :]


def _content(layer: int, positions: npt.NDArray[np.int32], states: Digests) -> Digests:
    return _mix(states ^ _mix(np.uint64(layer + 1) * np.uint64(1_000_003) + positions.astype(np.uint64)))


def _draw(state: np.uint64, row: SampleRow, model: ModelledModel) -> SampledToken:
    """A token from the state; where they matter, the seed, the position and the history change it."""
    digest = np.asarray([state], np.uint64)
    if row.params.temperature > 0:
        digest = _mix(digest + np.uint64(row.params.seed) + np.uint64(row.position) * np.uint64(7919))
    if row.history is not None:
        digest = _mix(digest + np.uint64(row.history.astype(np.uint64).sum()) + np.uint64(row.prompt_tokens))
    token = int(digest[0] % np.uint64(model.vocabulary))
    if row.params.logprobs is None:
        return SampledToken(token)
    others = ((token + place) % model.vocabulary for place in range(row.params.logprobs))
    return SampledToken(token, -1.0, tuple((other, -1.0 - place) for place, other in enumerate(others)))


def _mix(values: Digests) -> Digests:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    mixed = np.asarray(values, np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
