"""kill -9 of each process in each phase of a change, with real processes: every stream ends with its undisturbed text."""

import errno
import os
import signal

import flexpipe
import pytest
import slow_disk_server
from flexpipe.client_errors import RefactorAbortedError, RefactorError, RefactorRecoveredError
from served import parent_of, served, wait_gone
from text_streams import text_streams
from tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.slow

TOKENS = 240
REQUESTS = [
    {"prompt": prompt, "max_tokens": TOKENS} for prompt in ("The pipeline", "When the demand changes, " * 12, "a b c")
]
OPTIONS = ("--partition", "4,4", "--deterministic", "--step-tokens", "16", "--drain", "1")
PHASES = ("load", "copy", "commit", "switch", "release")
PARTICIPANTS = ("new-only", "both", "old-only")
ABORTABLE = {"plan", "load", "copy", "abort"}
"""A death in these phases leaves the old stages, or brings them up again."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", layers=8, context_tokens=1024)


@pytest.fixture(scope="module")
def undisturbed(checkpoint, tmp_path_factory):
    with (
        served(checkpoint, *OPTIONS, log_folder=tmp_path_factory.mktemp("logs")) as server,
        text_streams(server.url, REQUESTS) as streams,
    ):
        return streams.texts()


@pytest.fixture
def server(checkpoint, tmp_path):
    """A server of its own: after five failures without a minute of service a pipeline is given up."""
    with served(checkpoint, *OPTIONS, log_folder=tmp_path) as running:
        yield running


def move_last_stage(server):
    """A move of the last stage to a device that is free: its worker only gives, a new one only takes, the first does both."""
    stages = server.status()["stages"]
    layers = stages[-1]["layers"]
    taken = {stage["device"] for stage in stages}
    free = next(device for number in range(64) if (device := f"cpu:{number}") not in taken)
    return f"{layers[0]}-{layers[-1]}:{free}"


def victim_of(server, participant, before):
    """The pid of a participant, 0 while there is none."""
    if participant == "both":
        return before[0]["pid"]
    if participant == "old-only":
        return before[-1]["pid"]
    newest = max(server.spawned().items())
    return newest[1] if newest[0] > max(stage["worker"] for stage in before) else 0


def refactor(server, harm):
    """Begin the move, and call ``harm(progress)`` for all that is told of it; the error that it ended with, None without."""
    with flexpipe.Client(server.url) as client:
        try:
            for progress in client.refactor(move=move_last_stage(server)):
                harm(progress)
        except RefactorError as error:
            return error
    return None


def refactor_and_kill(server, phase, participant):
    """Begin the move, kill as soon as it is in ``phase`` and the process is there; how it ended, and the pid."""
    before = server.status()["stages"]
    killed = []

    def kill(progress):
        if not killed and place(progress.phase) >= place(phase) and (pid := victim_of(server, participant, before)):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    error = refactor(server, kill)
    assert killed, "nobody was killed"
    return error, killed[0]


def place(phase):
    return PHASES.index(phase) if phase in PHASES else -1


def phase_of_death(server, pid):
    """The phase in which the daemon saw the process end, "" where no change was under way."""
    worker, phase = worker_of(server, pid), ""
    for event in server.events("change_phase", "change_ended", "worker_exited", "worker_lost"):
        match event["event"]:
            case "change_phase":
                phase = event["phase"]
            case "change_ended":
                phase = ""
            case _ if event["worker"] == worker:
                return phase
    raise AssertionError(f"nobody saw worker {worker} end")


def check_outcome(server, error, died_in, participant, before):
    """What the change said of itself is allowed for that death, and true of what serves now."""
    serves = [stage["layers"] for stage in server.status()["stages"]]
    devices = [stage["device"] for stage in server.status()["stages"]]
    assert serves == [stage["layers"] for stage in before]
    if isinstance(error, RefactorAbortedError):
        assert devices == [stage["device"] for stage in before]
        assert died_in in {*ABORTABLE, ""}  # "": its neighbours missed it first
    else:
        assert devices != [stage["device"] for stage in before]
        assert error is None or isinstance(error, RefactorRecoveredError)
    if died_in in ABORTABLE:
        assert isinstance(error, RefactorAbortedError)
    if died_in == "switch" and participant != "old-only":
        assert isinstance(error, RefactorRecoveredError)


@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_in_any_phase_costs_no_stream_a_token(server, undisturbed, phase, record_property):
    for participant in PARTICIPANTS:
        before = server.status()["stages"]
        with text_streams(server.url, REQUESTS) as streams:
            streams.wait_flowing()
            error, pid = refactor_and_kill(server, phase, participant)
            assert streams.flowing() == len(REQUESTS)
            assert streams.texts() == undisturbed
        wait_gone(pid)
        server.wait_ready()
        server.wait_no_worker_left()
        died_in = phase_of_death(server, pid)
        record_property(f"{participant} died in", died_in)
        print(phase, participant, "died in", died_in or "no phase", "->", type(error).__name__)
        check_outcome(server, error, died_in, participant, before)
    assert server.events("pipeline_down") == []


@pytest.fixture
def disk(tmp_path):
    """A named pipe: a decision that waits for it is written once it was opened for writing."""
    path = tmp_path / "disk"
    os.mkfifo(path)
    return path


@pytest.fixture
def server_on_slow_disk(checkpoint, disk, tmp_path):
    program = slow_disk_server.PROGRAM, str(disk)
    with served(checkpoint, *OPTIONS, log_folder=tmp_path, program=program) as running:
        yield running
        let_waiting_decision_be_written(disk)  # after a failure, or the server could not end


def let_waiting_decision_be_written(disk):
    try:
        os.close(os.open(disk, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.ENXIO:  # none waits
            raise


def refactor_and_kill_while_the_disk_writes(server, disk, participant):
    """Begin the move, kill while its decision is on its way to the disk, let it get there once the death was seen."""
    before = server.status()["stages"]
    killed = []

    def kill(progress):
        if progress.phase == "commit" and not killed:
            killed.append(victim_of(server, participant, before))
            os.kill(killed[0], signal.SIGKILL)
            server.wait_event("worker_exited", worker=worker_of(server, killed[0]))
            disk.write_bytes(b"")

    return refactor(server, kill), killed[0]


def worker_of(server, pid):
    return next(worker for worker, its_pid in server.spawned().items() if its_pid == pid)


def test_a_kill_while_the_decision_is_written_costs_no_stream_a_token(server_on_slow_disk, disk, undisturbed):
    server = server_on_slow_disk
    for participant in PARTICIPANTS:
        before = server.status()["stages"]
        with text_streams(server.url, REQUESTS) as streams:
            streams.wait_flowing()
            error, pid = refactor_and_kill_while_the_disk_writes(server, disk, participant)
            assert streams.flowing() == len(REQUESTS)
            assert streams.texts() == undisturbed
        assert isinstance(error, RefactorRecoveredError)  # the decision got to the disk, so that it stands
        server.wait_ready()
        server.wait_no_worker_left()
        assert phase_of_death(server, pid) == "commit"
        check_outcome(server, error, "commit", participant, before)
    assert server.events("pipeline_down") == []


def test_a_fork_server_killed_in_a_change_is_replaced_and_its_workers_are_still_watched(server, undisturbed):
    first = server.fork_server()

    def kill(progress):
        if progress.phase == "plan":
            os.kill(first, signal.SIGKILL)

    with text_streams(server.url, REQUESTS) as streams:
        streams.wait_flowing()
        error = refactor(server, kill)
        assert error is None or "could not be started: the fork server died" in str(error)
        assert streams.texts() == undisturbed
    assert refactor(server, lambda _progress: None) is None
    orphan, newcomer = server.pids()
    assert parent_of(newcomer) not in (first, parent_of(orphan))
    with text_streams(server.url, REQUESTS) as streams:
        streams.wait_flowing()
        os.kill(orphan, signal.SIGKILL)
        assert streams.texts() == undisturbed
    server.wait_ready()
    server.wait_no_worker_left()
    assert server.events("pipeline_down") == []


def test_a_worker_that_hangs_in_a_change_is_noticed_by_its_silence_and_replaced(server, undisturbed):
    hung = server.pids()[0]

    def hang(progress):
        if progress.phase == "copy":
            os.kill(hung, signal.SIGSTOP)

    with text_streams(server.url, REQUESTS) as streams:
        streams.wait_flowing()
        assert refactor(server, hang) is not None
        assert streams.texts() == undisturbed
    wait_gone(hung)
    server.wait_ready()
    server.wait_no_worker_left()
    assert server.events("pipeline_down") == []


# --- what requests may ask for ---

PROMPT = "The pipeline is cut into stages"
IGNORE_END = {"ignore_eos": True}
KINDS = {
    "n": {"n": 2, "temperature": 1.0, "seed": 7},
    "seed": {"temperature": 0.9, "top_p": 0.95, "seed": 11},
    "logprobs": {"logprobs": 3},
    "penalties": {
        "temperature": 0.7,
        "seed": 5,
        "presence_penalty": 0.8,
        "frequency_penalty": 0.4,
        "extra_body": IGNORE_END | {"repetition_penalty": 1.3},
    },
    "stop": {"temperature": 1.0, "seed": 3},
}


def requests_of_every_kind(url):
    """One request a kind; the stop string is one that its answer comes to say late."""
    requests = {name: {"prompt": PROMPT, "max_tokens": TOKENS} | options for name, options in KINDS.items()}
    with text_streams(url, [requests["stop"]]) as streams:
        (text,) = streams.texts()
    late = text[len(text) * 3 // 4 :]
    requests["stop"]["stop"] = [
        next(late[at : at + 4] for at in range(len(late)) if text.count(late[at : at + 4]) == 1)
    ]
    return requests


def lose_a_worker(server):
    os.kill(server.pids()[0], signal.SIGKILL)


def move_a_stage(server):
    assert refactor(server, lambda _progress: None) is None


@pytest.mark.parametrize("disturb", [move_a_stage, lose_a_worker])
def test_whatever_a_request_asked_for_it_gets_across_a_refactor_and_a_recovery(server, disturb):
    requests = requests_of_every_kind(server.url)
    with text_streams(server.url, list(requests.values())) as streams:
        expected = dict(zip(requests, streams.answers(), strict=True))
    with text_streams(server.url, list(requests.values())) as streams:
        streams.wait_flowing()
        disturb(server)
        assert streams.flowing() == len(requests)
        got = dict(zip(requests, streams.answers(), strict=True))
    assert {name: answer.texts for name, answer in got.items()} == {n: answer.texts for n, answer in expected.items()}
    assert got["n"].texts[0] != got["n"].texts[1]
    assert got["stop"].finish == {0: "stop"}
    assert {name for name, answer in got.items() if set(answer.finish.values()) == {"length"}} == set(requests) - {
        "stop"
    }
    tokens, expected_tokens = got["logprobs"].logprobs[0], expected["logprobs"].logprobs[0]
    assert [token for token, _ in tokens] == [token for token, _ in expected_tokens]
    assert [value for _, value in tokens] == pytest.approx([value for _, value in expected_tokens], abs=1e-4)
