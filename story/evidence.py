"""What the logs have of a subject's time: the second pass. Steps are added up as they come, everything else is kept, within bounds.

Owns which events concern a story. It must never know what they prove.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .log_files import Block, LogFolders
from .log_lines import LogLines, Record
from .subject import Leg, Subject

RECORDS_MAX = 20_000
"""Events that are kept; a story of more is nothing that anybody reads, and says so."""
PROMPT_STEPS_MAX = 20_000
"""Steps with somebody's prompt in them that are kept."""
STALLS_MAX = 20_000
"""Stalls of other requests that are kept."""
BEFORE_S = 5.0
"""So long before the subject's time a cause may lie."""
AFTER_S = 5.0
"""So long after it somebody may tell what came of it: that a request stalled is told with its next token."""
PLACES = (b'"worker_opened"', b'"worker_loading"')
"""Events that say which worker is which stage: wanted however old they are."""
CROSSINGS = (b'"worker_loaded"', b'"worker_switched"', b'"worker_released"', b'"cut_sent"', b'"change_phase"')
"""Events that come in pairs at two processes: wanted however old they are where there are several clocks."""

_WHO = rb'^\{"time_s": ([\d.]+), "process": "([^"]+)", "pid": \d+,(?: "node": "[^"]*",)? "replica": (\d+),(?: "node": "[^"]*",)? '
_STEP = re.compile(
    _WHO + rb'"epoch": (\d+), "step": \d+, "tokens": \d+, "compute_s": ([\d.e-]+), "event": "stage_step"\}$'
)
_SENT = re.compile(_WHO + rb'"epoch": \d+, "step": \d+, "rows": (\d+), "tokens": (\d+), "event": "step_sent"\}$')
_TIME = re.compile(rb'^\{"time_s": ([\d.]+)[,}]')
_GAP = re.compile(rb'"gap_s": ([\d.]+)')
_NAME = re.compile(rb'"event": "(\w+)"')
_OF_ONE_REQUEST = frozenset(
    f"request_{end}"
    for end in ("queued", "admitted", "decoding", "requeued", "stalled", "ended", "cancelled", "failed")
)


@dataclass(slots=True)
class StageWork:
    """What a worker computed for one epoch in the subject's time."""

    steps: int = 0
    compute_s: float = 0.0
    longest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PromptStep:
    """A step that had more tokens than rows: somebody's prompt."""

    time_s: float
    tokens: int


@dataclass(slots=True)
class Evidence:
    """See the module. ``work`` and ``places`` are by (clock, process, replica, epoch).

    Of other requests: how many came in the subject's time, had to wait again, and stalled for how long (the first `STALLS_MAX`).
    """

    records: list[Record] = field(default_factory=list)
    work: dict[tuple[int, str, int, int], StageWork] = field(default_factory=dict)
    prompts: list[PromptStep] = field(default_factory=list)
    places: dict[tuple[int, str, int, int], Record] = field(default_factory=dict)
    crossings: list[Record] = field(default_factory=list)
    others: int = 0
    requeued: int = 0
    stalls_s: list[float] = field(default_factory=list)
    left_out: int = 0


class Gathering:
    """The second pass over ``folders`` for ``subject``."""

    def __init__(self, subject: Subject, folders: LogFolders, lines: LogLines) -> None:
        self.evidence = Evidence()
        self._subject = subject
        self._folders = folders
        self._lines = lines
        self._begin_s = subject.begin_s - BEFORE_S
        self._steps_end_s = float("inf") if subject.is_open else subject.end_s
        self._end_s = float("inf") if subject.is_open else subject.end_s + AFTER_S
        self._numbers = {b'"request": %d,' % leg.number for leg in subject.legs}
        self._replicas = {leg.replica for leg in subject.legs} or {subject.replica}
        clocks = {file.clock for file in folders.files}
        self._always = PLACES + (CROSSINGS if len(clocks) > 1 else ())

    def run(self) -> Evidence:
        """Read everything once."""
        for block in self._folders.blocks():
            if block.may_hold(self._begin_s, self._end_s):
                self._read(block)
            else:
                self._read_old(block)
        found = self.evidence
        found.records.sort(key=lambda record: record.time_s)
        found.prompts.sort(key=lambda step: step.time_s)
        return found

    def _read_old(self, block: Block) -> None:
        for needle in self._always:
            for line in block.lines_with(needle):
                self._keep(self._lines.record(line, block.file), in_time=False)

    def _read(self, block: Block) -> None:
        for line in block.data.split(b"\n"):
            if line.endswith(b'"stage_step"}'):
                self._step(line, block)
            elif line.endswith(b'"step_sent"}'):
                self._sent(line)
            elif line:
                self._other(line, block)

    def _step(self, line: bytes, block: Block) -> None:
        match = _STEP.match(line)
        if match is None:
            self._lines.tear()
            return
        time_s, process, replica, epoch, compute_s = match.groups()
        if not self._subject.begin_s <= float(time_s) <= self._steps_end_s or int(replica) not in self._replicas:
            return
        key = (block.file.clock, process.decode(), int(replica), int(epoch))
        work = self.evidence.work.get(key)
        if work is None:
            work = self.evidence.work[key] = StageWork()
        seconds = float(compute_s)
        work.steps += 1
        work.compute_s += seconds
        work.longest_s = max(work.longest_s, seconds)

    def _sent(self, line: bytes) -> None:
        match = _SENT.match(line)
        if match is None:
            self._lines.tear()
            return
        rows, tokens = int(match[4]), int(match[5])
        if tokens == rows or int(match[3]) not in self._replicas or len(self.evidence.prompts) >= PROMPT_STEPS_MAX:
            return
        if self._begin_s <= (time_s := float(match[1])) <= self._end_s:
            self.evidence.prompts.append(PromptStep(time_s, tokens))

    def _other(self, line: bytes, block: Block) -> None:
        if not self._lines.looks_whole(line):
            return
        name = _NAME.search(line)
        event = name[1].decode() if name is not None else ""
        if event in _OF_ONE_REQUEST and not any(number in line for number in self._numbers):
            self._of_others(event, line)
            return
        self._keep(self._lines.record(line, block.file), in_time=True)

    def _of_others(self, event: str, line: bytes) -> None:
        time, found, subject = _TIME.match(line), self.evidence, self._subject
        if time is None or float(time[1]) < subject.begin_s:
            return
        gap = _GAP.search(line)  # it is told of at its end
        if float(time[1]) - (float(gap[1]) if gap is not None else 0.0) > subject.end_s:
            return
        if event == "request_queued":
            found.others += 1
        elif event == "request_requeued":
            found.requeued += 1
        elif gap is not None and len(found.stalls_s) < STALLS_MAX:
            found.stalls_s.append(float(gap[1]))

    def _keep(self, record: Record | None, *, in_time: bool) -> None:
        if record is None:
            return
        name = f'"{record.event}"'.encode()
        if name in PLACES and isinstance(record.fields.get("epoch"), int):
            place = (record.file.clock, str(record.fields.get("process")), record.replica, record.fields["epoch"])
            if record.event == "worker_loading" or place not in self.evidence.places:
                self.evidence.places[place] = record
        if name in CROSSINGS and len(self.evidence.crossings) < RECORDS_MAX:
            self.evidence.crossings.append(record)
        if not in_time or not self._begin_s <= record.time_s <= self._end_s or not self._concerns(record):
            return
        if len(self.evidence.records) < RECORDS_MAX:
            self.evidence.records.append(record)
        else:
            self.evidence.left_out += 1

    def _concerns(self, record: Record) -> bool:
        if record.event in _OF_ONE_REQUEST:
            return Leg(record.owner, record.replica, record.fields.get("request", -1)) in self._subject.legs
        trace = record.fields.get("http_request") or record.fields.get("trace")
        if trace is not None or record.event.startswith("http_"):
            return trace == self._subject.trace
        return record.replica in (-1, *self._replicas)
