"""The catalogue of log events, and the logger that writes them as JSON lines.

Every event is named here once, with its fields; emitting an unknown one, or one with other fields, raises
`EventCatalogueError` (so a test that reaches the line finds it). Sentences are for people, fields for machines. No prompt
or output text is ever logged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO, cast

import structlog

LOG_BYTES_MAX = 64 * 1024 * 1024
"""Size at which a `LogFile` starts anew: a few hours of a busy stage. Twice this is the most that a process keeps."""

CATALOGUE: Mapping[str, tuple[str, ...]] = {
    # daemon
    "daemon_started": ("model", "stages", "url"),
    "daemon_stopped": ("reason",),
    # coordinator and its pool of workers
    "worker_spawned": ("worker", "device", "pid"),
    "worker_exited": ("worker", "code"),
    "worker_lost": ("worker", "sentence"),
    "change_phase": ("epoch", "strategy", "phase"),
    "change_ended": ("epoch", "outcome", "sentence"),
    "journal_failed": ("record", "epoch", "sentence"),
    "pipeline_up": ("epoch", "stages", "kv_blocks"),
    "pipeline_interrupted": ("sentence",),
    "pipeline_down": ("sentence",),
    "coordinator_gave_up": ("sentence",),
    # nodes: at the leader, then on each node
    "node_came": ("node", "devices"),
    "node_drains": ("node", "reason"),
    "node_gone": ("node", "sentence"),
    "node_refused": ("reason", "sentence"),
    "node_joined": ("leader", "term", "version"),
    "node_left": ("reason", "failed"),
    "node_workers_ended": ("workers", "reason"),
    "link_refused": ("peer", "purpose", "sentence"),
    "link_ended": ("peer", "purpose", "sentence"),
    # gateways: at the leader, then on each gateway
    "gateway_came": ("gateway",),
    "gateway_left": ("gateway", "streams", "sentence"),
    "gateway_refused": ("gateway", "reason", "sentence"),
    "gateway_request_broke": ("gateway", "error"),
    "leader_attached": ("leader", "term"),
    "leader_lost": ("leader", "term", "sentence"),
    "leader_refused": ("address", "term", "highest_term"),
    "stream_resumed": ("from_term", "to_term", "output_tokens", "sentence"),
    # replicas
    "replica_started": ("replica", "stages"),
    "replica_retired": ("replica", "handed_over"),
    "replica_dropped": ("replica", "sentence"),
    "request_moved": ("from_replica", "to_replica", "output_tokens", "sentence"),
    # autopilot
    "autopilot_decided": ("decision", "words", "repeated"),
    "autopilot_acted": ("wanted", "seconds", "failure", "dry_run"),
    # scheduler
    "request_queued": ("request", "prompt_tokens", "max_tokens"),
    "request_ended": ("request", "finish", "output_tokens", "ttft_s", "duration_s"),
    "request_cancelled": ("request", "output_tokens"),
    "request_failed": ("request", "reason", "sentence", "output_tokens"),
    "step_sent": ("epoch", "step", "rows", "tokens"),
    "cut_sent": ("epoch", "step", "abandon"),
    # worker process
    "worker_loading": ("epoch", "stage", "first_atom", "end_atom", "device"),
    "worker_loaded": ("epoch", "weight_bytes", "kept_bytes", "warm_bytes", "peer_bytes", "disk_bytes", "backend"),
    "worker_opened": ("epoch", "stage", "kv_blocks", "transfers"),
    "worker_switched": ("epoch", "step", "sent_bytes", "final_bytes"),
    "worker_released": ("epoch", "freed_bytes"),
    "epoch_discarded": ("epoch", "sentence"),
    "pages_refused": ("epoch", "layers", "sentence"),
    "stage_step": ("epoch", "step", "tokens", "compute_s"),
    "stale_dropped": ("what", "epoch", "step"),
    "neighbour_lost": ("epoch", "link", "sentence"),
    "worker_leaving": ("reason",),
    "worker_failed": ("error", "sentence"),
    # the simulated world
    "fault_injected": ("fault", "phase", "target"),
    "rule_violated": ("rule", "sentence"),
    # gateway
    "gateway_draining": ("drain_s_max",),
    "gateway_closed": ("cut_connections",),
    "http_generation_ended": ("http_request", "outcome", "prompt_tokens", "output_tokens", "duration_s"),
    "http_refactor_ended": ("http_request", "outcome", "duration_s"),
    "http_request_broke": ("http_request", "error"),
    "connection_broke": ("error",),
}


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
    """Writes catalogued events as JSON lines with the clock's seconds (wall-clock ones), process name, and ids bound once."""

    def __init__(self, stream: LogStream, *, clock: Callable[[], float] = time.time, **bound: object) -> None:
        def add_time(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
            return {"time_s": round(clock(), 6), **event}

        self._logger = structlog.wrap_logger(
            structlog.WriteLogger(cast("TextIO", stream)),
            processors=[add_time, structlog.processors.JSONRenderer()],
            wrapper_class=structlog.BoundLogger,
        ).bind(**bound)

    def emit(self, event: str, **fields: object) -> None:
        """Write one event. Raises `EventCatalogueError` unless ``fields`` are exactly those of the catalogue."""
        expected = CATALOGUE.get(event)
        if expected is None:
            raise EventCatalogueError(f"{event!r} is not in the event catalogue")
        if set(expected) != set(fields):
            raise EventCatalogueError(f"{event!r} has fields {sorted(fields)}, the catalogue says {sorted(expected)}")
        self._logger.msg(event, **fields)
