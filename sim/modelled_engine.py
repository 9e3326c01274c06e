"""A worker's engine without a model, whose KV pages carry verifiable content: one wrong page changes every later token.

Each token's hidden state is a 64-bit digest. The attention of a layer writes, for token p, ``content = mix(layer, p, hidden)``
into its page and reads the contents of positions 0..p back through the block table: ``hidden' = mix(hidden + sum of
contents)``. The MLP of a layer mixes the state only. The next token is a function of the last hidden state, so a lost, stale
or misplaced page, a step that ran twice, an atom left out or a plan that named the wrong block shows in the output.
`expected_tokens` computes the truth without pages.

Atom 2k is the attention of layer k and owns its pages, atom 2k + 1 is its MLP: a cut between them is a cut inside a block.
Implements ``actors.engine_port.EnginePort``; everything takes virtual time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import trio

from ..actors.engine_port import LoadProgressed
from ..actors.layer_pages import LayerPages, parts_of
from ..runtime.interface import (
    BLOCK_TOKENS,
    BufferView,
    EngineError,
    EngineSpec,
    Int32Array,
    OutOfMemoryError,
    RaggedBatch,
    SampledToken,
    SampleRow,
    SamplingParams,
    StageFacts,
    StageOutput,
    WeightSources,
)
from ..runtime.page_checksum import page_checksum

Digests = npt.NDArray[np.uint64]
PAGE_BYTES = BLOCK_TOKENS * 8
"""One digest a token."""
WEIGHT_BYTES = 1024
"""Of one atom: as much as two requests' pages of a layer, so that either may be what does not fit."""
_ALL_BITS = (1 << 64) - 1
_GARBAGE = np.uint64(0xDEAD_BEEF_DEAD_BEEF)
"""What a page holds before anything was written to it: a forgotten copy must show."""


@dataclass(frozen=True, slots=True)
class ModelledModel:
    """What is modelled: ``layers`` layers of two atoms each, over a vocabulary."""

    layers: int = 6
    vocabulary: int = 1000

    @property
    def atoms(self) -> int:
        """How many atoms there are."""
        return 2 * self.layers

    @property
    def layers_of(self) -> tuple[tuple[int, ...], ...]:
        """The layers whose pages each atom owns."""
        return tuple((atom // 2,) if atom % 2 == 0 else () for atom in range(self.atoms))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledSpeed:
    """How long things take in virtual time, and what memory there is for weights and pages.

    A step takes ``step_s``, and ``step_s_per_atom`` for each atom that it goes through.
    """

    step_s: float = 0.0
    step_s_per_atom: float = 0.0
    load_s_per_atom: float = 0.0
    page_s: float = 0.0
    memory_bytes: int = 1 << 30

    def slowed(self, factor: float) -> ModelledSpeed:
        """The same memory, and ``factor`` times as long for everything."""
        return ModelledSpeed(
            step_s=self.step_s * factor,
            step_s_per_atom=self.step_s_per_atom * factor,
            load_s_per_atom=self.load_s_per_atom * factor,
            page_s=self.page_s * factor,
            memory_bytes=self.memory_bytes,
        )


class ModelledEngine:
    """See the module."""

    def __init__(self, model: ModelledModel, speed: ModelledSpeed = ModelledSpeed()) -> None:
        self.model = model
        self.speed = speed
        self.resident: set[int] = set()
        self._pages: dict[int, Digests] = {}
        self._turn = trio.Lock()
        self._loading = trio.Lock()

    @property
    def layers(self) -> list[int]:
        """The layers whose pages are here."""
        return sorted(self._pages)

    @property
    def pages_held(self) -> dict[int, int]:
        """How many pages of each of them."""
        return {layer: len(self._pages[layer]) // BLOCK_TOKENS for layer in self.layers}

    async def load(self, spec: EngineSpec, atoms: range, progress: LoadProgressed) -> StageFacts:  # noqa: ARG002 - a model of a model
        """Make ``atoms`` resident. One load at a time."""
        async with self._loading:
            return await self._load(atoms, progress)

    async def _load(self, atoms: range, progress: LoadProgressed) -> StageFacts:
        if not 0 <= atoms.start < atoms.stop <= self.model.atoms:
            raise EngineError(f"atoms {atoms.start} to {atoms.stop} do not exist; there are {self.model.atoms}")
        lacking = [atom for atom in atoms if atom not in self.resident]
        if len(lacking) * WEIGHT_BYTES > self._free_bytes():
            raise OutOfMemoryError(f"{len(lacking)} atoms of {WEIGHT_BYTES} bytes do not fit")
        for done, atom in enumerate(lacking, start=1):
            await trio.sleep(self.speed.load_s_per_atom)
            self.resident.add(atom)
            await progress(done * WEIGHT_BYTES, len(lacking) * WEIGHT_BYTES)
        layers = tuple(atom // 2 for atom in atoms if atom % 2 == 0)
        return StageFacts(
            weight_bytes=len(atoms) * WEIGHT_BYTES,
            kv_bytes_per_block=len(layers) * PAGE_BYTES,
            memory_free_bytes=self._free_bytes(),
            layers=layers,
            page_bytes=(PAGE_BYTES,) * len(layers),
            blocks_held=tuple(len(self._pages.get(layer, ())) // BLOCK_TOKENS for layer in layers),
            page_layout="modelled",
            backend="modelled",
            weights=WeightSources(
                kept_bytes=(len(atoms) - len(lacking)) * WEIGHT_BYTES, disk_bytes=len(lacking) * WEIGHT_BYTES
            ),
        )

    async def reserve(self, atoms: range, blocks: int) -> int:
        """Make room; what is new is garbage."""
        async with self._turn:
            wanted = [atom // 2 for atom in atoms if atom % 2 == 0]
            held = (self._pages[layer].nbytes if layer in self._pages else 0 for layer in wanted)
            if sum(max(0, blocks * PAGE_BYTES - nbytes) for nbytes in held) > self._free_bytes():
                raise OutOfMemoryError(f"{blocks} KV blocks of {len(wanted)} layers do not fit")
            for layer in wanted:
                before = self._pages.get(layer, np.empty(0, np.uint64))
                pages = np.full(max(blocks * BLOCK_TOKENS, len(before)), _GARBAGE, np.uint64)
                pages[: len(before)] = before
                self._pages[layer] = pages
            return sum(pages.nbytes for pages in self._pages.values())

    async def run(
        self, atoms: range, batch: RaggedBatch, hidden: BufferView | None, rows: Sequence[SampleRow]
    ) -> StageOutput:
        """Compute one step through the block tables."""
        async with self._turn:
            await self._compute(atoms, batch)
            if (hidden is None) != (atoms.start == 0):
                raise EngineError("only the first stage takes tokens")
            states = (
                _mix(batch.token_ids.astype(np.uint64)) if hidden is None else np.frombuffer(hidden.data, np.uint64)
            )
            for atom in atoms:
                if atom not in self.resident:
                    raise EngineError(f"atom {atom} is not here; {sorted(self.resident)} are")
                states = self._attend(atom // 2, batch, states) if atom % 2 == 0 else _mlp(atom, states)
        if atoms.stop < self.model.atoms:
            # Digests cross the cut as pairs of float32, the dtype of a real hidden state; nobody computes with them there.
            return StageOutput(hidden=BufferView("float32", (1, batch.tokens, 2), states.view(np.uint8).data))
        drawn = [_draw(states[t], row, self.model) for t, row in zip(batch.sample_tokens, rows, strict=True)]
        return StageOutput(tokens=drawn)

    async def _compute(self, atoms: range, batch: RaggedBatch) -> None:  # noqa: ARG002 - this model's steps are all alike
        """Take the time of a step."""
        await trio.sleep(self.speed.step_s + self.speed.step_s_per_atom * len(atoms))

    async def use_threads(self, threads: int) -> None:
        """A model of a model has none."""

    async def drop(self, keep: range, blocks: int) -> int:
        """Let go of atoms outside ``keep``, and of KV blocks from ``blocks`` on."""
        async with self._turn:
            before = self._free_bytes()
            self.resident.intersection_update(keep)
            kept = {atom // 2 for atom in self.resident if atom % 2 == 0}
            tokens = blocks * BLOCK_TOKENS
            self._pages = {layer: pages[:tokens].copy() for layer, pages in self._pages.items() if layer in kept}
            return self._free_bytes() - before

    async def gather_pages(self, pages: Sequence[LayerPages], out: memoryview) -> int:
        """Copy pages into ``out``."""
        await trio.sleep(self.speed.page_s * sum(len(part.block_numbers) for part in pages))
        for part, data in parts_of(pages, out):
            blocks = part.block_numbers
            data[:] = self._rows(part.layer, blocks)[blocks].tobytes()
        return page_checksum(out)

    async def scatter_pages(self, pages: Sequence[LayerPages], data: memoryview, checksum: int) -> bool:
        """Put pages in their places."""
        await trio.sleep(self.speed.page_s * sum(len(part.block_numbers) for part in pages))
        rows = [self._rows(part.layer, part.block_numbers) for part in pages]
        if page_checksum(data) != checksum:
            return False
        for place, (part, its_data) in zip(rows, parts_of(pages, data), strict=True):
            place[part.block_numbers] = np.frombuffer(its_data, np.uint64).reshape(-1, BLOCK_TOKENS)
        return True

    def peak_rss_bytes(self) -> int:
        """A model of a model weighs nothing."""
        return 0

    def used_bytes(self) -> int:
        """What weights and pages take."""
        return len(self.resident) * WEIGHT_BYTES + sum(pages.nbytes for pages in self._pages.values())

    def _free_bytes(self) -> int:
        return self.speed.memory_bytes - self.used_bytes()

    def _rows(self, layer: int, blocks: Int32Array) -> Digests:
        if layer not in self._pages:
            raise EngineError(f"layer {layer} has no pages here; layers {sorted(self._pages)} have")
        pages = self._pages[layer].reshape(-1, BLOCK_TOKENS)
        if len(blocks) and not 0 <= blocks.min() <= blocks.max() < len(pages):
            raise EngineError(f"KV blocks {blocks.min()} to {blocks.max()} are not all among {len(pages)}")
        return pages

    def _attend(self, layer: int, batch: RaggedBatch, states: Digests) -> Digests:
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
            states = _mlp(2 * layer + 1, states)
        history = np.asarray(tokens, np.int32) if params.needs_history else None
        row = SampleRow(params, len(tokens), history, len(prompt))
        tokens.append(_draw(states[-1], row, model).token_id)
    return tokens[len(prompt) :]


class FaultlessHistory:
    """The tokens that a faultless pipeline makes after ``prompt``, one by one, for whoever checks them as they come.

    Computes what `expected_tokens` does in plain integers and keeps each layer's sum, so that a token costs microseconds.
    """

    def __init__(self, model: ModelledModel, prompt: Sequence[int], params: SamplingParams) -> None:
        self.tokens = list(prompt)
        self._model = model
        self._params = params
        self._prompt_tokens = len(prompt)
        self._read = [0] * model.layers
        self._state = 0
        for position, token in enumerate(prompt):
            self._append(position, token)

    def next(self) -> SampledToken:
        """The next token."""
        history = np.asarray(self.tokens, np.int32) if self._params.needs_history else None
        row = SampleRow(self._params, len(self.tokens), history, self._prompt_tokens)
        drawn = _draw(np.uint64(self._state), row, self._model)
        self._append(len(self.tokens), drawn.token_id)
        self.tokens.append(drawn.token_id)
        return drawn

    def _append(self, position: int, token: int) -> None:
        state = _mix_one(token)
        for layer in range(self._model.layers):
            content = _mix_one(state ^ _mix_one((layer + 1) * 1_000_003 + position))
            self._read[layer] = (self._read[layer] + content) & _ALL_BITS
            state = _mix_one((state + self._read[layer]) & _ALL_BITS)
            state = _mix_one(state ^ ((2 * layer + 1) * 0x9E37_79B9))
        self._state = state


def _content(layer: int, positions: npt.NDArray[np.int32], states: Digests) -> Digests:
    return _mix(states ^ _mix(np.uint64(layer + 1) * np.uint64(1_000_003) + positions.astype(np.uint64)))


def _mlp(atom: int, states: Digests) -> Digests:
    return _mix(states ^ np.uint64(atom * 0x9E37_79B9))


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


def _mix_one(value: int) -> int:
    """`_mix` of one value."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _ALL_BITS
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _ALL_BITS
    return value ^ (value >> 31)
