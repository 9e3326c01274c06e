"""`Client.refactor` and `AsyncClient.refactor` against a real server over a refactorer in memory."""

import asyncio
from functools import partial

import pytest
import trio
from flexpipe.client import AsyncClient, Client
from flexpipe.client_errors import (
    InvalidRequestError,
    RefactorAbortedError,
    RefactorRecoveredError,
    RefactorRefusedError,
    ServerError,
    StreamInterruptedError,
)
from flexpipe.client_events import RefactorReader
from gateway_harness import running_gateway
from toy_refactorer import ToyRefactorer


def refactoring_gateway():
    return running_gateway(refactorer=ToyRefactorer())


async def in_thread(function, *arguments):
    return await trio.to_thread.run_sync(partial(function, *arguments))


async def test_the_client_iterates_over_progress_and_has_the_report_at_the_end():
    def use(url):
        with Client(url) as client, client.refactor(stages=4) as refactoring:
            assert refactoring.report is None
            phases = list(dict.fromkeys(progress.phase for progress in refactoring))
            assert phases == ["plan", "load", "copy", "commit", "switch", "release"]
            assert (refactoring.report.epoch, len(refactoring.report.stages)) == (2, 4)
            again = client.refactor(partition="2,10", strategy="stop-copy").wait()
            assert (again.epoch, again.strategy) == (3, "stop-copy")

    async with refactoring_gateway() as gateway:
        await in_thread(use, gateway.url)
        assert gateway.refactorer.shape == (2, 10)


async def use_async_client(url):
    async with AsyncClient(url) as client:
        async with await client.refactor(stages=4) as refactoring:
            done = [progress.done async for progress in refactoring if progress.phase == "copy"]
        assert done == [64, 128, 192, 256]
        assert refactoring.report.epoch == 2
        assert (await (await client.refactor(stages=3)).wait()).epoch == 3
        with pytest.raises(RefactorRefusedError):
            await client.refactor(stages=13)


async def test_the_asynchronous_client_refactors_under_trio():
    async with refactoring_gateway() as gateway:
        await use_async_client(gateway.url)


async def test_the_asynchronous_client_refactors_under_asyncio():
    async with refactoring_gateway() as gateway:
        await in_thread(lambda: asyncio.run(use_async_client(gateway.url)))


@pytest.mark.parametrize(
    ("reason", "error"), [("aborted", RefactorAbortedError), ("recovered", RefactorRecoveredError)]
)
async def test_a_change_that_does_not_come_off_raises_after_its_progress(reason, error):
    async with refactoring_gateway() as gateway, AsyncClient(gateway.url) as client:
        gateway.refactorer.fail_next(reason)
        refactoring = await client.refactor(stages=4)
        seen = []
        with pytest.raises(error) as failure:
            await collect(refactoring, seen)
        assert seen
        assert failure.value.code == f"refactor_{reason}"
        assert refactoring.report is None


async def collect(refactoring, seen):
    async for progress in refactoring:
        seen.append(progress)


async def test_refusals_have_types_and_name_what_is_wrong():
    async with refactoring_gateway() as gateway, AsyncClient(gateway.url) as client:
        with pytest.raises(InvalidRequestError) as refusal:
            await client.refactor(stages=2, partition="6,6")
        assert refusal.value.param == "partition"
        with pytest.raises(RefactorRefusedError) as refusal:
            await client.refactor(partition="6,7")
        assert "13 layers" in str(refusal.value)
    async with running_gateway() as gateway, AsyncClient(gateway.url) as client:
        with pytest.raises(ServerError) as refusal:
            await client.refactor(stages=2)
        assert refusal.value.code == "refactor_unsupported"


async def test_who_stops_watching_does_not_break_the_change_off():
    async with refactoring_gateway() as gateway, AsyncClient(gateway.url) as client:
        gateway.refactorer.hold(("commit",))
        async with await client.refactor(stages=4) as refactoring:
            await anext(refactoring)
        gateway.refactorer.release()
        await gateway.refactorer.until_idle()
        assert gateway.refactorer.shape == (3, 3, 3, 3)


def test_a_stream_that_ends_without_a_report_is_interrupted_after_its_progress():
    reader = RefactorReader()
    reader.feed(b'data: {"kind":"progress","epoch":2,"phase":"load","done":1,"total":2,"sentence":"loading"}\n\n')
    reader.feed(None)
    assert reader.take().phase == "load"
    with pytest.raises(StreamInterruptedError):
        reader.take()
