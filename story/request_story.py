"""The story of a request: where its time went, piece by piece, each with its cause as far as the logs prove one.

Pure: records in, a `Story` out. A cause is what overlaps the piece in time and can cause it; where nothing does, it says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from .evidence import Evidence, PromptStep
from .happenings import Happenings
from .log_lines import Record
from .subject import Leg, Subject
from .telling import Moment, Span, Story, plural, seconds

DEATH_S = 3.0
"""A loss is noticed at once where a process ends, and after the silence that links allow (2 s) where it hangs."""
SHORT_S = 0.005
"""A wait that needs no cause: the rest of a step."""
STALL_S_MIN = 0.001
"""A stall that crosses from one piece into the next has no more than a rounding error there."""
KINDS = ("queue", "prefill", "decode", "stall")
_ENDS = ("request_ended", "request_cancelled", "request_failed")


def tell(subject: Subject, evidence: Evidence) -> Story:
    """The story. The subject has at least one line of its own."""
    legs, others = _chain(subject, evidence)
    last_s = max((r.time_s for r in evidence.records if _is_own(r, subject)), default=subject.end_s)
    story = Story(title="", begin_s=subject.begin_s, end_s=max(last_s, subject.end_s))
    for leg in legs:
        records = [r for r in evidence.records if r.event.startswith("request_") and _leg_of(r) == leg]
        story.spans += _Leg(records, evidence, Happenings.of(evidence, leg.replica), story.end_s).spans()
        story.around += _around(Happenings.of(evidence, leg.replica), story)
    story.moments = _moments(subject, evidence, legs, story)
    story.spent_s = {kind: round(sum(s.lasted_s for s in story.spans if s.kind == kind), 6) for kind in KINDS}
    story.title = _title(subject, evidence, legs, story)
    story.verdict = _verdict(story)
    if others:
        story.notes.append(f"The HTTP request had {plural(others, 'more sequence')}; this is the one that ended last.")
    if not legs:
        story.notes.append("No scheduler's log has this request: give --logs of the node that led, too.")
    return story


def _is_own(record: Record, subject: Subject) -> bool:
    return _leg_of(record) in subject.legs or record.fields.get("http_request") == subject.trace


def _leg_of(record: Record) -> Leg:
    return Leg(record.owner, record.replica, record.fields.get("request", -1))


def _chain(subject: Subject, evidence: Evidence) -> tuple[list[Leg], int]:
    """The sequence that ended last, from scheduler to scheduler in order of time; and how many other sequences there were."""
    times: dict[Leg, list[float]] = {leg: [] for leg in subject.legs}
    for record in evidence.records:
        if (leg := _leg_of(record)) in times and record.event.startswith("request_"):
            times[leg].append(record.time_s)
    legs = sorted((leg for leg in times if times[leg]), key=lambda leg: times[leg][-1])
    chain: list[Leg] = []
    for leg in reversed(legs):
        if not chain or times[leg][-1] <= times[chain[0]][0]:
            chain.insert(0, leg)
    return chain, len(legs) - len(chain)


class _Leg:
    """A request at one scheduler: its records in order, as spans."""

    def __init__(self, records: Sequence[Record], evidence: Evidence, around: Happenings, end_s: float) -> None:
        self._records = records
        self._evidence = evidence
        self._around = around
        self._end_s = end_s

    def spans(self) -> list[Span]:
        """All of its time, without gaps."""
        found: list[Span] = []
        kind, since_s, outputs, cause = "", 0.0, 0, ""
        for record in self._records:
            now_s, after = record.time_s, _tokens(record, outputs)
            if kind and record.event != "request_stalled":
                found += self._span(kind, since_s, now_s, cause, outputs, after)
            match record.event:
                case "request_queued":
                    kind, cause = "queue", ""
                case "request_admitted":
                    kind = "prefill"
                case "request_decoding":
                    kind = "decode"
                case "request_requeued":
                    kind, cause = "queue", str(record.fields.get("cause", ""))
                case "request_stalled":
                    continue
                case _:
                    kind = ""
            since_s, outputs = now_s, after
        if kind:
            found += self._span(kind, since_s, self._end_s, cause, outputs, outputs)
        return found

    def _span(self, kind: str, begin_s: float, end_s: float, cause: str, before: int, after: int) -> list[Span]:
        match kind:
            case "queue":
                return [Span(begin_s, end_s, kind, self._why_waiting(begin_s, end_s, cause))]
            case "prefill":
                what = f"the prompt and {plural(before, 'token')} again" if before else "the prompt"
                steps = _prompts(self._evidence, begin_s, end_s)
                return [Span(begin_s, end_s, kind, what + (f", in {plural(len(steps), 'step')}" if steps else ""))]
        return self._decode(begin_s, end_s, max(0, after - before))

    def _decode(self, begin_s: float, end_s: float, tokens: int) -> list[Span]:
        """Decoding, and the stalls within it."""
        stalls = []
        for record in self._records:
            gap_s = record.fields.get("gap_s")
            if record.event == "request_stalled" and isinstance(gap_s, int | float):
                stall_begin_s, stall_end_s = max(begin_s, record.time_s - gap_s), min(end_s, record.time_s)
                if stall_end_s - stall_begin_s >= STALL_S_MIN:
                    stalls.append(
                        Span(stall_begin_s, stall_end_s, "stall", self._why_stalled(stall_begin_s, stall_end_s))
                    )
        smooth_s = end_s - begin_s - sum(span.lasted_s for span in stalls)
        pace = f", {seconds(smooth_s / tokens)} each" if tokens else ""
        found, at_s, says = [], begin_s, plural(tokens, "token") + pace
        for stall in stalls:
            if stall.begin_s > at_s:
                found.append(Span(at_s, stall.begin_s, "decode", says))
                says = "and on"
            found.append(stall)
            at_s = stall.end_s
        return [*found, Span(at_s, end_s, "decode", says)] if end_s > at_s else found

    def _why_waiting(self, begin_s: float, end_s: float, cause: str) -> str:
        around = self._around
        if cause == "preempted":
            return "older requests needed its KV blocks" + around.during(begin_s)
        if cause == "recomputed":
            return "KV does not cross the cut" + around.during(begin_s)
        if cause == "interrupted":
            return f"{self._why_broken(begin_s)}; {self._what_ended_it(end_s)}"
        for down_s, up_s, _ in around.outages:
            if down_s < end_s and up_s > begin_s:
                return f"no pipeline was up: {self._why_broken(down_s)}"
        if end_s - begin_s < SHORT_S:
            return "for a place in a step"
        prompts = _prompts(self._evidence, begin_s, end_s)
        if prompts:
            return f"others came first: {sum(step.tokens for step in prompts)} of their tokens were computed meanwhile"
        return "for a place in a step, or for KV blocks" + around.during(begin_s)

    def _why_broken(self, time_s: float) -> str:
        death = self._around.death_before(time_s, DEATH_S)
        if death is not None:
            return death.says + self._around.during(death.time_s)
        sentence = next((s for down_s, _, s in self._around.outages if abs(down_s - time_s) < DEATH_S), "")
        return f"the pipeline broke: {sentence}" if sentence else "the pipeline broke, the logs do not say why"

    def _what_ended_it(self, time_s: float) -> str:
        change = next((c for c in self._around.changes if c.phases and c.phases[0][0] <= time_s <= c.end_s), None)
        return f"{change.name} brought it up again" if change is not None else "it came up again"

    def _why_stalled(self, begin_s: float, end_s: float) -> str:
        around = self._around
        death = next((d for d in around.deaths if begin_s - 0.1 <= d.time_s <= end_s + DEATH_S), None)
        if death is not None:
            return f"{death.says}{around.during(death.time_s)}; not yet noticed"
        for change in around.changes:
            phases = [span for span in change.spans(end_s) if span.begin_s < end_s and span.end_s > begin_s]
            if phases:
                longest = max(phases, key=lambda span: min(span.end_s, end_s) - max(span.begin_s, begin_s))
                return f"{change.name}, mostly in phase {longest.kind}: {longest.says}"
        prompts = _prompts(self._evidence, begin_s, end_s)
        if prompts:
            largest = max(step.tokens for step in prompts)
            return f"steps with prompts of others, of up to {plural(largest, 'token')}"
        return "no event explains it: a slow stage, or a busy host"


def _tokens(record: Record, before: int) -> int:
    value = record.fields.get("output_tokens", before)
    return value if isinstance(value, int) else before


def _prompts(evidence: Evidence, begin_s: float, end_s: float) -> list[PromptStep]:
    return [step for step in evidence.prompts if begin_s <= step.time_s <= end_s]


def _around(happenings: Happenings, story: Story) -> list[Span]:
    """The changes that overlap the story, cut to it, with what their phases took."""
    found = []
    for change in happenings.changes:
        phases = change.spans(story.end_s)
        begin_s, end_s = max(phases[0].begin_s, story.begin_s), min(phases[-1].end_s, story.end_s)
        if begin_s < end_s:
            took = ", ".join(f"{span.kind} {seconds(span.lasted_s)}" for span in phases if span.lasted_s >= SHORT_S)
            says = f"{change.name}{_outcome(change.outcome)}"
            found.append(Span(begin_s, end_s, "change", f"{says}: {took}" if took else says))
    return found


def _outcome(outcome: str) -> str:
    return f", {outcome}" if outcome not in ("", "done") else ""


def _moments(subject: Subject, evidence: Evidence, legs: Sequence[Leg], story: Story) -> list[Moment]:
    found = [
        Moment(death.time_s, death.says)
        for replica in {leg.replica for leg in legs}
        for death in Happenings.of(evidence, replica).deaths
        if story.begin_s <= death.time_s <= story.end_s
    ]
    for record in evidence.records:
        fields = record.fields
        if fields.get("trace") != subject.trace:
            continue
        if record.event == "request_moved":
            says = f"moved from replica {fields.get('from_replica')} to {fields.get('to_replica')}: {fields.get('sentence')}"
            found.append(Moment(record.time_s, says))
        elif record.event == "stream_resumed":
            says = f"went on at the leader of term {fields.get('to_term')}: {fields.get('sentence')}"
            found.append(Moment(record.time_s, says))
    return sorted(found, key=lambda moment: moment.time_s)


def _title(subject: Subject, evidence: Evidence, legs: Sequence[Leg], story: Story) -> str:
    ended = [r for r in evidence.records if r.event == "http_generation_ended"]
    last = next((r for r in reversed(evidence.records) if r.event in _ENDS and _leg_of(r) in legs), None)
    fields = ended[-1].fields if ended else last.fields if last is not None else {}
    where = ", then ".join(f"replica {leg.replica}" for leg in legs)
    if subject.is_open:
        how = "has no end in these logs"
    else:
        how = {"completed": "completed"}.get(str(fields.get("outcome")), f"ended: {fields.get('outcome')}")
    tokens = plural(_tokens(last, 0), "token") if last is not None else "tokens"
    prompt = fields.get("prompt_tokens")
    after = f" after a prompt of {prompt}" if prompt is not None else ""
    return f"Request {subject.trace} ({where or 'nowhere'}): {tokens}{after} in {seconds(story.lasted_s)}, {how}"


def _verdict(story: Story) -> list[str]:
    """Where the time went, and the piece that cost most beside computing."""
    total = sum(story.spent_s.values())
    if not total:
        return []
    shares = [f"{story.spent_s[kind] / total:.0%} {words}" for kind, words in _WORDS.items() if story.spent_s[kind] > 0]
    said = [f"Of its time: {', '.join(shares)}."]
    waits = [span for span in story.spans if span.kind in ("queue", "stall") and span.lasted_s >= SHORT_S]
    if waits:
        worst = max(waits, key=lambda span: span.lasted_s)
        kind = "The longest wait" if worst.kind == "queue" else "The longest stall"
        said.append(f"{kind}, {seconds(worst.lasted_s)}: {worst.says}.")
    return said


_WORDS = {"queue": "waiting", "prefill": "prefill", "decode": "decoding", "stall": "stalled"}
