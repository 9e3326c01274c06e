"""What the gateway asks of whoever makes tokens: one request in, its tokens out, and what is true of the pipeline.

Owns the contract between the gateway and the scheduler, and nothing else. It must never know of HTTP, of text, of links
between stages or of how a token is made. Every `TokenSource` passes tests/actors/test_token_source_contract.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypedDict

import msgspec

from ..runtime.interface import SampledToken, SamplingParams

FailureKind = Literal["overloaded", "not_ready", "too_long", "stage_lost", "cancelled", "shutting_down"]
Finish = Literal["stop", "length"]


class GenerationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sequence to generate. ``prompt`` is not empty, ``max_tokens`` >= 1, ids lie in the vocabulary.

    ``stop_token_ids`` holds every token that ends the sequence, the model's end-of-sequence tokens included; a client
    that asked to ignore those gets a request without them. The source itself knows no end-of-sequence token. ``trace`` is the id
    by which logs tell of it, at whatever replica or node; "" for none.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    trace: str = ""


class TokenEvent(msgspec.Struct, frozen=True):
    """Output token number ``index`` (from 0). Indices ascend by one; none comes twice, none is left out.

    ``finish`` is set on the last event only: "stop" where ``token`` is one of the stop tokens (its text is not shown),
    "length" where it is output token number ``max_tokens``, or where the context is full.
    """

    index: int
    token: SampledToken
    finish: Finish | None = None


class GenerationFailedError(Exception):
    """A request was refused or lost. ``sentence`` is for people; ``retry_after_s`` is a hint, None where none is known.

    "overloaded", "not_ready", "too_long" and "shutting_down" come from entering `TokenSource.open`; "stage_lost",
    "cancelled" (by the operator, never by leaving early) and "shutting_down" may come while tokens arrive.
    """

    def __init__(self, kind: FailureKind, sentence: str, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.kind: FailureKind = kind
        self.sentence = sentence
        self.retry_after_s = retry_after_s


class StageStatus(TypedDict):
    """One stage of one replica as `flexpipe ps --json` shows it: atoms ``first_atom`` to ``last_atom``, ``layers`` by number.

    ``backend`` says what computes the stage, and why that.

    ``worker`` is the process's number, never used again in its replica. ``state`` is "gone", "starting", a phase of the change
    that is under way ("loading", "copying", ...) or "serving". Pages are KV blocks of one layer; every stage has as many.
    ``busy_s`` and ``steps`` count since the process started; both, and ``peak_rss_bytes``, are at most a second old.
    """

    replica: int
    stage: int
    worker: int
    state: str
    pid: int
    device: str
    epoch: int
    first_atom: str
    last_atom: str
    layers: list[int]
    backend: str
    weight_bytes: int
    weight_bytes_loaded: int
    weight_bytes_expected: int
    peak_rss_bytes: int
    busy_s: float
    steps: int
    kv_bytes: int
    kv_pages_used: int
    kv_pages_free: int


class ModelFacts(msgspec.Struct, frozen=True):
    """What clients may know of the model. ``context_tokens`` bounds prompt + output of one request."""

    name: str
    architecture: str
    layers: int
    context_tokens: int


class ReplicaStatus(msgspec.Struct, frozen=True):
    """One of the pipelines that serve a model; fields as in `PipelineStatus`."""

    replica: int
    ready: bool
    reason: str
    epoch: int
    running: int
    waiting: int


class PipelineStatus(msgspec.Struct, frozen=True):
    """What is true now. ``reason`` says in one sentence why no replica is ready, "" where one is.

    ``running`` requests hold KV pages, ``waiting`` ones do not yet. ``stages`` are in pipeline order, replica by replica;
    ``epoch`` is the highest of any, ``running`` and ``waiting`` are over all.
    """

    ready: bool
    reason: str
    epoch: int
    model: ModelFacts
    stages: tuple[StageStatus, ...]
    running: int
    waiting: int
    replicas: tuple[ReplicaStatus, ...] = ()


class TokenSource(Protocol):
    """Makes tokens. Bounded: it refuses with "overloaded" rather than queue without limit."""

    def open(
        self, request: GenerationRequest, outputs: tuple[int, ...] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[TokenEvent]]:
        """Submit ``request`` on entering; yield its tokens; cancel it and free its pages on leaving, at whatever point.

        ``outputs``, None for a new request, are the tokens of it that another source delivered, fewer than ``max_tokens`` and none
        of them a stop token: those after them are yielded, as they would have come there. It was accepted there, so a full
        queue does not refuse it.

        Entering raises `GenerationFailedError` at once where the request is refused; iteration raises it where the
        request is lost, after the tokens made before. The source never waits for its reader: events not yet read are
        kept, at most ``max_tokens`` of them, so that one slow client neither delays others nor takes unbounded memory.
        """
        ...

    def status(self) -> PipelineStatus:
        """What is true at this moment; never blocks, never raises."""
        ...
