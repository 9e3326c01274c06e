"""Which requests a scheduler takes: what one may be at most, now and in the epoch that is being made, and how many may wait.

Pure bookkeeping of `scheduler_machine`, which knows who waits. A request that the epoch in the making could not hold is refused
from the moment on at which its blocks are counted: it would wait there for ever.
"""

from __future__ import annotations

from ..runtime.interface import BLOCK_TOKENS
from .generation import FailureKind, GenerationRequest
from .scheduler_events import PipelineDown

Refusal = tuple[FailureKind, str]
"""The kind, and one sentence for the client."""


class Admission:
    """See the module. Lengths are prompt and output together."""

    def __init__(self, queue_requests_max: int) -> None:
        self._queue_requests_max = queue_requests_max
        self._served_tokens = 0
        self._promised_tokens: int | None = None

    @property
    def context_tokens(self) -> int:
        """Tokens that one request may come to have; 0 before the first epoch."""
        promised = self._promised_tokens
        return self._served_tokens if promised is None else min(self._served_tokens, promised)

    def begin(self, context_tokens: int, kv_blocks: int) -> None:
        """An epoch of ``kv_blocks`` blocks serves, of a model whose context is ``context_tokens``."""
        self._served_tokens = min(context_tokens, kv_blocks * BLOCK_TOKENS)
        self._promised_tokens = None

    def promise(self, kv_blocks: int | None) -> None:
        """An epoch of ``kv_blocks`` blocks is being made; None: it will not be."""
        self._promised_tokens = None if kv_blocks is None else kv_blocks * BLOCK_TOKENS

    def refusal(self, spec: GenerationRequest, *, waiting: int, down: PipelineDown | None) -> Refusal | None:
        """Why ``spec`` cannot be taken behind ``waiting`` others, or None. ``down``: no pipeline serves or will."""
        if down is not None:
            kind: FailureKind = "shutting_down" if down.kind == "shutting_down" else "not_ready"
            return kind, down.sentence
        total = len(spec.prompt) + spec.max_tokens
        if total > self.context_tokens:
            return "too_long", (
                f"prompt ({len(spec.prompt)} tokens) and max_tokens ({spec.max_tokens}) come to {total} tokens; "
                f"this server holds {self.context_tokens}"
            )
        if waiting >= self._queue_requests_max:
            return "overloaded", f"{waiting} requests are waiting already; try again in a moment"
        return None


def outgrown(blocks: int, kv_blocks: int) -> str:
    """Why a request that may come to need ``blocks`` ends when a pipeline comes up again with ``kv_blocks``."""
    return (
        f"the stages that were brought up again have room for {kv_blocks} KV blocks of {BLOCK_TOKENS} tokens, and this request "
        f"may need {blocks}; try again with a smaller max_tokens, or when there is more memory"
    )
