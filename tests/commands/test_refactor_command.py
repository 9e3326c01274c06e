"""`flexpipe refactor` as a process of its own, against a real server over a refactorer in memory."""

import json
import signal
import subprocess
import sys
from functools import partial
from typing import get_args

import pytest
import trio
from flexpipe.actors.route import STRATEGIES
from flexpipe.cli import Strategy
from gateway_harness import MODEL, running_gateway
from toy_refactorer import ToyRefactorer

COMMAND = [sys.executable, "-m", "flexpipe.cli", "refactor"]
HANG_S = 60


def refactoring_gateway():
    return running_gateway(refactorer=ToyRefactorer())


async def refactor(gateway, *arguments, **environment):
    command = [*COMMAND, *arguments, "--url", gateway.url]
    run = partial(subprocess.run, command, capture_output=True, text=True, timeout=HANG_S, check=False)
    return await trio.to_thread.run_sync(partial(run, env=environment or None))


def said(process):
    """What it wrote to stderr, in one line whatever the width."""
    return " ".join(process.stderr.split())


async def test_the_report_is_told_in_words():
    async with refactoring_gateway() as gateway:
        done = await refactor(gateway, MODEL, "--stages", "4")
    assert (done.returncode, done.stderr.strip()) == (0, "")
    words = {line.split("  ")[0].strip(): " ".join(line.split()) for line in done.stdout.splitlines()}
    assert "precopy" in words["epoch 2"]
    assert words["stage 3"].endswith("3 layers")
    assert words["copy"].endswith("1.5 ms")
    assert "3.9 KiB kept" in words["weights"]
    assert "p50 1.0 ms, p99 2.0 ms, longest 2.5 ms" in words["pauses"]
    assert "20.0 ms before, - while loading, 21.0 ms while copying (1.05x)" in words["TPOT"]
    assert "0 lost, 1 preempted, 2 prefilled again" in words["requests"]
    assert max(map(len, done.stdout.splitlines())) <= 80


async def test_the_report_is_json_for_machines_and_nothing_else_is_on_stdout():
    async with refactoring_gateway() as gateway:
        done = await refactor(gateway, "--partition", "2,10", "--strategy", "stop-copy", "--json")
        assert done.returncode == 0
        report = json.loads(done.stdout)
        assert (report["strategy"], report["stages"]) == ("stop-copy", ["2 layers", "10 layers"])
        assert gateway.refactorer.shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "there is none"),
        (["--stages", "2", "--move", "1-2:cpu:3"], 2, "there is --stages and --move"),
        (["other", "--stages", "2"], 2, f"serves {MODEL}, not other"),
        (["--stages", "0"], 2, "`stages` is 0"),
        (["--stages", "two"], 2, "--stages"),
        (["--stages", "2", "--strategy", "hope"], 2, "--strategy"),
        (["--stages", "13"], 1, "13 stages are more than the 12 layers."),
    ],
)
async def test_what_cannot_be_is_one_sentence_and_an_exit_code(arguments, code, sentence):
    async with refactoring_gateway() as gateway:
        done = await refactor(gateway, *arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert sentence in said(done)
        assert "Traceback" not in done.stderr
        assert gateway.refactorer.epoch == 1


async def test_a_change_that_is_aborted_fails_with_its_sentence():
    async with refactoring_gateway() as gateway:
        gateway.refactorer.fail_next("aborted")
        done = await refactor(gateway, "--stages", "4", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert said(done) == "stage 1 has no room; the old stages serve on."


async def test_ctrl_c_stops_the_watching_only():
    async with refactoring_gateway() as gateway:
        gateway.refactorer.hold(("commit",))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
        process = await trio.lowlevel.open_process(
            [*COMMAND, "--stages", "4", "--url", gateway.url], stderr=subprocess.PIPE
        )
        try:
            await gateway.refactorer.until_running()
            process.send_signal(signal.SIGINT)
            async with process.stderr:
                stderr = b"".join([part async for part in process.stderr])
            await process.wait()
        finally:
            process.kill()
        assert process.returncode == 1
        assert b"goes on at the server" in b" ".join(stderr.split())
        gateway.refactorer.release()
        await gateway.refactorer.until_idle()
        assert gateway.refactorer.shape == (3, 3, 3, 3)


async def test_settings_of_a_server_in_the_environment_do_not_count():
    async with refactoring_gateway() as gateway:
        done = await refactor(gateway, "--partition", "2,10", FLEXPIPE_STAGES="3", FLEXPIPE_API_KEY="key")
        assert done.returncode == 0, done.stderr


def test_the_command_line_knows_every_strategy():
    assert get_args(Strategy) == STRATEGIES
