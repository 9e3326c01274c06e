"""The fork server itself, spoken to in its lines of JSON by a real parent."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from flexpipe.fork_server import Ended, Forked, News
from flexpipe.runtime.interface import ModelFiles
from flexpipe.worker_process import WorkerOrder

pytestmark = pytest.mark.slow

ANSWER_S_MAX = 60


class ForkServer:
    """A fork server whose daemon is this test. Its workers connect to sockets that nobody binds, and wait."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flexpipe.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # a line in a buffer would not show in `select`
            start_new_session=True,
        )
        self._next_worker = 0

    def order(self, *, control=None, daemon_pid=None):
        """An order for one more worker."""
        worker, self._next_worker = self._next_worker, self._next_worker + 1
        return WorkerOrder(
            number=100 + worker,
            worker=worker,
            control=control or f"ipc://{self.folder}/control-{worker}",
            log=str(self.folder / f"worker-{worker}.jsonl"),
            errors=str(self.folder / f"worker-{worker}.stderr"),
            cores=(min(os.sched_getaffinity(0)),),
            daemon_pid=daemon_pid or os.getpid(),
            files=ModelFiles("", ""),
            sockets=str(self.folder),
        )

    def send(self, data):
        self.process.stdin.write(data)

    def hear(self):
        """The next line."""
        readable, _, _ = select.select([self.process.stdout], [], [], ANSWER_S_MAX)
        assert readable, "the fork server said nothing"
        return msgspec.json.decode(self.process.stdout.readline(), type=News)

    def fork(self, **options):
        """Have a worker forked; its pid."""
        order = self.order(**options)
        self.send(line_of(order))
        forked = self.hear()
        assert isinstance(forked, Forked)
        assert forked.number == order.number
        return forked.pid


def line_of(order):
    return msgspec.json.encode(order) + b"\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = ForkServer(tmp_path_factory.mktemp("forks"))
    yield running
    with running.process as process:
        process.stdin.close()
        assert process.wait(ANSWER_S_MAX) == 0


def stat_of(pid):
    """State, parent and session of a process, and how many threads it has."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[3]), int(fields[17])


def test_a_worker_is_a_child_in_its_servers_session_and_its_end_is_told_with_its_code(server):
    pid = server.fork()
    _, parent, session, _ = stat_of(pid)
    assert parent == server.process.pid
    assert session == stat_of(parent)[2]
    os.kill(pid, signal.SIGKILL)
    assert server.hear() == Ended(pid, -signal.SIGKILL)


def test_the_server_has_one_thread_since_only_that_one_survives_a_fork(server):
    os.kill(server.fork(), signal.SIGKILL)
    server.hear()
    assert stat_of(server.process.pid)[3] == 1


def test_orders_may_come_in_one_piece_or_in_several(server):
    first, second, third = (server.order() for _ in range(3))
    whole = line_of(first) + line_of(second) + line_of(third)
    server.send(whole[:-20])
    heard = [server.hear(), server.hear()]
    server.send(whole[-20:])
    heard.append(server.hear())
    assert [forked.number for forked in heard] == [first.number, second.number, third.number]
    for forked in heard:
        os.kill(forked.pid, signal.SIGKILL)
    ended = {server.hear() for _ in heard}
    assert ended == {Ended(forked.pid, -signal.SIGKILL) for forked in heard}


def test_a_worker_that_fails_leaves_its_error_in_its_file_and_the_server_lives_on(server):
    pid = server.fork(control="nonsense")
    assert server.hear() == Ended(pid, 1)
    errors = (server.folder / f"worker-{server._next_worker - 1}.stderr").read_text()
    assert "nonsense" in errors
    os.kill(server.fork(), signal.SIGKILL)
    assert isinstance(server.hear(), Ended)


def test_a_worker_ends_with_its_daemon(server):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as daemon:  # lives as long as this block
        pid = server.fork(daemon_pid=daemon.pid)
    assert server.hear() == Ended(pid, 1)


def test_a_worker_whose_daemon_is_gone_already_does_not_begin(server):
    with subprocess.Popen(["true"]) as daemon:
        daemon.wait()
    pid = server.fork(daemon_pid=daemon.pid)
    assert server.hear() == Ended(pid, 1)


def test_workers_outlive_their_fork_server(tmp_path):
    server = ForkServer(tmp_path)
    pid = server.fork()
    handle = os.pidfd_open(pid)
    with server.process as process:
        process.kill()
    assert select.select([handle], [], [], 0)[0] == []
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    assert select.select([handle], [], [], ANSWER_S_MAX)[0] == [handle]
    os.close(handle)
