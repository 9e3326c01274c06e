"""A request's story names a cause only where one is in the logs, and each cause by name."""

import pytest
from flexpipe.actors.config import ConfigError
from flexpipe.story.storyteller import story_of
from log_lines_of import BEGIN_S, TIMES, Writer, ended, request

TRACE = "5a" * 16


@pytest.fixture
def daemon():
    return Writer("daemon")


def told(daemon, tmp_path, asked=TRACE):
    daemon.save(tmp_path / "daemon.jsonl")
    return story_of(asked, [tmp_path])


def pieces(story):
    return [(span.kind, round(span.begin_s - BEGIN_S, 3), round(span.end_s - BEGIN_S, 3)) for span in story.spans]


def test_an_undisturbed_request_waits_is_prefilled_and_decodes(daemon, tmp_path):
    request(daemon, TRACE)
    story = told(daemon, tmp_path)
    assert pieces(story) == [("queue", 1.0, 1.1), ("prefill", 1.1, 1.2), ("decode", 1.2, 3.0)]
    assert story.spent_s == pytest.approx({"queue": 0.1, "prefill": 0.1, "decode": 1.8, "stall": 0.0}, abs=1e-6)
    assert "19 tokens" in story.spans[2].says
    assert story.notes == []


def test_a_preempted_request_says_that_older_ones_needed_its_blocks(daemon, tmp_path):
    between = [
        (2.0, "request_requeued", {"request": 0, "cause": "preempted", "output_tokens": 8}),
        (2.5, "request_admitted", {"request": 0, "epoch": 1, "step": 5}),
        (2.7, "request_decoding", {"request": 0, "output_tokens": 9}),
    ]
    request(daemon, TRACE, between=between)
    story = told(daemon, tmp_path)
    assert [kind for kind, *_ in pieces(story)] == ["queue", "prefill", "decode", "queue", "prefill", "decode"]
    assert story.spans[3].says == "older requests needed its KV blocks"
    assert story.spans[4].says == "the prompt and 8 tokens again"
    assert "The longest wait, 0.50 s: older requests needed its KV blocks." in story.verdict


def test_a_stall_in_a_change_names_its_phase(daemon, tmp_path):
    between = [
        (1.9, "change_phase", {"epoch": 2, "strategy": "precopy", "phase": "copy"}),
        (2.0, "change_phase", {"epoch": 2, "strategy": "precopy", "phase": "switch"}),
        (2.4, "request_stalled", {"request": 0, "output_tokens": 9, "gap_s": 0.4}),
        (2.5, "change_ended", {"epoch": 2, "outcome": "done", "sentence": ""}),
    ]
    request(daemon, TRACE, between=between)
    story = told(daemon, tmp_path)
    stall = next(span for span in story.spans if span.kind == "stall")
    assert stall.lasted_s == pytest.approx(0.4, abs=1e-5)
    assert stall.says.startswith("the change (precopy) to epoch 2, mostly in phase switch")
    assert [span.kind for span in story.around] == ["change"]


def test_a_stall_beside_a_long_prompt_names_the_prompt(daemon, tmp_path):
    between = [
        (2.1, "step_sent", {"epoch": 1, "step": 7, "rows": 2, "tokens": 513}),
        (2.4, "request_stalled", {"request": 0, "output_tokens": 9, "gap_s": 0.4}),
    ]
    request(daemon, TRACE, between=between)
    assert "steps with prompts of others, of up to 513 tokens" in told(daemon, tmp_path).spans[3].says


def test_a_stall_that_nothing_explains_says_so(daemon, tmp_path):
    request(daemon, TRACE, between=[(2.4, "request_stalled", {"request": 0, "output_tokens": 9, "gap_s": 0.4})])
    assert "no event explains it" in told(daemon, tmp_path).verdict[-1]


def test_a_worker_that_was_let_go_is_no_cause(daemon, tmp_path):
    between = [
        (1.8, "worker_retired", {"worker": 3, "at_once": True, "reason": "not needed"}),
        (1.9, "worker_lost", {"worker": 3, "sentence": "gone"}),
        (1.9, "worker_exited", {"worker": 3, "code": -9}),
        (2.4, "request_stalled", {"request": 0, "output_tokens": 9, "gap_s": 0.4}),
    ]
    request(daemon, TRACE, between=between)
    story = told(daemon, tmp_path)
    assert story.moments == []
    assert "no event explains it" in story.verdict[-1]


def test_a_request_is_followed_from_replica_to_replica(daemon, tmp_path):
    daemon.at(1.0, "request_queued", trace=TRACE, request=4, prompt_tokens=10, max_tokens=20)
    daemon.at(1.1, "request_admitted", request=4, epoch=1, step=0)
    daemon.at(1.2, "request_decoding", request=4, output_tokens=1)
    daemon.at(2.0, "request_failed", request=4, reason="stage_lost", sentence="gone", output_tokens=9, **TIMES)
    moved = {"trace": TRACE, "from_replica": 0, "to_replica": 1, "output_tokens": 9, "sentence": "gone"}
    other = Writer("daemon", replica=1)
    request(other, TRACE, number=7, begin_s=2.1, end_s=4.0)
    daemon.at(2.1, "request_moved", **moved)
    other.save(tmp_path / "other.jsonl")
    story = told(daemon, tmp_path)
    assert "(replica 0, then replica 1)" in story.title
    assert [moment.says for moment in story.moments] == ["moved from replica 0 to 1: gone"]
    assert [kind for kind, *_ in pieces(story)] == ["queue", "prefill", "decode"] * 2


def test_a_request_without_an_end_is_told_until_now(daemon, tmp_path):
    daemon.at(1.0, "request_queued", trace=TRACE, request=4, prompt_tokens=10, max_tokens=20)
    daemon.at(1.5, "request_admitted", request=4, epoch=1, step=0)
    story = told(daemon, tmp_path)
    assert "has no end in these logs" in story.title
    assert pieces(story)[0] == ("queue", 1.0, 1.5)


def test_of_several_sequences_the_one_that_ended_last_is_told(daemon, tmp_path):
    request(daemon, TRACE, number=0, end_s=3.0)
    request(daemon, TRACE, number=1, begin_s=1.0, end_s=5.0)
    story = told(daemon, tmp_path)
    assert pieces(story)[-1] == ("decode", 1.2, 5.0)
    assert story.notes == ["The HTTP request had 1 more sequence; this is the one that ended last."]


def test_a_gateway_s_log_alone_says_what_is_missing(daemon, tmp_path):
    ended(daemon, TRACE, 3.0, 2.0)
    story = told(daemon, tmp_path)
    assert story.spans == []
    assert "give --logs of the node that led" in story.notes[0]


@pytest.mark.parametrize("asked", ["last", TRACE[:8], f"chatcmpl-{TRACE}"])
def test_a_request_is_found_by_whatever_names_it(daemon, tmp_path, asked):
    request(daemon, "0b" * 16)
    request(daemon, TRACE, number=1, begin_s=2.0, end_s=4.0)
    assert told(daemon, tmp_path, asked).title.startswith(f"Request {TRACE}")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("cc" * 16, "no request in these logs"),
        ("5a", "is no request or epoch"),
        ("7", "no change of the pipeline to epoch 7"),
        ("last-refactor", "no change of the pipeline at all"),
        ("5a5a5a", "2 requests have ids that begin with 5a5a5a"),
    ],
)
def test_what_is_not_in_the_logs_is_said_in_one_sentence(daemon, tmp_path, asked, says):
    request(daemon, TRACE)
    request(daemon, f"{TRACE[:-1]}b", number=1)
    with pytest.raises(ConfigError, match=says):
        told(daemon, tmp_path, asked)


def test_the_last_refactoring_is_none_that_nobody_asked_for(daemon, tmp_path):
    for epoch, strategy in ((1, "start"), (2, "precopy"), (3, "recover")):
        daemon.at(epoch, "change_phase", epoch=epoch, strategy=strategy, phase="plan")
        daemon.at(epoch + 0.5, "change_ended", epoch=epoch, outcome="done", sentence="")
    assert "to epoch 2 of replica 0: done after 0.50 s" in told(daemon, tmp_path, "last-refactor").title


@pytest.mark.parametrize(("switched_s", "stage"), [(1.7, 2), (2.3, 0)])
def test_a_worker_that_died_is_called_by_the_stage_that_it_was(daemon, tmp_path, switched_s, stage):
    worker = Writer("worker-5", pid=9)
    worker.at(0.5, "worker_loading", epoch=1, stage=0, first_atom=0, end_atom=4, device="cuda:0")
    worker.at(1.5, "worker_loading", epoch=2, stage=2, first_atom=4, end_atom=8, device="cuda:0")
    worker.at(1.6, "worker_opened", epoch=3, stage=-1, kv_blocks=1, transfers=1)
    worker.save(tmp_path / "worker-5.jsonl")
    dead = (2.0, "worker_exited", {"worker": 5, "code": -9})
    switch = (switched_s, "change_phase", {"epoch": 2, "strategy": "precopy", "phase": "switch"})
    request(daemon, TRACE, between=sorted([dead, switch], key=lambda event: event[0]))
    assert [m.says for m in told(daemon, tmp_path).moments] == [
        f"stage {stage} (worker 5 on cuda:0) was killed (SIGKILL)"
    ]
