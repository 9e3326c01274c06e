"""The catalogue of log events, and the logger that writes them as JSON lines.

Every event is named here once, with its fields; emitting an unknown one, or one with other fields, raises
`EventCatalogueError` (so a test that reaches the line finds it). Sentences are for people, fields for machines. No prompt
or output text is ever logged.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TextIO

import structlog

CATALOGUE: Mapping[str, tuple[str, ...]] = {
    # daemon
    "daemon_started": ("model", "stages", "url"),
    "daemon_stopped": ("reason",),
    # supervisor
    "stage_spawned": ("epoch", "stage", "pid"),
    "stage_loaded": ("epoch", "stage", "weight_bytes", "kv_bytes_per_block", "backend"),
    "stage_exited": ("epoch", "stage", "code"),
    "stage_lost": ("epoch", "stage", "sentence"),
    "pipeline_up": ("epoch", "stages", "kv_blocks"),
    "pipeline_down": ("epoch", "sentence"),
    "supervisor_gave_up": ("sentence",),
    # scheduler
    "request_queued": ("request", "prompt_tokens", "max_tokens"),
    "request_refused": ("request", "reason", "sentence"),
    "request_ended": ("request", "finish", "output_tokens", "ttft_s", "duration_s"),
    "request_cancelled": ("request", "output_tokens"),
    "request_failed": ("request", "reason", "sentence", "output_tokens"),
    "step_sent": ("epoch", "step", "rows", "tokens"),
    # stage process
    "stage_loading": ("epoch", "stage", "first_atom", "end_atom", "device"),
    "stage_serving": ("epoch", "stage", "kv_blocks"),
    "stage_step": ("epoch", "step", "tokens", "compute_s"),
    "stale_dropped": ("what", "epoch", "step"),
    "stage_leaving": ("reason",),
    "stage_failed": ("error", "sentence"),
    # gateway
    "gateway_listening": ("addresses",),
    "gateway_draining": ("drain_s_max",),
    "gateway_closed": ("cut_connections",),
    "http_generation_ended": ("http_request", "outcome", "prompt_tokens", "output_tokens", "duration_s"),
    "http_request_broke": ("http_request", "error"),
    "connection_broke": ("error",),
}


class EventCatalogueError(Exception):
    """An event that is not in the catalogue, or whose fields are not the catalogue's: our bug."""


class EventLog:
    """Writes catalogued events as JSON lines with wall-clock seconds, process name, and ids bound once."""

    def __init__(self, stream: TextIO, **bound: object) -> None:
        self._logger = structlog.wrap_logger(
            structlog.WriteLogger(stream),
            processors=[_add_time, structlog.processors.JSONRenderer()],
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


def _add_time(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    return {"time_s": round(time.time(), 6), **event}
