"""The story of a change: its phases, where weights came from, what was copied, who died, and what it cost the requests.

Pure: records in, a `Story` out.
"""

from __future__ import annotations

from collections.abc import Sequence

from .evidence import Evidence
from .happenings import PHASES, Change, Happenings, stage_of
from .log_lines import Record
from .subject import Subject
from .telling import Moment, Span, Story, amount, plural, seconds

_SOURCES = {
    "kept_bytes": "kept",
    "warm_bytes": "from the warm store",
    "peer_bytes": "from peers",
    "disk_bytes": "from disk",
}


def tell(subject: Subject, evidence: Evidence) -> Story:
    """The story."""
    around = Happenings.of(evidence, subject.replica)
    change = next(change for change in around.changes if change.epoch == subject.epoch)
    last_s = max((r.time_s for r in evidence.records if r.replica == subject.replica), default=subject.end_s)
    story = Story("", subject.begin_s, last_s if subject.is_open else subject.end_s)
    own = [r for r in evidence.records if r.replica == subject.replica and r.fields.get("epoch") == subject.epoch]
    story.spans = [Span(span.begin_s, span.end_s, span.kind, _phase(span, own)) for span in change.spans(story.end_s)]
    story.spent_s = {
        phase: round(sum(s.lasted_s for s in story.spans if s.kind == phase), 6)
        for phase in dict.fromkeys(span.kind for span in story.spans)
    }
    story.moments = sorted(_moments(evidence, around, story), key=lambda moment: moment.time_s)
    how = {"done": "done", "": "not ended in these logs"}.get(change.outcome, change.outcome)
    story.title = (
        f"{change.name[0].upper()}{change.name[1:]} of replica {change.replica}: {how} after {seconds(story.lasted_s)}"
    )
    story.verdict = _verdict(change, around, evidence, story)
    return story


def _phase(span: Span, own: Sequence[Record]) -> str:
    """What the phase did, with figures."""
    if span.kind == "load":
        loaded = [r for r in own if r.event == "worker_loaded"]
        sources = {words: sum(_count(r, name) for r in loaded) for name, words in _SOURCES.items()}
        parts = [f"{amount(count)} {words}" for words, count in sources.items() if count]
        return f"{plural(len(loaded), 'stage')} read weights" + (f": {', '.join(parts)}" if parts else "")
    if span.kind == "switch":
        switched = [r for r in own if r.event == "worker_switched"]
        sent, final = (sum(_count(r, name) for r in switched) for name in ("sent_bytes", "final_bytes"))
        return f"{PHASES['switch']}: KV {amount(sent)} copied, {amount(final)} of it after the last step"
    if span.kind == "release":
        freed = sum(_count(r, "freed_bytes") for r in own if r.event == "worker_released")
        return f"{PHASES['release']}: {amount(freed)} of weights freed"
    return PHASES.get(span.kind, "")


def _count(record: Record, name: str) -> int:
    value = record.fields.get(name, 0)
    return value if isinstance(value, int) else 0


def _moments(evidence: Evidence, around: Happenings, story: Story) -> list[Moment]:
    found = [Moment(d.time_s, d.says) for d in around.deaths if story.begin_s <= d.time_s <= story.end_s]
    for record in evidence.records:
        if not story.begin_s <= record.time_s <= story.end_s:
            continue
        if record.event == "worker_spawned":
            worker = record.fields.get("worker")
            found.append(Moment(record.time_s, f"worker {worker} started on {record.fields.get('device')}"))
        elif record.event in ("epoch_discarded", "pages_refused", "journal_failed"):
            who = str(record.fields.get("process"))
            worker = who.removeprefix("worker-")
            where = stage_of(evidence, record.replica, int(worker), record.time_s) if worker.isdecimal() else who
            found.append(Moment(record.time_s, f"{where}: {record.fields.get('sentence')}"))
    return found


def _verdict(change: Change, around: Happenings, evidence: Evidence, story: Story) -> list[str]:
    said = []
    death = next((d for d in around.deaths if story.begin_s - 1.0 <= d.time_s <= story.end_s + 1.0), None)
    if change.outcome not in ("", "done"):
        cause = f": {death.says}{around.during(death.time_s)}" if death is not None else ""
        sentence = f" ({change.sentence})" if change.sentence else ""
        said.append(f"It was {change.outcome}{cause}{sentence}.")
    if story.spans:
        longest = max(story.spans, key=lambda span: span.lasted_s)
        said.append(f"Most of it, {seconds(longest.lasted_s)}, was phase {longest.kind}: {longest.says}.")
    if evidence.stalls_s:
        worst = seconds(max(evidence.stalls_s))
        said.append(f"{plural(len(evidence.stalls_s), 'request')} stalled, for {worst} at most.")
    else:
        said.append("No request stalled.")
    if evidence.requeued:
        said.append(f"{plural(evidence.requeued, 'time')} a request lost its KV and began anew.")
    return said
