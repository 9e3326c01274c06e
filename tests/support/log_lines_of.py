"""Log folders as processes write them: through `EventLog`, so that what a story reads is what the catalogue says."""

import io

from flexpipe.actors.event_log import EventLog

BEGIN_S = 1_795_000_000.0
TIMES = {
    "queue_s": 0.1,
    "prefill_s": 0.1,
    "decode_s": 0.8,
    "gap_s_max": 0.1,
    "first_step": 0,
    "steps": 9,
    "requeues": 0,
}


class Writer:
    """One process's log; times are given with each event, in seconds after `BEGIN_S`."""

    def __init__(self, process, pid=1, *, ahead_s=0.0, **bound):
        self.stream = io.StringIO()
        self._now_s = 0.0
        self._ahead_s = ahead_s
        bound = {"replica": 0, **bound}
        self._log = EventLog(
            self.stream, clock=lambda: BEGIN_S + self._now_s + self._ahead_s, process=process, pid=pid, **bound
        )

    def at(self, time_s, event, **fields):
        self._now_s = time_s
        self._log.emit(event, **fields)

    def lines(self):
        return self.stream.getvalue().splitlines(keepends=True)

    def save(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.stream.getvalue(), encoding="utf-8")


def request(log, trace, *, number=0, begin_s=1.0, end_s=3.0, between=()):
    """Write an undisturbed request, with ``between`` (time, event, fields) in its midst."""
    log.at(begin_s, "request_queued", trace=trace, request=number, prompt_tokens=10, max_tokens=20)
    log.at(begin_s + 0.1, "request_admitted", request=number, epoch=1, step=0)
    log.at(begin_s + 0.2, "request_decoding", request=number, output_tokens=1)
    for time_s, event, fields in between:
        log.at(time_s, event, **fields)
    log.at(
        end_s, "request_ended", request=number, finish="length", output_tokens=20, ttft_s=0.2, duration_s=2.0, **TIMES
    )
    ended(log, trace, end_s, end_s - begin_s)


def ended(log, trace, time_s, duration_s):
    fields = {"outcome": "completed", "prompt_tokens": 10, "output_tokens": 20}
    log.at(time_s, "http_generation_ended", http_request=trace, duration_s=duration_s, **fields)
