"""Every message that crosses between processes, grouped by conversation. This file is the protocol.

Each message says who sends it to whom, what answers it, and what happens if it is lost. Links are ordered and lossless
until a peer is lost (see ``transport.interface``). The coordinator's commands are more careful than that: each carries its
epoch, means the same the second time, and is sent again until it is answered, so that a coordinator may start anew at any
point. Integers are epochs, steps, workers and ids of ours, never a client's. Arrays travel as little-endian int32 bytes.
"""

from __future__ import annotations

import msgspec

from ..runtime.interface import EngineSpec, SampledToken, SamplingParams, StageFacts
from ..transport.codec import Codec
from .layer_pages import LayerPages
from .link_place import LinkPlace

PROTOCOL_VERSION = 4
"""Sent in `Hello`; a worker that speaks another is refused."""


class Message(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    """Base of all messages; the tag is the class name."""


# --- worker -> its pool: life of a worker process ------------------------------------------------------------------


class Hello(Message, frozen=True, tag=True):
    """Worker → pool, once, when its process is up. Lost: the process is killed."""

    worker: int
    pid: int
    protocol: int


class Drain(Message, frozen=True, tag=True):
    """Pool → worker: finish the steps you have, then leave. Answered by the end of the process."""

    reason: str


class StageFailed(Message, frozen=True, tag=True):
    """Worker → coordinator: it cannot go on at all; ``sentence`` is for people. The process ends after it."""

    worker: int
    error: str
    sentence: str


class StageReport(Message, frozen=True, tag=True):
    """Worker → pool, once a second: facts for `flexpipe ps` and metrics. Not answered; a lost one is not missed."""

    worker: int
    steps: int
    busy_s: float
    peak_rss_bytes: int


# --- coordinator <-> workers: making the next epoch ----------------------------------------------------------------


class Prepare(Message, frozen=True, tag=True):
    """Coordinator → worker of the next route: hold atoms ``[first_atom, end_atom)`` for ``epoch``, beside what you hold.

    ``stage`` is its place in the route. Answered by `LoadProgress`..., then `Loaded`, `HandoffFailed` or `StageFailed`.
    """

    epoch: int
    stage: int
    first_atom: int
    end_atom: int
    spec: EngineSpec


class LoadProgress(Message, frozen=True, tag=True):
    """Worker → coordinator, now and then while it loads. Not answered."""

    epoch: int
    worker: int
    done_bytes: int
    total_bytes: int


class Loaded(Message, frozen=True, tag=True):
    """Worker → coordinator: the weights of ``epoch`` are in. Answered by `Open` once every worker's are."""

    epoch: int
    worker: int
    facts: StageFacts


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """KV pages of ``layers`` (of ``page_bytes[i]`` each) change their home. The acquirer binds ``place``."""

    donor: int
    acquirer: int
    place: LinkPlace
    layers: tuple[int, ...]
    page_bytes: tuple[int, ...]


class Open(Message, frozen=True, tag=True):
    """Coordinator → every worker of the old and the next route: links, room and pages for ``epoch``. Answered by `Prepared`.

    A worker of the next route makes room for ``kv_blocks`` and opens its activation links: it binds ``upstream`` (None on the
    first stage) and connects to ``downstream`` (None on the last). A donor has a transfer that names it: it starts to copy
    pages if ``precopy``. ``live`` is a bit per block (little-endian bit order): the blocks that requests hold now. ``donors``
    workers give pages, and share what copying may cost those who serve meanwhile.
    """

    epoch: int
    kv_blocks: int
    upstream: LinkPlace | None
    downstream: LinkPlace | None
    transfers: tuple[Transfer, ...]
    precopy: bool
    live: bytes
    donors: int = 1


class CopyProgress(Message, frozen=True, tag=True):
    """Donor → coordinator, now and then while it copies. Not answered."""

    epoch: int
    worker: int
    sent_bytes: int
    remaining_bytes: int


class Prepared(Message, frozen=True, tag=True):
    """Worker → coordinator: its vote for ``epoch``. It can take part in the cut, and will wait for it for ever."""

    epoch: int
    worker: int
    kv_bytes: int


class Confirm(Message, frozen=True, tag=True):
    """Coordinator → worker: answer with `Switched` if you are past the cut of ``epoch``, else when you are."""

    epoch: int


class CopyTotals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one donor sent for one epoch: ``final_bytes`` of ``sent_bytes`` went after the cut, ``resent_bytes`` were sent before.

    ``residual_tokens`` is the most tokens of one request whose KV crossed after the cut.
    """

    sent_bytes: int = 0
    resent_bytes: int = 0
    final_bytes: int = 0
    rounds: int = 0
    residual_tokens: int = 0


class Switched(Message, frozen=True, tag=True):
    """Worker → coordinator: it ran every step before the cut ``step``, sent what it gives away and has what it was given."""

    epoch: int
    worker: int
    step: int
    copied: CopyTotals


class Release(Message, frozen=True, tag=True):
    """Coordinator → worker, once all are past the cut: let go of what ``epoch`` does not need. Answered by `Released`."""

    epoch: int


class Released(Message, frozen=True, tag=True):
    """Worker → coordinator: done; ``freed_bytes`` of weights and pages."""

    epoch: int
    worker: int
    freed_bytes: int


class Abort(Message, frozen=True, tag=True):
    """Coordinator → worker: ``epoch`` will never be; let go of what was made for it. Answered by `Aborted`."""

    epoch: int
    reason: str


class Aborted(Message, frozen=True, tag=True):
    """Worker → coordinator: nothing of ``epoch`` is left."""

    epoch: int
    worker: int


class HandoffFailed(Message, frozen=True, tag=True):
    """Worker → coordinator: it cannot take part in ``epoch``, for the reason in ``sentence``; what it served it still serves."""

    epoch: int
    worker: int
    sentence: str


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


class Cut(Message, frozen=True, tag=True):
    """Scheduler → every worker of the old and the next route, among the plans: steps from ``step`` on are ``epoch``'s.

    Every plan before it was of an earlier epoch, every plan after it is of ``epoch``. ``live`` as in `Open`: the blocks that
    requests hold at the cut, so what donors must hand over. With ``abandon`` the earlier plans need not run any more: their
    pipeline is broken, their requests start anew. Answered by `Switched` (to the coordinator). Lost: the worker is lost.
    """

    epoch: int
    step: int
    live: bytes
    abandon: bool


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


# --- donor <-> acquirer: pages -------------------------------------------------------------------------------------


class PageRun(Message, frozen=True, tag=True):
    """Donor → acquirer: ``pages``, one after another, in a ring slot or the second part; ``checksum`` is over all their bytes.

    Answered by nothing, or by `PagesRefused`.
    """

    epoch: int
    pages: tuple[LayerPages, ...]
    checksum: int
    slot: int = -1


class PagesEnd(Message, frozen=True, tag=True):
    """Donor → acquirer, after the cut: every live page of this transfer was sent."""

    epoch: int


class PagesWelcome(Message, frozen=True, tag=True):
    """Acquirer → donor, once, when its end and the ring beside it are there: pages may be sent."""

    epoch: int


class PagesRefused(Message, frozen=True, tag=True):
    """Acquirer → donor: a `PageRun` was not what was agreed; ``sentence`` says why. The donor sends its ``pages`` again."""

    epoch: int
    pages: tuple[LayerPages, ...]
    sentence: str


ToStage = Prepare | Open | Confirm | Release | Abort | Drain | StepPlan | Cut
FromStage = (
    Hello
    | LoadProgress
    | Loaded
    | CopyProgress
    | Prepared
    | Switched
    | Released
    | Aborted
    | HandoffFailed
    | StageFailed
    | StageReport
    | StepResult
)
ToAcquirer = PageRun | PagesEnd
ToDonor = PagesWelcome | PagesRefused

TO_STAGE: Codec[ToStage] = Codec(ToStage)
FROM_STAGE: Codec[FromStage] = Codec(FromStage)
ACTIVATION: Codec[Activation] = Codec(Activation)
TO_ACQUIRER: Codec[ToAcquirer] = Codec(ToAcquirer)
TO_DONOR: Codec[ToDonor] = Codec(ToDonor)
"""One codec a conversation: each end accepts only what the other may say."""
