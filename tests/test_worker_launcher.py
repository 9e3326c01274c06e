"""The daemon's launcher with real processes: whoever it launches is seen to end, and how, whatever becomes of the fork server."""

import os
import signal
import subprocess

import pytest
import trio
import trio.testing
from flexpipe.actors.messages import FROM_STAGE, PROTOCOL_VERSION, TO_STAGE, Drain, Hello
from flexpipe.actors.route import StagePlacement
from flexpipe.actors.worker_pool import CONTROL_LIMITS, UNKNOWN_EXIT, ControlPlace
from flexpipe.runtime.interface import ModelFiles
from flexpipe.transport.zmq_link import ZmqTransport
from flexpipe.worker_launcher import ForkLauncher, HostProcess, Workplace
from served import parent_of

pytestmark = pytest.mark.slow

START_S_MAX = 90
FILES = ModelFiles("", "")


class Launched:
    """A launcher, and the other end of its workers' control links."""

    def __init__(self, launcher, transport, folder):
        self._launcher = launcher.into(folder, 0)
        self._transport = transport
        self._folder = folder

    async def launch(self, worker):
        """A worker that has said hello; its process and its control link."""
        address = f"ipc://{self._folder}/control-{worker}"
        link = await self._transport.bind(address, name="control", limits=CONTROL_LIMITS)
        process = await self._launcher.launch(StagePlacement(worker, 0, 1, "cpu:0", 1), ControlPlace(address))
        (payload,) = await link.receive()
        assert FROM_STAGE.decode(payload) == Hello(worker, process.pid, PROTOCOL_VERSION)
        return process, link


@pytest.fixture
async def launched(tmp_path):
    cores = {"cpu:0": (min(os.sched_getaffinity(0)),)}
    with trio.fail_after(START_S_MAX):
        async with (
            ZmqTransport.open() as transport,
            ForkLauncher.open(tmp_path, Workplace(tmp_path, FILES, cores)) as launcher,
        ):
            yield Launched(launcher, transport, tmp_path)


async def test_a_worker_lives_on_the_cores_of_its_device_and_ends_as_it_is_told(launched):
    process, link = await launched.launch(3)
    assert os.sched_getaffinity(process.pid) == {min(os.sched_getaffinity(0))}
    await link.send([TO_STAGE.encode(Drain("test"))])
    assert await process.wait() == 0


@pytest.mark.parametrize(("kill", "number"), [(True, signal.SIGKILL), (False, signal.SIGTERM)])
async def test_a_signal_that_ended_a_worker_is_its_exit_code(launched, kill, number):
    process, _ = await launched.launch(0)
    process.signal(kill=kill)
    assert await process.wait() == -number
    process.signal(kill=True)  # it has ended: nothing


async def test_the_end_of_a_worker_is_seen_after_its_fork_server_was_killed_and_the_next_order_starts_another(launched):
    first, _ = await launched.launch(0)
    fork_server = parent_of(first.pid)
    os.kill(fork_server, signal.SIGKILL)
    try:
        second, _ = await launched.launch(1)
    except OSError:  # the order went to the one that was dying
        second, _ = await launched.launch(2)
    assert parent_of(second.pid) != fork_server
    first.signal(kill=True)
    assert await first.wait() == UNKNOWN_EXIT
    second.signal(kill=True)
    assert await second.wait() == -signal.SIGKILL


async def test_an_order_that_dies_with_the_fork_server_is_an_error_and_the_next_one_is_none(launched):
    first, _ = await launched.launch(0)
    fork_server = parent_of(first.pid)
    os.kill(fork_server, signal.SIGSTOP)  # the order is with it, and stays there
    async with trio.open_nursery() as nursery:
        failed = trio.Event()

        async def launch_in_vain():
            with pytest.raises(OSError, match="the fork server died"):
                await launched.launch(1)
            failed.set()

        nursery.start_soon(launch_in_vain)
        await trio.testing.wait_all_tasks_blocked()
        os.kill(fork_server, signal.SIGKILL)
        await failed.wait()
    second, _ = await launched.launch(2)
    for process in (first, second):
        process.signal(kill=True)
        await process.wait()


async def test_several_orders_at_once_each_get_their_own_process(launched):
    processes = {}

    async def launch(worker):
        processes[worker], _ = await launched.launch(worker)

    async with trio.open_nursery() as nursery:
        for worker in range(3):
            nursery.start_soon(launch, worker)
    assert len({process.pid for process in processes.values()}) == 3
    for process in processes.values():
        process.signal(kill=True)
        await process.wait()


async def test_the_fork_server_ends_with_its_launcher(tmp_path):
    with trio.fail_after(START_S_MAX):
        async with ZmqTransport.open() as transport:
            async with ForkLauncher.open(tmp_path, Workplace(tmp_path, FILES, {})) as launcher:
                process, _ = await Launched(launcher, transport, tmp_path).launch(0)
                fork_server = os.pidfd_open(parent_of(process.pid))
            await trio.lowlevel.wait_readable(fork_server)
            os.close(fork_server)
            os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def ended_pid():
    """The number of a process that has ended and was waited for."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


async def test_a_process_that_ended_before_anybody_looked_is_known_by_its_code(ended_pid):
    process = HostProcess(ended_pid)
    process.signal(kill=True)
    process.ended(3)
    assert await process.wait() == 3
