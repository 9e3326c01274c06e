"""What a story is about: a request or a change, found in the logs by what the user said.

Owns the ways to say it, and the first pass over the logs. It must never know what happened to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..actors.config import ConfigError
from .log_files import LogFolders
from .log_lines import LogLines, Record

ID_CHARACTERS_MIN = 6
"""A shorter beginning of a request's id is more likely a mistake."""
OWN_RECORDS_MAX = 4096
"""Lines with one id that are kept: HTTP requests have at most some dozen sequences, each with a few."""
_ID = re.compile(rf"(?:chatcmpl-|cmpl-)?([0-9a-f]{{{ID_CHARACTERS_MIN},32}})")
_OF_CHANGES = ("start", "recover")
"""Strategies of changes that nobody asked for."""


@dataclass(frozen=True, slots=True)
class Leg:
    """A request at one scheduler: ``owner`` is the run of the process, ``number`` the scheduler's for it."""

    owner: tuple[int, int | None]
    replica: int
    number: int


@dataclass(slots=True)
class Subject:
    """A request (``trace``, and where it was), or a change (``epoch``). Seconds are the writers' clocks'."""

    trace: str = ""
    legs: set[Leg] = field(default_factory=set)
    epoch: int = -1
    replica: int = -1
    owner: tuple[int, int | None] = (0, None)
    begin_s: float = 0.0
    end_s: float = 0.0
    is_open: bool = False
    notes: list[str] = field(default_factory=list)


def find(asked: str, folders: LogFolders, lines: LogLines) -> Subject:
    """The subject that was asked for. Raises `ConfigError` where the logs have none, or what was said is no way to say one."""
    if asked == "last":
        return _last_request(folders, lines)
    if asked == "last-refactor":
        return _last_change(folders, lines)
    if asked.isdecimal() and len(asked) < ID_CHARACTERS_MIN:
        return _change(folders, lines, int(asked))
    match = _ID.fullmatch(asked)
    if match is None:
        raise ConfigError(
            f"{asked!r} is no request or epoch; give an id as in X-Request-Id (or at least {ID_CHARACTERS_MIN} characters of its "
            "beginning), the number of an epoch, last, or last-refactor"
        )
    return _request(folders, lines, match[1])


def _records(folders: LogFolders, lines: LogLines, needle: bytes) -> Iterator[Record]:
    for block in folders.blocks():
        for line in block.lines_with(needle):
            if (record := lines.record(line, block.file)) is not None:
                yield record


# --- requests ---


def _request(folders: LogFolders, lines: LogLines, beginning: str) -> Subject:
    by_trace: dict[str, list[Record]] = {}
    for record in _records(folders, lines, f'"{beginning}'.encode()):
        trace = _trace_of(record)
        if trace.startswith(beginning):
            by_trace.setdefault(trace, []).append(record)
            if len(by_trace[trace]) > OWN_RECORDS_MAX:
                raise ConfigError(
                    f"more than {OWN_RECORDS_MAX} lines are of request {trace}; these are no logs of flexpipe"
                )
    if not by_trace:
        raise ConfigError(f"no request in these logs has an id that begins with {beginning}")
    if len(by_trace) > 1:
        raise ConfigError(
            f"{len(by_trace)} requests have ids that begin with {beginning}: {', '.join(sorted(by_trace)[:3])}"
        )
    return _of_records(*by_trace.popitem())


def _of_records(trace: str, records: list[Record]) -> Subject:
    queued = [r for r in records if r.event == "request_queued" and isinstance(r.fields.get("request"), int)]
    ended = [r for r in records if r.event == "http_generation_ended"]
    begins = [r.time_s for r in queued] + [r.time_s - _number(r, "duration_s") for r in ended]
    if not begins:
        raise ConfigError(
            f"the logs do not say when request {trace} began: it was no request for tokens, or lines are missing"
        )
    return Subject(
        trace=trace,
        legs={Leg(r.owner, r.replica, r.fields["request"]) for r in queued},
        owner=queued[0].owner if queued else ended[0].owner,
        begin_s=min(begins),
        end_s=max(r.time_s for r in records),
        is_open=not ended,
    )


def _last_request(folders: LogFolders, lines: LogLines) -> Subject:
    """The one that ended last; where none did, the one that came last."""
    for needle in (b'"http_generation_ended"', b'"request_queued"'):
        last: tuple[float, str] | None = None
        for block in folders.blocks():
            line = _last_line(block.data, needle)
            if line and (record := LogLines().record(line, block.file)) and (trace := _trace_of(record)):
                last = max(last or (record.time_s, trace), (record.time_s, trace))
        if last is not None:
            return _request(folders, lines, last[1])
    raise ConfigError("no request is in these logs")


def _last_line(data: bytes, needle: bytes) -> bytes:
    at = data.rfind(needle)
    return b"" if at < 0 else data[data.rfind(b"\n", 0, at) + 1 : data.find(b"\n", at)]


def _trace_of(record: Record) -> str:
    return str(record.fields.get("http_request") or record.fields.get("trace") or "")


# --- changes ---


def _change(folders: LogFolders, lines: LogLines, epoch: int) -> Subject:
    return _latest([r for r in _of_changes(folders, lines) if r.fields["epoch"] == epoch], f"to epoch {epoch}")


def _last_change(folders: LogFolders, lines: LogLines) -> Subject:
    records = _of_changes(folders, lines)
    asked = {_change_key(r) for r in records if r.fields.get("strategy", "start") not in _OF_CHANGES}
    return _latest([r for r in records if _change_key(r) in asked] or records, "at all")


def _of_changes(folders: LogFolders, lines: LogLines) -> list[Record]:
    """What coordinators say of changes. Not found by the epoch: every step says that."""
    found = [r for name in (b'"change_phase"', b'"change_ended"') for r in _records(folders, lines, name)]
    return [r for r in found if isinstance(r.fields.get("epoch"), int)]


def _change_key(record: Record) -> tuple[object, ...]:
    return record.owner, record.replica, record.fields.get("epoch")


def _latest(records: list[Record], which: str) -> Subject:
    if not records:
        raise ConfigError(f"no change of the pipeline {which} is in these logs")
    latest = _change_key(max(records, key=lambda r: r.time_s))
    own = [r for r in records if _change_key(r) == latest]
    others = len({_change_key(r) for r in records if r.fields.get("epoch") == latest[2]}) - 1
    return Subject(
        epoch=own[0].fields["epoch"],
        replica=own[0].replica,
        owner=own[0].owner,
        begin_s=min(r.time_s for r in own),
        end_s=max(r.time_s for r in own),
        is_open=not any(r.event == "change_ended" for r in own),
        notes=[f"{others} other replicas or runs have an epoch {own[0].fields['epoch']}; this is the latest."]
        if others
        else [],
    )


def _number(record: Record, name: str) -> float:
    value = record.fields.get(name, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
