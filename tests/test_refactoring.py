"""`flexpipe refactor` on real processes: streams through the HTTP API run on and give the texts of an undisturbed run."""

import json
import subprocess
import sys

import flexpipe
import httpx
import pytest
from flexpipe.client_errors import RefactorRefusedError
from served import served
from text_streams import text_streams
from tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.slow

LAYERS = 8
TOKENS = 800
REQUESTS = [
    {"prompt": prompt, "max_tokens": TOKENS}
    for prompt in ("The pipeline", "When the demand changes, " * 12, "a b c d e f g", "x")
]
"""The second is longer than a step, so that its prefill takes several."""
OPTIONS = ("--deterministic", "--step-tokens", "16", "--drain", "1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", layers=LAYERS, context_tokens=2048)


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    with served(checkpoint, "--stages", "2", *OPTIONS, log_folder=tmp_path_factory.mktemp("logs")) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(server):
    with text_streams(server.url, REQUESTS) as streams:
        return streams.texts()


@pytest.fixture
def client(server):
    with flexpipe.Client(server.url) as made:
        yield made


def refactored(client, **options):
    report = client.refactor(**options).wait()
    assert report.requests_lost == 0
    return report


def layers_of(client):
    """The layers of each stage, as `flexpipe ps` would show them."""
    return [stage["layers"] for stage in client.status()["stages"]]


def another_count(client):
    """Two stages or three, whichever there are not."""
    return 3 if len(client.status()["stages"]) == 2 else 2


def flexpipe_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "flexpipe.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_a_chain_of_changes_is_not_seen_by_any_stream(server, client, undisturbed):
    with text_streams(server.url, REQUESTS) as streams:
        streams.wait_flowing()
        for stages in (4, 3, 1):
            report = refactored(client, stages=stages)
            assert len(report.stages) == len(client.status()["stages"]) == stages
            assert set(report.phase_ms) == {"plan", "load", "copy", "commit", "switch", "release"}
            assert report.kv_sent_bytes >= report.kv_final_bytes > 0
            assert report.requests_reprefilled == 0
            assert report.pauses.requests == streams.flowing() == len(REQUESTS)
            streams.wait_flowing(2)
        assert streams.texts() == undisturbed
    server.wait_no_worker_left()
    assert all(stage["kv_pages_used"] == 0 for stage in client.status()["stages"])


def test_a_cut_may_go_through_a_block_between_attention_and_mlp(server, client, undisturbed):
    refactored(client, partition="4,4")
    with text_streams(server.url, REQUESTS) as streams:
        streams.wait_flowing()
        report = refactored(client, partition="0:4,4:9,9:18")
        assert streams.flowing() == len(REQUESTS)
        assert streams.texts() == undisturbed
    names = [name.split(" on ")[0] for name in report.stages]
    assert names == [
        "embed…layers.1.attention",
        "layers.1.mlp…layers.3.mlp",
        "layers.4.attention…head",
    ]
    stages = client.status()["stages"]
    assert (stages[0]["last_atom"], stages[1]["first_atom"]) == ("layers.1.attention", "layers.1.mlp")
    assert layers_of(client) == [[0, 1], [2, 3], [4, 5, 6, 7]]


def test_layers_move_to_a_device(server, client, undisturbed):
    refactored(client, partition="3,5")
    with text_streams(server.url, REQUESTS) as streams:
        streams.wait_flowing()
        report = refactored(client, move="6-7:cpu:9")
        assert streams.flowing() == len(REQUESTS)
        assert streams.texts() == undisturbed
    assert [name.rpartition(" on ")[2] for name in report.stages].count("cpu:9") == 1
    stages = {stage["device"]: stage["layers"] for stage in client.status()["stages"]}
    assert stages["cpu:9"] == [6, 7]
    assert layers_of(client) == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize("strategy", ["precopy", "stop-copy", "recompute", "restart"])
def test_every_strategy_gives_the_same_texts_and_says_what_it_cost(server, client, undisturbed, strategy):
    stages = another_count(client)
    with text_streams(server.url, REQUESTS) as streams:
        streams.wait_flowing()
        report = refactored(client, stages=stages, strategy=strategy)
        assert streams.flowing() == len(REQUESTS)
        assert streams.texts() == undisturbed
    assert (report.strategy, len(client.status()["stages"])) == (strategy, stages)
    copies, begins_anew = strategy in ("precopy", "stop-copy"), strategy in ("recompute", "restart")
    assert (report.kv_sent_bytes > 0) == copies
    assert (report.requests_reprefilled == len(REQUESTS)) == begins_anew
    if strategy == "stop-copy":
        assert report.kv_final_bytes == report.kv_sent_bytes


# --- what is asked for in another way, and what is refused ---


def test_the_command_prints_its_report_as_json(server, client):
    stages = another_count(client)
    done = flexpipe_command("refactor", "tiny", "--stages", str(stages), "--json", "--url", server.url)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["kind"], report["epoch"], len(report["stages"])) == ("report", client.status()["epoch"], stages)
    assert report["pauses"] == {"requests": 0, "p50_ms": None, "p99_ms": None, "max_ms": None}
    weights = report["weights"]
    assert sum(weights.values()) > 0
    assert weights["disk_bytes"] == 0  # all of it was packed before, on this host


BAD = [
    ({"partition": "3,3"}, "partition 3,3 has 6 layers in 2 stages, but the model has 8"),
    ({"partition": "0:5,6:18"}, "range 6:18 must begin at atom 5"),
    ({"stages": 99}, "99 stages need 98 cuts, but the model can be cut at 17 places; ask for at most 18"),
    ({"move": "0-1:cuda:0"}, "there is no device cuda:0 here"),
    ({"move": "0-1:cpu:99"}, "there is no device cpu:99 here"),
    ({"move": "0-9:cpu:8"}, "move '0-9:cpu:8' goes beyond the model, which has layers 0-7"),
    ({"move": "0-1:tpu:8"}, "move '0-1:tpu:8' is not layers and a device"),
]


@pytest.mark.parametrize(("wanted", "sentence"), BAD, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_what_cannot_be_is_one_sentence_and_changes_nothing(server, wanted, sentence):
    before = server.status()
    answer = httpx.post(f"{server.url}/flexpipe/v1/refactor", json=wanted)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (409, "refactor_refused")
    assert error["message"].startswith(sentence)
    assert shape(server.status()) == shape(before)


def shape(status):
    return status["epoch"], [(stage["pid"], stage["layers"], stage["device"]) for stage in status["stages"]]


def test_a_device_that_holds_another_stage_is_taken(server, client):
    refactored(client, partition="3,3,2")
    before = server.status()
    last = before["stages"][2]["device"]
    with pytest.raises(RefactorRefusedError, match=f"{last} holds .* which layers 0-1 do not touch"):
        client.refactor(move=f"0-1:{last}")
    assert shape(server.status()) == shape(before)


def test_a_second_change_while_one_runs_is_refused_and_the_first_is_not_disturbed(server, client):
    stages = another_count(client)
    first = client.refactor(stages=stages)
    next(iter(first))
    with pytest.raises(RefactorRefusedError, match="still under way") as refusal:
        client.refactor(stages=5)
    assert refusal.value.status == 409
    assert len(first.wait().stages) == len(client.status()["stages"]) == stages


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--partition", "3,3"), 1, "partition 3,3 has 6 layers"),
        (("--stages", "0"), 2, "`stages` is 0"),
        (("--stages", "2", "--move", "0-1:cpu:3"), 2, "give exactly one of"),
        ((), 2, "give exactly one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_command_says_in_one_sentence_what_was_wrong(server, arguments, code, sentence):
    done = flexpipe_command("refactor", *arguments, "--url", server.url)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
