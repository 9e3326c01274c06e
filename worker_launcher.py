"""Starts worker processes for a daemon's pool, through a fork server that it keeps running.

Owns the fork server's life and the link between an order and the process that came of it. If the fork server dies its workers
live on; their ends are then seen through pidfds, without an exit code, and the next order starts another.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
import trio

from .actors.route import StagePlacement
from .actors.worker_pool import UNKNOWN_EXIT, ControlPlace
from .fork_server import Ended, Forked, News
from .runtime.interface import ModelFiles
from .worker_process import WorkerOrder


class HostProcess:
    """A worker's process as the pool sees it. It is the fork server's child, and may have ended before we hear of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle: int | None = None
        with suppress(ProcessLookupError):
            self._handle = os.pidfd_open(pid)
        self._code: int | None = None
        self._reaped = trio.Event()

    async def wait(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        if self._handle is not None:
            await trio.lowlevel.wait_readable(self._handle)
        await self._reaped.wait()
        if (handle := self._handle) is not None:
            self._handle = None  # its number may be another process's soon
            os.close(handle)
        return UNKNOWN_EXIT if self._code is None else self._code

    def signal(self, *, kill: bool) -> None:
        """SIGTERM or SIGKILL; nothing where it has ended."""
        if self._handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL if kill else signal.SIGTERM)

    def ended(self, code: int | None) -> None:
        """The fork server reaped it, or cannot any more."""
        self._code = code
        self._reaped.set()


@dataclass(frozen=True, slots=True)
class Workplace:
    """What all workers of a daemon have in common: the folder where they meet, the model's files, the node's keys.

    ``cores`` says on which cores the worker of a device stays; one of a device that is not there goes where there is room.
    ``keys`` is the folder of the node's keys, "" where it has none; ``insecure`` as in `ZmqTransport.open`.
    """

    sockets: Path
    files: ModelFiles
    cores: Mapping[str, tuple[int, ...]]
    keys: str = ""
    insecure: bool = False


class ForkLauncher:
    """Forks the workers of all replicas of a daemon."""

    def __init__(self, log_folder: Path, workplace: Workplace, nursery: trio.Nursery) -> None:
        self._log_folder = log_folder
        self._workplace = workplace
        self._nursery = nursery
        self._server: trio.Process | None = None
        self._forked: dict[int, trio.MemorySendChannel[HostProcess | None]] = {}  # by order
        self._orders = itertools.count()
        self._running: dict[int, HostProcess] = {}
        self._turn = trio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(cls, log_folder: Path, workplace: Workplace) -> AsyncIterator[Self]:
        """A launcher whose fork server starts now and ends with the block."""
        async with trio.open_nursery() as nursery:
            launcher = cls(log_folder, workplace, nursery)
            await launcher._start()
            try:
                yield launcher
            finally:
                if launcher._server is not None:
                    launcher._server.kill()
                nursery.cancel_scope.cancel()

    def into(self, folder: Path, replica: int) -> ReplicaLauncher:
        """The launcher of one replica, whose workers write to ``worker-N.jsonl`` and ``worker-N.stderr`` in ``folder``."""
        return ReplicaLauncher(self, folder, replica)

    async def fork(self, replica: int, worker: int, device: str, control: ControlPlace, folder: Path) -> HostProcess:
        """Have a worker forked. Raises OSError where it cannot be."""
        work, number = self._workplace, next(self._orders)
        order = WorkerOrder(
            number=number,
            replica=replica,
            worker=worker,
            control=control.address,
            purpose=control.purpose,
            log=str(folder / f"worker-{worker}.jsonl"),
            errors=str(folder / f"worker-{worker}.stderr"),
            cores=work.cores.get(device, ()),
            daemon_pid=os.getpid(),
            files=work.files,
            sockets=str(work.sockets),
            keys=work.keys,
            insecure=work.insecure,
        )
        sender, receiver = trio.open_memory_channel[HostProcess | None](1)
        async with self._turn:
            if self._server is None:
                await self._start()
            self._forked[number] = sender
            assert self._server is not None
            assert self._server.stdin is not None
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it died; the reader says so
                await self._server.stdin.send_all(msgspec.json.encode(order) + b"\n")
        process = await receiver.receive()
        if process is None:
            raise OSError("the fork server died")
        return process

    async def _start(self) -> None:
        with (self._log_folder / "fork-server.stderr").open("ab") as errors:
            self._server = await trio.lowlevel.open_process(
                [sys.executable, "-m", "flexpipe.fork_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self._nursery.start_soon(self._read, self._server)

    async def _read(self, server: trio.Process) -> None:
        """Hear what became of orders, until the fork server ends."""
        assert server.stdin is not None
        assert server.stdout is not None
        pending = b""
        async with server.stdin, server.stdout:
            try:
                async for data in server.stdout:
                    *lines, pending = (pending + data).split(b"\n")
                    for line in lines:
                        self._hear(msgspec.json.decode(line, type=News))
            finally:
                with trio.CancelScope(shield=True):  # it closed its end, or is killed as its launcher ends
                    await server.wait()
        if self._server is server:
            self._server = None
        for sender in self._forked.values():
            sender.send_nowait(None)
        self._forked.clear()
        for process in self._running.values():
            process.ended(None)
        self._running.clear()

    def _hear(self, news: News) -> None:
        match news:
            case Forked(number, pid):
                process = self._running[pid] = HostProcess(pid)
                self._forked.pop(number).send_nowait(process)
            case Ended(pid, code):
                self._running.pop(pid).ended(code)


class ReplicaLauncher:
    """The `WorkerLauncher` of one replica."""

    def __init__(self, launcher: ForkLauncher, folder: Path, replica: int) -> None:
        self._launcher = launcher
        self._folder = folder
        self._replica = replica

    async def launch(self, placement: StagePlacement, control: ControlPlace) -> HostProcess:
        """See `WorkerLauncher.launch`."""
        return await self._launcher.fork(self._replica, placement.worker, placement.device, control, self._folder)
