"""What happened to the pipeline meanwhile: changes with their phases, deaths of workers, and times without a pipeline.

Made from records, in order of time. It must never know whose story it is for.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

from .evidence import Evidence
from .log_lines import Record
from .telling import Span

PHASES = {
    "plan": "the new route is written down",
    "load": "stages start and read weights",
    "copy": "links are opened, KV pages copied ahead",
    "commit": "the decision is written to disk",
    "switch": "stages go over at the cut",
    "release": "the old stages let go",
    "abort": "what was prepared is taken back",
}
"""What each phase of a change does."""


@dataclass(slots=True)
class Change:
    """One epoch in the making; ``phases`` with their beginnings."""

    replica: int
    epoch: int
    strategy: str
    phases: list[tuple[float, str]] = field(default_factory=list)
    end_s: float = float("inf")
    outcome: str = ""
    sentence: str = ""

    @property
    def name(self) -> str:
        """As people call it."""
        kind = {"start": "the start", "recover": "the recovery"}.get(self.strategy, f"the change ({self.strategy})")
        return f"{kind} to epoch {self.epoch}"

    def spans(self, until_s: float) -> list[Span]:
        """Its phases; one that has not ended lasts until ``until_s``."""
        ends = [begin_s for begin_s, _ in self.phases[1:]] + [min(self.end_s, until_s)]
        return [
            Span(begin_s, max(begin_s, end_s), phase, PHASES.get(phase, ""))
            for (begin_s, phase), end_s in zip(self.phases, ends, strict=True)
        ]

    def serves_at(self, time_s: float) -> bool:
        """Whether its epoch served by then."""
        return any(phase == "switch" and begin_s <= time_s for begin_s, phase in self.phases)

    def phase_at(self, time_s: float) -> str:
        """Its phase then, "" where it was not under way."""
        if time_s > self.end_s:
            return ""
        return next((phase for begin_s, phase in reversed(self.phases) if begin_s <= time_s), "")


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that ended out of order; ``how`` says by what, ``stage`` in which epoch it was which."""

    time_s: float
    worker: int
    how: str
    stage: str

    @property
    def says(self) -> str:
        """In words."""
        return f"{self.stage} {self.how}"


@dataclass(slots=True)
class Happenings:
    """See the module."""

    changes: list[Change] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    outages: list[tuple[float, float, str]] = field(default_factory=list)

    @classmethod
    def of(cls, evidence: Evidence, replica: int) -> Happenings:
        """Those of one replica."""
        records = [record for record in evidence.records if record.replica == replica]
        changes = _changes(records)
        return cls(changes, _deaths(records, evidence, changes), _outages(records))

    def death_before(self, time_s: float, within_s: float) -> Death | None:
        """The first death among those that led to what was seen at ``time_s``."""
        return next((d for d in self.deaths if time_s - within_s <= d.time_s <= time_s + within_s / 2), None)

    def during(self, time_s: float) -> str:
        """Which change was under way then, as an addition to a sentence; "" where none was."""
        for change in self.changes:
            if phase := change.phase_at(time_s):
                return f" while {change.name} was in phase {phase}"
        return ""


def _changes(records: Sequence[Record]) -> list[Change]:
    found: dict[tuple[object, ...], Change] = {}
    for record in records:
        epoch = record.fields.get("epoch")
        if record.event == "change_phase" and isinstance(epoch, int):
            strategy = str(record.fields.get("strategy", "?"))
            change = found.setdefault((record.owner, epoch), Change(record.replica, epoch, strategy))
            change.phases.append((record.time_s, str(record.fields.get("phase", "?"))))
        elif record.event == "change_ended" and (record.owner, epoch) in found:
            change = found[record.owner, epoch]
            change.end_s, change.outcome = record.time_s, str(record.fields.get("outcome", ""))
            change.sentence = str(record.fields.get("sentence", ""))
    return list(found.values())


def _deaths(records: Sequence[Record], evidence: Evidence, changes: Sequence[Change]) -> list[Death]:
    lost: dict[int, float] = {}
    failed: dict[str, str] = {}
    retired: set[object] = set()
    found = []
    for record in records:
        worker = record.fields.get("worker")
        if record.event == "worker_failed":
            failed[str(record.fields.get("process"))] = str(record.fields.get("sentence"))
        elif record.event == "worker_retired" and worker not in lost:
            retired.add(worker)
        elif record.event == "worker_lost" and isinstance(worker, int):
            lost.setdefault(worker, record.time_s)
        elif record.event == "worker_exited" and isinstance(worker, int) and record.fields.get("code"):
            if worker in retired:
                continue
            time_s = min(record.time_s, lost.get(worker, record.time_s))
            how = _how(int(record.fields["code"]), failed.get(f"worker-{worker}", ""))
            unborn = frozenset(change.epoch for change in changes if not change.serves_at(time_s))
            found.append(Death(time_s, worker, how, stage_of(evidence, record.replica, worker, time_s, unborn)))
    return sorted(found, key=lambda death: death.time_s)


def _how(code: int, failure: str) -> str:
    if failure:
        return f"failed: {failure}"
    if code < 0:
        try:
            return f"was killed ({signal.Signals(-code).name})"
        except ValueError:
            return f"was killed (signal {-code})"
    return f"ended with exit code {code}"


def stage_of(evidence: Evidence, replica: int, worker: int, time_s: float, unborn: frozenset[int] = frozenset()) -> str:
    """Which stage the worker was at that time, as "stage 1 (worker 3 on cpu:1)".

    That of an epoch in the making (one of ``unborn``) where it had no other.
    """
    of_it = [
        record
        for (_, process, its_replica, _), record in evidence.places.items()
        if process == f"worker-{worker}" and its_replica == replica and record.time_s <= time_s and _stage(record) >= 0
    ]
    serving = [record for record in of_it if record.fields.get("epoch") not in unborn]
    latest = max(serving or of_it, key=lambda record: record.time_s, default=None)
    if latest is None:
        return f"worker {worker}"
    device = latest.fields.get("device")
    return f"stage {_stage(latest)} (worker {worker}{f' on {device}' if device else ''})"


def _stage(record: Record) -> int:
    stage = record.fields.get("stage", -1)
    return stage if isinstance(stage, int) else -1


def _outages(records: Sequence[Record]) -> list[tuple[float, float, str]]:
    found: list[tuple[float, float, str]] = []
    for record in records:
        if record.event == "pipeline_interrupted":
            found.append((record.time_s, float("inf"), str(record.fields.get("sentence", ""))))
        elif record.event == "pipeline_up" and found and found[-1][1] == float("inf"):
            found[-1] = (found[-1][0], record.time_s, found[-1][2])
    return found
