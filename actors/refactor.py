"""What a refactoring looks like from outside: how it is asked for, what is told while it runs, and what it says at its end.

Owns the contract between the gateway (and so the SDK and the command line) and whoever refactors. Values only. It must
never know how a plan is made or carried out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal, Protocol, Self

import msgspec

from ..runtime.interface import WeightSources
from .route import Strategy

Phase = Literal["plan", "load", "copy", "commit", "switch", "release", "abort"]
"""In this order, "abort" instead of whatever had not begun: choose the route; start workers and read weights; open links and
pre-copy pages; write the decision down; cross the cut; let go of the old."""


class RefactorRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is wanted: exactly one of ``stages``, ``partition``, ``move`` and ``replicas`` is given.

    ``partition`` is "7,9,8,6" (decoder layers) or "0:15,15:33" (atoms), ``move`` "12-17:cpu:3" (layers 12 to 17 to that
    device), ``replicas`` how many pipelines serve the model; the others concern every replica, one after the other, or only
    ``replica``. ``allow_preempt`` lets the change begin requests anew whose KV would not fit any more.
    """

    stages: int | None = None
    partition: str | None = None
    move: str | None = None
    replicas: int | None = None
    replica: int | None = None
    strategy: Strategy = "precopy"
    allow_preempt: bool = False


class RefactorProgress(msgspec.Struct, frozen=True, tag="progress", tag_field="kind"):
    """One thing that happened to ``replica``. ``done`` of ``total`` bytes in phases "load" and "copy" (0 of 0: not known yet)."""

    epoch: int
    phase: Phase
    done: int
    total: int
    sentence: str
    replica: int = 0


class Pauses(msgspec.Struct, frozen=True):
    """Over the requests under way: longest inter-token gap that overlaps the change less its median gap in the 30 s before.

    The paper gives no definition of a pause; this is an operator's (issue 3). None where no request was under way.
    """

    requests: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class RefactorReport(msgspec.Struct, frozen=True, tag="report", tag_field="kind"):
    """How a refactoring went. ``phase_ms`` has an entry per phase gone through.

    It is about one ``replica`` that was changed, started (no KV moves then, and ``pauses`` and ``tpot`` are those of the oldest
    replica meanwhile), or retired (its ``stages`` are empty, ``cut_step`` is -1, and requests that it did not finish are
    "reprefilled" elsewhere). Where several were, ``earlier`` has the reports of those before it.

    The ``tpot`` fields hold medians of the inter-token gap: in the 30 s before, while workers started and weights were loaded,
    and while pages were copied; None where no token fell into the phase.
    """

    epoch: int
    strategy: Strategy
    stages: tuple[str, ...]
    phase_ms: dict[str, float]
    weights: WeightSources
    kv_sent_bytes: int
    kv_resent_bytes: int
    kv_final_bytes: int
    kv_rounds: int
    residual_tokens: int
    cut_step: int
    pauses: Pauses
    tpot_before_ms: float | None
    tpot_load_ms: float | None
    tpot_copy_ms: float | None
    requests_lost: int
    requests_preempted: int
    requests_reprefilled: int
    replica: int = 0
    deed: Literal["changed", "started", "retired"] = "changed"
    earlier: tuple[RefactorReport, ...] = ()


class RefactorFailed(msgspec.Struct, frozen=True, tag="failed", tag_field="kind"):
    """It did not come off; ``sentence`` says why.

    "refused" and "aborted": the stages of before serve on. "recovered": a worker died after the cut; the new stages are being
    brought up again, and every request is begun anew with the tokens that it has. "lost": the cluster's leader was lost on the
    way, and what it had decided is carried through by its successor: whichever stages serve then are shown in its status.
    """

    reason: Literal["refused", "aborted", "recovered", "lost"]
    sentence: str


RefactorEvent = RefactorProgress | RefactorReport | RefactorFailed
"""Any number of `RefactorProgress`, then exactly one of the others."""


class RefactorRefusedError(Exception):
    """The request cannot be carried out; nothing was changed. The sentence says what to do instead."""


class BusyRefusedError(RefactorRefusedError):
    """Not now; in a moment perhaps."""

    @classmethod
    def under_way(cls, what: str) -> Self:
        """``what`` has to end first."""
        return cls(f"{what} is still under way; try again when it is done")


class SameShapeRefusedError(RefactorRefusedError):
    """Nothing would change."""


class Refactorer(Protocol):
    """Whoever can change a running pipeline."""

    def refactor(self, request: RefactorRequest) -> AsyncGenerator[RefactorEvent, None]:
        """Carry ``request`` out, from the first step of the iteration on.

        That step raises `RefactorRefusedError` where the request is refused at once. Closing the generator early does not
        break the change off.
        """
        ...
