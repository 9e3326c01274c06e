"""Several replicas with real processes: started, refactored, killed and retired while requests run."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import flexpipe
import openai
import pytest
from served import served
from tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.slow

TOKENS = 120
PROMPTS = [f"Request number {number} asks for" for number in range(6)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    checkpoint = write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", layers=4)
    logs = tmp_path_factory.mktemp("logs")
    with served(checkpoint, "--stages", "1", "--deterministic", log_folder=logs) as running:
        yield running


@pytest.fixture
def client(server):
    with flexpipe.Client(server.url) as made:
        yield made


def text_of(server, prompt):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.completions.create(
            model="tiny",
            prompt=prompt,
            max_tokens=TOKENS,
            temperature=0.8,
            seed=len(prompt),
            frequency_penalty=0.3,
            extra_body={"ignore_eos": True},
        )
    return answer.choices[0].text


def texts(server, meanwhile=lambda: None):
    """Every prompt's text, all asked at once."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = [pool.submit(text_of, server, prompt) for prompt in PROMPTS]
        meanwhile()
        return [answer.result() for answer in answers]


def stages_of(client):
    return [(stage["replica"], stage["stage"]) for stage in client.status()["stages"]]


def test_replicas_come_change_die_and_go_without_a_wrong_token(server, client):
    def replicate():
        report = client.refactor(replicas=2).wait()
        assert (report.deed, report.replica, report.requests_lost) == ("started", 1, 0)
        assert stages_of(client) == [(0, 0), (1, 0)]

    def reshape():
        report = client.refactor(stages=2).wait()
        assert [at.replica for at in (*report.earlier, report)] == [0, 1]
        assert stages_of(client) == [(0, 0), (0, 1), (1, 0), (1, 1)]

    def kill():
        os.kill(next(at["pid"] for at in client.status()["stages"] if at["replica"] == 0), signal.SIGKILL)
        assert client.ready()  # the other one serves

    def retire():
        report = client.refactor(replicas=1).wait()
        assert (report.deed, report.replica, report.requests_lost) == ("retired", 1, 0)
        assert {replica for replica, _ in stages_of(client)} == {0}

    alone = texts(server)
    assert texts(server, replicate) == alone
    assert texts(server, reshape) == alone
    assert texts(server, kill) == alone
    assert texts(server, retire) == alone
