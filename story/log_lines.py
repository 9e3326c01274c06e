"""Log lines as records: decodes them, and counts those that are torn, foreign or doubled, which nobody then has to think of.

It must never know what an event means.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..actors.event_catalogue import BOUND, EVENTS, fault_of
from .log_files import LogFile

DOUBLES_MAX = 200_000
"""Lines that are remembered to know a double; later ones are taken as they are."""
_BEGIN, _END = b'{"time_s": ', b"}"


@dataclass(frozen=True, slots=True)
class Record:
    """One event: ``file`` is whose, ``fields`` all that it has. Times are the writer's clock's."""

    time_s: float
    event: str
    file: LogFile
    fields: dict[str, Any]

    @property
    def owner(self) -> tuple[int, int | None]:
        """The run of a process that wrote it, as its log says: clock, pid."""
        return self.file.clock, self.fields.get("pid")

    @property
    def replica(self) -> int:
        """The replica that it is about, -1 for none."""
        return int(self.fields.get("replica", -1))


class LogLines:
    """Decodes lines. ``skipped`` counts what was not, by kind; ``other_version`` events that are not as catalogued today."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.other_version = 0
        self._seen: set[tuple[int, int]] = set()

    def looks_whole(self, line: bytes) -> bool:
        """Whether it begins and ends as a line of ours; counts it where not."""
        if line.startswith(_BEGIN) and line.endswith(_END):
            return True
        if line.strip():
            self.skipped["torn" if line.startswith(b"{") or line.endswith(_END) else "foreign"] += 1
        return False

    def tear(self) -> None:
        """Count a line that has an end of ours and not the beginning."""
        self.skipped["torn"] += 1

    def record(self, line: bytes, file: LogFile) -> Record | None:
        """The event; None, counted, where the line is none or was there already."""
        if not self.looks_whole(line):
            return None
        try:
            fields = json.loads(line)
            time_s, event = float(fields.pop("time_s")), fields.pop("event")
        except (ValueError, KeyError, TypeError, RecursionError):
            self.skipped["torn"] += 1
            return None
        if not isinstance(event, str) or not math.isfinite(time_s) or not _is_flat(fields):
            self.skipped["foreign"] += 1
            return None
        key = (file.clock, hash(line))
        if key in self._seen:
            self.skipped["doubled"] += 1
            return None
        if len(self._seen) < DOUBLES_MAX:
            self._seen.add(key)
        if not _is_of_today(event, fields):
            self.other_version += 1
        return Record(time_s, event, file, fields)

    def sentence(self) -> str:
        """What was skipped, in one sentence; empty where nothing was."""
        parts = [f"{count} {kind}" for kind, count in sorted(self.skipped.items())]
        lines = f"Skipped lines: {', '.join(parts)}." if parts else ""
        others = f"{self.other_version} events are of another version of flexpipe." if self.other_version else ""
        return " ".join(part for part in (lines, others) if part)


def _is_flat(fields: dict[str, Any]) -> bool:
    """Whether fields that are numbers in any version are."""
    numbers = ("replica", "pid", "request", "epoch", "step", "worker")
    return all(isinstance(fields.get(name, 0), int) for name in numbers)


def _is_of_today(event: str, fields: dict[str, Any]) -> bool:
    own = EVENTS[event].fields if event in EVENTS else ()
    return not fault_of(event, {name: value for name, value in fields.items() if name not in BOUND or name in own})
