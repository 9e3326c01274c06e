"""Starts workers without their imports: a process that imports the engine once and is forked for each of them.

A worker of its own accord needs a core for its imports, which the workers that serve would feel; a forked one shares them, and
their memory. The daemon starts it as ``python -m flexpipe.fork_server``; not meant for people.

It talks in lines of JSON: orders come on stdin (`worker_process.WorkerOrder`), what became of them goes to stdout (`Forked`,
`Ended`). It computes nothing, starts no thread (a thread does not survive a fork, its locks do), and ends with its daemon.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import traceback
from contextlib import suppress

import msgspec

from .worker_process import WorkerOrder, become_worker


class Forked(msgspec.Struct, frozen=True, tag=True):
    """The process of the order with this number was started."""

    number: int
    pid: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A worker's process ended; ``code`` is negative for a signal."""

    pid: int
    code: int


News = Forked | Ended
_CHUNK_BYTES = 65536


def main() -> None:
    """Import, then fork on demand until stdin ends or the daemon does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_engine()
    gc.freeze()  # what is here now stays shared: the collector must not write to it
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    pending = b""
    while True:
        readable, _, _ = select.select([0, wake_reader], [], [])
        if wake_reader in readable:
            os.read(wake_reader, _CHUNK_BYTES)
            _reap()
        if 0 in readable:
            data = os.read(0, _CHUNK_BYTES)
            if not data:
                return  # the daemon closed the pipe, or ended
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                _fork(msgspec.json.decode(line, type=WorkerOrder))


def _import_engine() -> None:
    """Everything that a worker imports, so that its copies share it. None of it starts a thread at import."""
    from . import worker_process  # noqa: F401
    from .actors import engine_thread, stage  # noqa: F401
    from .runtime import stage_engine  # noqa: F401
    from .transport import zmq_link  # noqa: F401

    with suppress(Exception):  # `runtime.backends` says why where the packed kernels cannot be had
        from .runtime import packed_backend  # noqa: F401


def _fork(order: WorkerOrder) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = become_worker(order)
        except BaseException:
            traceback.print_exc()
        finally:
            # Without the interpreter's end, which would run what this process inherited.
            sys.stderr.flush()
            os._exit(code)
    _tell(Forked(order.number, pid))


def _reap() -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            _tell(Ended(pid, os.waitstatus_to_exitcode(status)))


def _tell(news: News) -> None:
    os.write(1, msgspec.json.encode(news) + b"\n")


if __name__ == "__main__":
    main()
