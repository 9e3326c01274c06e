"""Watches one refactoring as it happens: tells its progress to whoever asked for it, and measures what it cost.

Owns the report. Reads the scheduler's counts and token times; changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import numpy as np
import trio

from ..runtime.interface import WeightSources
from .change import Change
from .coordinator_events import Ended, FromWorker
from .messages import CopyProgress, LoadProgress
from .refactor import Pauses, Phase, RefactorEvent, RefactorFailed, RefactorProgress, RefactorReport
from .refactor_feed import RefactorFeed
from .scheduler_machine import SchedulerCounts
from .token_times import BEFORE_S, TokenTimes

GAP_S_MAX = 10.0
"""How long a report waits for the next token of each request."""
LOOK_S = 0.02
"""How often it looks."""
_SENTENCES: dict[Phase, str] = {
    "plan": "writing the plan down",
    "load": "starting workers and loading weights",
    "copy": "opening links and copying pages",
    "commit": "writing the decision down",
    "switch": "crossing the cut",
    "release": "letting go of what is not needed any more",
    "abort": "breaking off; the old stages serve on",
}


@dataclass(slots=True)
class _Bytes:
    """Bytes done and in all, by worker, of the present phase."""

    done: dict[int, int] = field(default_factory=dict)
    total: dict[int, int] = field(default_factory=dict)


class ChangeWatch:
    """One change, from the request to its report. Iterate over it for events; several readers may, each from the start."""

    def __init__(self, times: TokenTimes, counts: Callable[[], SchedulerCounts]) -> None:
        self._times = times
        self._counts = counts
        self._counts_before = counts()
        self._began_s = trio.current_time()
        self._phases: list[tuple[Phase, float]] = []
        self._bytes = _Bytes()
        self._change: Change | None = None
        self._feed = RefactorFeed()
        times.watch(True)

    def events(self) -> AsyncGenerator[RefactorEvent, None]:
        """Progress, then one final event. Leaving early changes nothing."""
        return self._feed.events()

    @property
    def is_over(self) -> bool:
        """Whether the last event came."""
        return self._feed.final is not None

    # --- told by the coordinator ---

    def entered(self, change: Change, phase: Phase) -> None:
        """The change entered a phase."""
        self._change = change
        self._phases.append((phase, trio.current_time()))
        self._bytes = _Bytes()
        self._feed.tell(RefactorProgress(change.epoch, phase, 0, 0, _SENTENCES[phase]))

    def said(self, message: FromWorker) -> None:
        """A worker spoke; if of progress, it is passed on in sum."""
        phase = self._phases[-1][0] if self._phases else "plan"
        counted = self._bytes
        if isinstance(message, LoadProgress) and phase == "load":
            counted.done[message.worker], counted.total[message.worker] = message.done_bytes, message.total_bytes
        elif isinstance(message, CopyProgress) and phase == "copy":
            counted.done[message.worker] = message.sent_bytes
            counted.total[message.worker] = message.sent_bytes + message.remaining_bytes
        else:
            return
        done, total = sum(counted.done.values()), sum(counted.total.values())
        self._feed.tell(RefactorProgress(message.epoch, phase, done, total, _SENTENCES[phase]))

    def failed(self, ended: Ended) -> None:
        """The change is over, and did not come off."""
        assert ended.reason
        self._finish(RefactorFailed(ended.reason, ended.sentence))

    async def succeeded(self) -> None:
        """The change is over. Its report waits for the next token of each request: the gap across the cut counts whole."""
        ended_s = trio.current_time()
        try:
            with trio.move_on_after(GAP_S_MAX):
                while self._times.is_owed(ended_s):  # noqa: ASYNC110 - the scheduler knows no watchers
                    await trio.sleep(LOOK_S)
        finally:
            self._finish(self._report(ended_s))

    def _finish(self, final: RefactorEvent) -> None:
        self._times.watch(False)
        self._feed.tell(final)

    # --- measuring ---

    def _report(self, ended_s: float) -> RefactorReport:
        change = self._change
        assert change is not None
        copied, before, after = change.copied(), self._counts_before, self._counts()
        preempted = after.preemptions - before.preemptions
        return RefactorReport(
            epoch=change.epoch,
            strategy=change.strategy,
            stages=tuple(f"{stage.first_name}…{stage.last_name} on {stage.device}" for stage in change.route.stages),
            phase_ms=self._phase_ms(ended_s),
            weights=self._weights(change),
            kv_sent_bytes=copied.sent_bytes,
            kv_resent_bytes=copied.resent_bytes,
            kv_final_bytes=copied.final_bytes,
            kv_rounds=copied.rounds,
            residual_tokens=copied.residual_tokens,
            cut_step=change.cut_step(),
            pauses=_pauses(self._times.pauses_s(self._began_s, ended_s)),
            tpot_before_ms=_ms(self._times.gap_s(self._began_s - BEFORE_S, self._began_s)),
            tpot_load_ms=_ms(self._gap_in("load")),
            tpot_copy_ms=_ms(self._gap_in("copy")),
            requests_lost=after.lost - before.lost,
            requests_preempted=preempted,
            requests_reprefilled=after.reprefills - before.reprefills + preempted,
        )

    def _phase_ms(self, ended_s: float) -> dict[str, float]:
        ends = [*(begin for _, begin in self._phases[1:]), ended_s]
        return {phase: round((end - begin) * 1000, 3) for (phase, begin), end in zip(self._phases, ends, strict=True)}

    def _gap_in(self, phase: Phase) -> float | None:
        ends = [*(begin for _, begin in self._phases[1:]), trio.current_time()]
        for (name, begin), end in zip(self._phases, ends, strict=True):
            if name == phase:
                return self._times.gap_s(begin, end)
        return None

    def _weights(self, change: Change) -> WeightSources:
        found = [facts.weights for worker in change.route.workers if (facts := change.facts(worker)) is not None]
        return WeightSources(
            kept_bytes=sum(weights.kept_bytes for weights in found),
            warm_bytes=sum(weights.warm_bytes for weights in found),
            peer_bytes=sum(weights.peer_bytes for weights in found),
            disk_bytes=sum(weights.disk_bytes for weights in found),
        )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _pauses(seconds: list[float]) -> Pauses:
    if not seconds:
        return Pauses(0, None, None, None)
    p50, p99 = np.percentile(seconds, [50, 99])
    return Pauses(len(seconds), _ms(float(p50)), _ms(float(p99)), _ms(max(seconds)))
