"""Every log event there is: what it says, who says it, and its fields with their types and meaning.

Owns names only; `event_log` writes. A field means the same in every event that has it, so one table explains them all, and a
reader can join events of different processes by it. No field ever holds prompt or output text. docs/events.md is made of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = type[str | int | float | bool | list[object] | dict[str, object]]


@dataclass(frozen=True, slots=True)
class Field:
    """``value`` is the type in Python and in JSON (a float may be written as an integer)."""

    value: Value
    says: str


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of event. ``writer`` is the part of a server whose log has it; ``fields`` are exactly those that it has."""

    writer: str
    says: str
    fields: tuple[str, ...]


BOUND: Mapping[str, Field] = {
    "time_s": Field(
        float, "seconds since 1970 by the clock of the host that wrote it; in simulations, virtual seconds"
    ),
    "event": Field(str, "the event's name"),
    "process": Field(str, "which process of its host: `daemon`, `worker-N`, or a node's name"),
    "pid": Field(int, "its number in the operating system; of `worker_spawned`, the worker's"),
    "replica": Field(int, "the replica that it is about; not there where it is about no single one"),
    "node": Field(str, "the node that wrote it, or that it is about; not there on a single host"),
}
"""What a log adds to its events by itself: each once, where the log is made."""

FIELDS: Mapping[str, Field] = {
    "abandon": Field(bool, "whether KV before the cut is given up"),
    "address": Field(str, "where a leader was to be"),
    "at_event": Field(str, "the event that could not be written as it should be"),
    "at_once": Field(bool, "whether it is killed, since what it does is not needed any more"),
    "backend": Field(str, "what computes the stage, and why that"),
    "cause": Field(
        str, "why a request waits again: `preempted` (others needed its blocks), `interrupted` or `recomputed`"
    ),
    "code": Field(int, "exit code; negative: the signal that killed it"),
    "compute_s": Field(float, "time that the engine took for the stage's part of a step"),
    "cut_connections": Field(int, "connections that were still open and were closed"),
    "decision": Field(dict, "the decision with all its inputs"),
    "device": Field(str, "device of a worker, as `cuda:1` or `cpu:0`"),
    "devices": Field(int, "number of devices"),
    "disk_bytes": Field(int, "weights read from disk"),
    "drain_s_max": Field(float, "how long requests under way may take to end"),
    "dry_run": Field(bool, "whether the autopilot only says what it would do"),
    "duration_s": Field(float, "from its arrival to its end"),
    "end_atom": Field(int, "the first atom that is not the stage's"),
    "epoch": Field(int, "number of the pipeline's shape; each change makes the next one"),
    "error": Field(str, "kind of the error, or its trace"),
    "failed": Field(bool, "whether it ended for a failure"),
    "failure": Field(str, "why a change failed; empty where it did not"),
    "fault": Field(str, "what the simulation did"),
    "final_bytes": Field(int, "KV sent after the last step before the cut: what the pause consists of"),
    "finish": Field(str, "`stop` or `length`"),
    "first_atom": Field(int, "the stage's first atom"),
    "first_step": Field(int, "the first step that a request was in"),
    "freed_bytes": Field(int, "weights given back"),
    "from_replica": Field(int, "the replica that it left"),
    "from_term": Field(int, "term of the leader that it left"),
    "gap_s": Field(float, "time between two tokens of one request"),
    "gap_s_max": Field(float, "the longest time between two of its tokens"),
    "gateway": Field(str, "name of a gateway's node"),
    "handed_over": Field(int, "requests that other replicas go on with"),
    "highest_term": Field(int, "the highest term that the gateway has heard of"),
    "http_request": Field(str, "id of an HTTP request: what its answer has in `X-Request-Id`"),
    "kept_bytes": Field(int, "weights that the worker had already"),
    "kv_blocks": Field(int, "KV blocks of each stage"),
    "layers": Field(list, "layers whose pages it is about"),
    "leader": Field(str, "name of the leading node"),
    "link": Field(str, "`upstream` or `downstream`"),
    "max_tokens": Field(int, "output tokens that were asked for at most"),
    "model": Field(str, "the served model's name"),
    "outcome": Field(str, "how it ended: `done` or `completed`, or the reason"),
    "output_tokens": Field(int, "output tokens so far"),
    "peer": Field(str, "who is at the other end of a link"),
    "peer_bytes": Field(int, "weights that came from another worker"),
    "phase": Field(str, "phase of a change: plan, load, copy, commit, switch, release, abort"),
    "prefill_s": Field(float, "time in which its prompt (or its prompt and tokens, again) was computed"),
    "decode_s": Field(float, "time from a first token to a last one, without what came between"),
    "queue_s": Field(float, "time in which it had no KV blocks and waited"),
    "prompt_tokens": Field(int, "tokens of the prompt"),
    "purpose": Field(str, "what a link is for"),
    "reason": Field(str, "why, as one word or a short sentence"),
    "record": Field(str, "kind of the journal's record"),
    "repeated": Field(int, "decisions before this one that were like the one before"),
    "request": Field(int, "number of a request at its replica"),
    "requeues": Field(int, "how often it had to wait again"),
    "rows": Field(int, "requests in a step"),
    "rule": Field(str, "the rule that was broken"),
    "seconds": Field(float, "how long it took"),
    "sent_bytes": Field(int, "KV that the worker sent"),
    "sentence": Field(str, "what happened, for people; empty where there is nothing to say"),
    "stage": Field(int, "place in the pipeline, from 0; -1: none in that epoch"),
    "stages": Field(int, "number of stages"),
    "state": Field(str, "whether a daemon leads: `following`, `candidate`, `leading` and so on"),
    "step": Field(int, "number of a step; one order in each replica"),
    "steps": Field(int, "steps that a request was in"),
    "strategy": Field(str, "how a change goes: start, precopy, stop-copy, recompute, restart or recover"),
    "streams": Field(int, "streams that ended with it"),
    "target": Field(str, "whom a fault hit"),
    "term": Field(int, "term of a leader"),
    "to_replica": Field(int, "the replica that goes on with it"),
    "to_term": Field(int, "term of the leader that goes on with it"),
    "tokens": Field(int, "tokens in a step"),
    "trace": Field(
        str, "id of the HTTP request for which it is done, empty where none is known: joins nodes and replicas"
    ),
    "transfers": Field(int, "transfers of KV that the worker takes part in"),
    "ttft_s": Field(float, "from its arrival to its first token"),
    "url": Field(str, "where the server answers"),
    "version": Field(int, "version of the protocol"),
    "wanted": Field(str, "the shape that was wanted"),
    "warm_bytes": Field(int, "weights mapped from the warm store"),
    "weight_bytes": Field(int, "weights of the stage"),
    "what": Field(str, "kind of the message"),
    "words": Field(str, "the decision in words"),
    "worker": Field(int, "number of a worker in its replica, never used again"),
    "workers": Field(int, "number of worker processes"),
}
"""Every field that an event can have, beside the bound ones."""

_TIMES = ("queue_s", "prefill_s", "decode_s", "gap_s_max", "first_step", "steps", "requeues")
"""What is known of a request at its end."""


def _of(writer: str, **events: tuple[str, str]) -> dict[str, Event]:
    """Events of one writer: name → what it says, and its fields in one string."""
    return {name: Event(writer, says, tuple(fields.split())) for name, (says, fields) in events.items()}


EVENTS: Mapping[str, Event] = {
    **_of(
        "daemon",
        daemon_started=("The server's port is bound; its pipeline starts.", "model stages url"),
        daemon_stopped=("The last line of an orderly end.", "reason"),
    ),
    **_of(
        "any process",
        log_fault=(
            "An event was not as catalogued, or the log could not be written: a bug of ours or a full disk. Once a cause.",
            "at_event sentence",
        ),
    ),
    **_of(
        "coordinator",
        worker_spawned=("A worker's process was started.", "worker device pid"),
        worker_retired=("A worker is let go, in order or at once: its end is no failure.", "worker at_once reason"),
        worker_exited=("A worker's process has ended.", "worker code"),
        worker_lost=(
            "A worker's control link has ended; ordinary for one that leaves, else the cause.",
            "worker sentence",
        ),
        change_phase=("A change of the pipeline has entered a phase.", "epoch strategy phase"),
        change_ended=("A change has ended.", "epoch outcome sentence"),
        journal_failed=("A decision could not be written to disk.", "record epoch sentence"),
        pipeline_up=("An epoch begins to serve from empty pages.", "epoch stages kv_blocks"),
        pipeline_interrupted=("The pipeline is broken and will be up again; requests wait meanwhile.", "sentence"),
        pipeline_down=("The pipeline is gone for good; its requests end.", "sentence"),
        coordinator_gave_up=("Too much failed: a replica is given up.", "sentence"),
    ),
    **_of(
        "leader of nodes",
        node_came=("A node belongs to the cluster.", "node devices"),
        node_drains=("A node wants to leave; its stages move away.", "node reason"),
        node_gone=("A node has left, or was lost.", "node sentence"),
        node_stays=("Nothing can be moved off a node that wants to leave; it is tried again.", "node sentence"),
        leader_waits=("The leader has too few devices for the model.", "sentence"),
        node_refused=("A node may not join.", "reason sentence"),
        link_refused=("A visitor was turned away.", "peer purpose sentence"),
        link_ended=("A visitor's link has ended.", "peer purpose sentence"),
    ),
    **_of(
        "node",
        node_started=("The node's daemon listens, and looks for a leader.", "node address url"),
        node_joined=("This node belongs to a leader's cluster.", "leader term version"),
        node_left=("This node belongs to none any more.", "reason failed"),
        node_workers_ended=("This node has ended its workers.", "workers reason"),
    ),
    **_of(
        "leader of gateways",
        gateway_came=("A gateway is attached.", "gateway"),
        gateway_left=("A gateway is gone, and its streams with it.", "gateway streams sentence"),
        gateway_refused=("A gateway may not attach.", "gateway reason sentence"),
        gateway_request_broke=("A request of a gateway broke: a bug of ours.", "gateway error"),
    ),
    **_of(
        "whoever may lead",
        leader_seen=("The cluster's store says who leads.", "leader term"),
        leadership_changed=("This daemon leads, or does not any more.", "state term sentence"),
        store_silent=("The cluster's store does not answer; who leads goes on.", "sentence"),
        store_answers=("The cluster's store answers again.", ""),
    ),
    **_of(
        "gateway of a cluster",
        leader_attached=("The gateway is attached to a leader.", "leader term"),
        leader_lost=("The gateway has lost its leader.", "leader term sentence"),
        leader_refused=("Who answered leads no more.", "address term highest_term"),
        stream_resumed=("A stream goes on at another leader.", "trace from_term to_term output_tokens sentence"),
    ),
    **_of(
        "replicas",
        replica_started=("A replica is being started.", "replica stages"),
        replica_retired=("A replica is ended in order.", "replica handed_over"),
        replica_dropped=("A replica was given up; others go on.", "replica sentence"),
        request_moved=("A request goes on at another replica.", "trace from_replica to_replica output_tokens sentence"),
    ),
    **_of(
        "autopilot",
        autopilot_decided=("What was decided, and why.", "decision words repeated"),
        autopilot_acted=("A change that was decided has ended.", "wanted seconds failure dry_run"),
    ),
    **_of(
        "scheduler",
        request_queued=("A request has come.", "trace request prompt_tokens max_tokens"),
        request_admitted=("A request has blocks, and its first step is planned.", "request epoch step"),
        request_decoding=("Its first token since it was admitted has come: it is prefilled.", "request output_tokens"),
        request_requeued=("A request has lost its KV and waits again; its tokens stay.", "request cause output_tokens"),
        request_stalled=(
            "A token came much later than the ones before; told at that token.",
            "request output_tokens gap_s",
        ),
        request_ended=(
            "A request has its last token.",
            " ".join(("request", "finish", "output_tokens", "ttft_s", "duration_s", *_TIMES)),
        ),
        request_cancelled=("Its client has left.", " ".join(("request", "output_tokens", *_TIMES))),
        request_failed=(
            "A request was refused or lost.",
            " ".join(("request", "reason", "sentence", "output_tokens", *_TIMES)),
        ),
        step_sent=("A step was planned and is sent to all stages.", "epoch step rows tokens"),
        cut_sent=("All steps from here on are of a new epoch.", "epoch step abandon"),
    ),
    **_of(
        "worker",
        worker_loading=("The worker loads its part of an epoch.", "epoch stage first_atom end_atom device"),
        worker_loaded=(
            "It has its weights.",
            "epoch weight_bytes kept_bytes warm_bytes peer_bytes disk_bytes backend",
        ),
        worker_opened=("Its links and pages of an epoch are there.", "epoch stage kv_blocks transfers"),
        worker_switched=(
            "It serves an epoch from that step on, or none any more.",
            "epoch step sent_bytes final_bytes",
        ),
        worker_released=("It has given back what only the epoch before needed.", "epoch freed_bytes"),
        epoch_discarded=("It could not prepare an epoch, or has given it up.", "epoch sentence"),
        pages_refused=("KV pages came damaged and are sent again.", "epoch layers sentence"),
        stage_step=("It has computed its part of a step.", "epoch step tokens compute_s"),
        stale_dropped=("A message of a past epoch came and was dropped.", "what epoch step"),
        neighbour_lost=("The stage before or after it is gone.", "epoch link sentence"),
        worker_leaving=("It ends in order.", "reason"),
        worker_failed=("It ends for an error.", "error sentence"),
    ),
    **_of(
        "simulation",
        fault_injected=("A fault begins.", "fault phase target"),
        rule_violated=("The history broke a rule.", "rule sentence"),
    ),
    **_of(
        "HTTP gateway",
        gateway_draining=("No new requests; those under way end.", "drain_s_max"),
        gateway_closed=("The port is closed.", "cut_connections"),
        http_generation_ended=(
            "An HTTP request for tokens has ended.",
            "http_request outcome prompt_tokens output_tokens duration_s",
        ),
        http_refactor_ended=("An HTTP request for a change has ended.", "http_request outcome duration_s"),
        http_request_broke=("An HTTP request broke: a bug of ours.", "http_request error"),
        connection_broke=("A connection broke: a bug of ours.", "error"),
    ),
}


def fault_of(event: str, fields: Mapping[str, object]) -> str:
    """What is wrong with an event, "" where it is as catalogued."""
    kind = EVENTS.get(event)
    if kind is None:
        return f"{event!r} is not in the event catalogue"
    if len(fields) != len(kind.fields) or not all(name in fields for name in kind.fields):
        return f"{event!r} has fields {sorted(fields)}, the catalogue says {sorted(kind.fields)}"
    for name, value in fields.items():
        wanted = FIELDS[name].value if name in FIELDS else BOUND[name].value
        accepted = (int, float) if wanted is float else wanted
        if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
            return f"{event!r} has {name} of type {type(value).__name__}, the catalogue says {wanted.__name__}"
    return ""
