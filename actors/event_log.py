"""The logger that writes the events of `event_catalogue` as JSON lines.

Emitting one that is not as catalogued raises `EventCatalogueError` in tests, so that a test that reaches the line finds it. In
production no log line, and no full disk, ever ends a process: the fault is logged, once for each cause. Sentences are for people,
fields for machines. No prompt or output text is ever logged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO, cast

import structlog

from .event_catalogue import fault_of

LOG_BYTES_MAX = 64 * 1024 * 1024
"""Size at which a `LogFile` starts anew: a few hours of a busy stage. Twice this is the most that a process keeps."""

STRICT_VARIABLE = "FLEXPIPE_STRICT_LOG"
"""Set to 1 (as our tests do), an event that is not as catalogued raises, in every process; else it only logs a fault."""


class EventCatalogueError(Exception):
    """An event that is not in the catalogue, or whose fields are not the catalogue's: our bug."""


class LogStream(Protocol):
    """Where an `EventLog` writes; an open text file is one."""

    def write(self, text: str, /) -> object:
        """Append text."""
        ...

    def flush(self) -> object:
        """Hand it to the system."""
        ...


class LogFile:
    """A text file of bounded size: when it is full it becomes FILE.1, replacing the one before, and a new one begins."""

    def __init__(self, path: Path, bytes_max: int = LOG_BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._file: TextIO = path.open("a", buffering=1, encoding="utf-8")
        self._bytes = path.stat().st_size

    def write(self, text: str, /) -> None:
        """Append text (ASCII, as JSON here is), whole lines at a time."""
        if self._bytes + len(text) > self._bytes_max:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = self._path.open("a", buffering=1, encoding="utf-8")
            self._bytes = 0
        self._file.write(text)
        self._bytes += len(text)

    def flush(self) -> None:
        """Hand it to the system."""
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class EventLog:
    """Writes catalogued events as JSON lines with the clock's seconds (wall-clock ones), process name, and ids bound once.

    ``strict`` as `STRICT_VARIABLE`, which is asked where it is None.
    """

    def __init__(
        self,
        stream: LogStream,
        *,
        clock: Callable[[], float] = time.time,
        strict: bool | None = None,
        **bound: object,
    ) -> None:
        def add_time(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
            return {"time_s": round(clock(), 6), **event}

        self._is_strict = os.environ.get(STRICT_VARIABLE) == "1" if strict is None else strict
        self._faults: set[tuple[str, str]] = set()
        self._unwritten: OSError | None = None
        self._logger = structlog.wrap_logger(
            structlog.WriteLogger(cast("TextIO", stream)),
            processors=[add_time, structlog.processors.JSONRenderer()],
            wrapper_class=structlog.BoundLogger,
        ).bind(**bound)

    def emit(self, event: str, **fields: object) -> None:
        """Write one event; what is wrong with it is logged once. Raises `EventCatalogueError` for that instead where strict."""
        fault = fault_of(event, fields)
        if fault and self._is_strict:
            raise EventCatalogueError(fault)
        self._write(event, fields)
        if fault:
            self._tell_once(event, fault)

    def _write(self, event: str, fields: dict[str, object]) -> None:
        try:
            self._logger.msg(event, **fields)
        except OSError as error:
            self._unwritten = error
            return
        if (earlier := self._unwritten) is not None:
            self._unwritten = None
            self._tell_once(event, f"events before this one could not be written: {earlier.strerror or earlier}")

    def _tell_once(self, event: str, sentence: str) -> None:
        if (event, sentence) not in self._faults:
            self._faults.add((event, sentence))
            self.emit("log_fault", at_event=event, sentence=sentence)
