"""What the actors may know of a stage's computation: values and protocols, no torch.

Owns the types that cross between ``actors`` and ``runtime``. Tensors cross as `BufferView` (bytes with a dtype and a
shape), so neither neighbour needs the other's libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

BLOCK_TOKENS = 16
"""Tokens in one KV block (page). A page is one layer's keys and values of one block."""

Int32Array = npt.NDArray[np.int32]


class EngineError(Exception):
    """A stage cannot do what it was asked; the sentence names what was wrong and what to do."""


class OutOfMemoryError(EngineError):
    """Weights, KV pages or workspace do not fit the device's stated memory."""


class SamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one request draws its tokens. Validated by the gateway; ranges are OpenAI's and vLLM's.

    ``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 and ``min_p`` 0 switch their filters off.
    ``seed`` is always set: with the token's position it gives the random number (counter-based), so a replay after a
    failure draws the same token. ``logprobs`` is the number of alternatives to report, None for no log-probabilities.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logprobs: int | None = None

    @property
    def needs_history(self) -> bool:
        """Whether drawing a token needs the tokens before it."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class SampledToken(msgspec.Struct, frozen=True, array_like=True):
    """One drawn token. ``top`` holds (token id, log-probability) pairs, most likely first."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class BufferView:
    """A tensor outside torch: contiguous little-endian bytes with a dtype name ("float32", "bfloat16") and a shape."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """One step's work, the same on every stage. T tokens of R rows (one row per request), flattened without padding.

    ``token_ids`` int32 [T]; ``positions`` int32 [T], each token's index in its request; ``row_starts`` int32 [R + 1],
    row r owns tokens ``row_starts[r]:row_starts[r + 1]``; ``block_tables`` int32 [R, W], the KV blocks of each row in
    order, -1 beyond its last; token p of a row lives in block ``block_tables[r, p // BLOCK_TOKENS]`` at offset
    ``p % BLOCK_TOKENS``; ``sample_tokens`` int32 [N], indices into T whose logits are wanted, ascending.
    """

    token_ids: Int32Array
    positions: Int32Array
    row_starts: Int32Array
    block_tables: Int32Array
    sample_tokens: Int32Array

    @property
    def tokens(self) -> int:
        """T, the number of tokens in the step."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class SampleRow:
    """How to draw one token: parallel to ``RaggedBatch.sample_tokens``.

    ``position`` is the index in its request of the token to be drawn. ``history`` int32 holds prompt and output tokens
    so far, None unless ``params.needs_history``; ``prompt_tokens`` says how many of them are the prompt's (presence and
    frequency penalties count output tokens only, the repetition penalty counts both).
    """

    params: SamplingParams
    position: int
    history: Int32Array | None = None
    prompt_tokens: int = 0


class EngineSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one worker computes, whatever atoms it holds. Travels inside `actors.messages.Prepare`, so it names nothing of a host.

    ``model`` is the `ModelFiles.digest` that the worker's files must have. ``device`` is a device of the worker's node.
    ``memory_bytes`` is all that weights and KV pages may take at this worker, 0 for whatever the device has.
    """

    model: str = ""
    device: str = "cpu"
    threads: int = 1
    dtype: str = "float32"
    deterministic: bool = False
    step_tokens_max: int = 512
    memory_bytes: int = 0


class ModelFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one host has the model. Never crosses to another.

    ``warm_folder`` is where the packed weights of this host's workers lie in shared memory, "" for nowhere. ``digest`` is
    `runtime.models.model_digest.model_digest` of folder and program: workers with equal ones may serve together.
    """

    folder: str
    program_file: str
    warm_folder: str = ""
    digest: str = ""


class WeightSources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights of a load came from, in bytes: resident already, this host's shared memory, a peer, the disk."""

    kept_bytes: int = 0
    warm_bytes: int = 0
    peer_bytes: int = 0
    disk_bytes: int = 0


class StageFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run of loaded atoms weighs. All sizes in bytes. ``backend`` says in words what computes it, and why that.

    ``page_bytes[i]`` is the size of one KV page of layer ``layers[i]``. Two workers may exchange pages only where their
    ``page_layout`` is the same: it names number format, layout within a page, and geometry. ``blocks_held[i]`` pages of
    ``layers[i]`` are here already and take no more memory: of what the worker serves, or of an epoch that came to nothing.
    """

    weight_bytes: int
    kv_bytes_per_block: int
    memory_free_bytes: int
    layers: tuple[int, ...]
    page_bytes: tuple[int, ...]
    blocks_held: tuple[int, ...]
    page_layout: str
    backend: str
    weights: WeightSources = WeightSources()


@dataclass(slots=True)
class StageOutput:
    """A step's outcome: a hidden state for the next stage, or tokens where this is the last (parallel to the rows)."""

    hidden: BufferView | None = None
    tokens: list[SampledToken] = field(default_factory=list)


class StageEngine(Protocol):
    """One worker's computation. Synchronous; every method may raise `EngineError`, and then has changed nothing.

    It holds *resident* atoms with the KV pages of their layers, and runs a step through any run of them: in a refactoring a
    worker serves the atoms of two epochs for a while. Atoms are named by half-open ranges of the program's.

    Threads: `run`, `reserve`, `use_threads` and `drop` are called by one thread, the engine's. `load`, `back_pages`,
    `gather_pages` and `scatter_pages` may be called by other threads while a step runs; none of them may hold that step up for
    longer than an instant.
    """

    def load(self, atoms: range, progress: Callable[[int, int], None]) -> StageFacts:
        """Make ``atoms`` resident beside those that are, and say what they weigh. ``progress(done, total)`` in bytes."""
        ...

    def reserve(self, atoms: range, blocks: int) -> int:
        """Make room for KV blocks 0 .. ``blocks`` - 1 in the layers of ``atoms``; the bytes that all pages may then take.

        Content stays, nothing moves. Where there was room for more, that stays until the next `drop`; other layers keep theirs.
        """
        ...

    def run(
        self, atoms: range, batch: RaggedBatch, hidden: BufferView | None, rows: Sequence[SampleRow]
    ) -> StageOutput:
        """Run one step through ``atoms``. ``hidden`` is None on the first stage; ``rows`` is empty except on the last.

        ``hidden`` may lie in memory shared with another process and is given back after the call; the output's buffer is
        sent without a copy. So the output never aliases ``hidden``, nor is its memory written to by a later call.
        """
        ...

    def use_threads(self, threads: int) -> None:
        """Compute with ``threads`` threads from the next step on; no result depends on it where a backend is batch-invariant."""
        ...

    def drop(self, keep: range, blocks: int) -> int:
        """Let go of resident atoms outside ``keep``, of their pages, and of KV blocks from ``blocks`` on in those that stay.

        Gives the bytes that are free for it.
        """
        ...

    def back_pages(self, blocks: int, rest: Callable[[], None]) -> int:
        """Put memory behind KV blocks 0 .. ``blocks`` - 1, and behind some more, so that no first write to them has to wait.

        Changes no content. ``rest`` is called between pieces of a few milliseconds. Gives how many blocks may be in use before
        there is more to do.
        """
        ...

    def gather_pages(self, layer: int, blocks: Int32Array, out: memoryview) -> None:
        """Copy the pages of ``blocks`` into ``out``, one after another."""
        ...

    def scatter_pages(self, layer: int, blocks: Int32Array, data: memoryview) -> None:
        """Put pages that lie in ``data`` one after another in the places of ``blocks``."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back, and the chat template; implemented in ``runtime.text.tokenizer`` without torch."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation, from generation_config.json, config.json or the tokenizer."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Ids are below this."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Text to ids."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Ids to text, special tokens left out; an incomplete UTF-8 tail comes out as U+FFFD."""
        ...

    def token_text(self, token_id: int) -> str:
        """One token alone, for log-probability reports."""
        ...

    def apply_chat_template(self, messages: Sequence[dict[str, object]]) -> list[int]:
        """Render the model's own template with a generation prompt and encode it. Raises ValueError with a sentence."""
        ...
