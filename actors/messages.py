"""Every message that crosses between processes, grouped by conversation. This file is the protocol.

Each message says who sends it to whom, what answers it, and what happens if it is lost. Links are ordered and lossless
until a peer is lost (see ``transport.interface``), so "lost" below means "the peer was lost". Integers are epochs, steps
and ids of ours, never a client's. Arrays travel as little-endian int32 bytes.
"""

from __future__ import annotations

import msgspec

from ..runtime.interface import SampledToken, SamplingParams
from ..transport.codec import Codec

PROTOCOL_VERSION = 1
"""Sent in `Hello`; a supervisor refuses a stage that speaks another."""


class Message(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    """Base of all messages; the tag is the class name."""


# --- supervisor <-> stage: life of a stage process -----------------------------------------------------------------


class Hello(Message, frozen=True, tag=True):
    """Stage → supervisor, once, when its process is up. Answered by `Load`. Lost: the process is killed and replaced."""

    stage: int
    pid: int
    protocol: int


class Load(Message, frozen=True, tag=True):
    """Supervisor → stage: what to be. Answered by `LoadProgress`..., then `Loaded` or `StageFailed`."""

    epoch: int
    stage: int
    model_folder: str
    program_file: str
    first_atom: int
    end_atom: int
    device: str
    threads: int
    dtype: str
    deterministic: bool
    step_tokens_max: int


class LoadProgress(Message, frozen=True, tag=True):
    """Stage → supervisor, now and then while it loads. Not answered."""

    stage: int
    done_bytes: int
    total_bytes: int


class Loaded(Message, frozen=True, tag=True):
    """Stage → supervisor: weights are in. Answered by `Serve` once every stage of the epoch is loaded."""

    epoch: int
    stage: int
    weight_bytes: int
    kv_bytes_per_block: int
    memory_free_bytes: int
    layers: tuple[int, ...]
    backend: str


class Serve(Message, frozen=True, tag=True):
    """Supervisor → stage: make room for ``kv_blocks``, open the activation links, accept steps. Answered by `Serving`.

    ``upstream`` is the address this stage binds for activations ("" on the first stage), ``downstream`` the one it
    connects to ("" on the last).
    """

    epoch: int
    kv_blocks: int
    upstream: str
    downstream: str


class Serving(Message, frozen=True, tag=True):
    """Stage → supervisor: ready for steps of ``epoch``."""

    epoch: int
    stage: int
    kv_bytes: int


class Drain(Message, frozen=True, tag=True):
    """Supervisor → stage: finish the steps you have, then leave. Answered by the end of the process."""

    reason: str


class StageFailed(Message, frozen=True, tag=True):
    """Stage → supervisor: this stage cannot go on; ``sentence`` is for people. The process ends after it."""

    stage: int
    error: str
    sentence: str


class StageReport(Message, frozen=True, tag=True):
    """Stage → supervisor, once a second: facts for `flexpipe ps` and metrics. Not answered; a lost one is not missed."""

    stage: int
    steps: int
    busy_s: float
    peak_rss_bytes: int


# --- scheduler <-> stages: steps -----------------------------------------------------------------------------------


class AdmitSampling(Message, frozen=True, tag=True):
    """Inside `StepPlan`, for the last stage only: sampling state of a request it has not seen in this epoch.

    ``tokens`` int32: prompt and delivered tokens where ``params`` need history, else empty.
    """

    request: int
    params: SamplingParams
    prompt_tokens: int
    tokens: bytes


class StepPlan(Message, frozen=True, tag=True):
    """Scheduler → every stage of the epoch, in one total order: run exactly this batch. Answered by one `StepResult`.

    ``requests[r]`` is row r; the int32 byte fields are those of `runtime.interface.RaggedBatch` (``block_tables`` is
    [R, W] row-major). ``samples[i]`` is the row whose next token is drawn at ``sample_tokens[i]``. ``admit`` and
    ``retire`` bring the last stage's sampling state up to date before the step. Lost: the stage is lost.
    """

    epoch: int
    step: int
    requests: tuple[int, ...]
    token_ids: bytes
    positions: bytes
    row_starts: bytes
    block_tables: bytes
    sample_tokens: bytes
    samples: tuple[int, ...]
    admit: tuple[AdmitSampling, ...] = ()
    retire: tuple[int, ...] = ()


class StepResult(Message, frozen=True, tag=True):
    """Last stage → scheduler: the tokens of a step, parallel to the plan's ``samples``."""

    epoch: int
    step: int
    tokens: tuple[SampledToken, ...]


# --- stage -> stage: activations -----------------------------------------------------------------------------------


class Activation(Message, frozen=True, tag=True):
    """Stage s → stage s + 1: the hidden state of one step. Lost: the next stage sees its upstream lost.

    The tensor's bytes are the message's second part, or lie in slot ``slot`` of the link's shared ring where ``slot`` >= 0.
    """

    epoch: int
    step: int
    dtype: str
    shape: tuple[int, ...]
    slot: int = -1


ToStage = Load | Serve | Drain | StepPlan
FromStage = Hello | LoadProgress | Loaded | Serving | StageFailed | StageReport | StepResult

TO_STAGE: Codec[ToStage] = Codec(ToStage)
FROM_STAGE: Codec[FromStage] = Codec(FromStage)
ACTIVATION: Codec[Activation] = Codec(Activation)
"""One codec a conversation: each end accepts only what the other may say."""
