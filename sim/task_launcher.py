"""Worker processes as tasks: the real `StageActor`s over a `MemoryNetwork`, each with an engine of the caller's making.

The `WorkerLauncher` of tests and simulation. A crash is what kill -9 is to a real process: its tasks end at once, its links end
without a goodbye, and whoever waits for it sees the signal's exit code.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio

from ..actors.engine_port import EnginePort
from ..actors.event_log import EventLog, LogStream
from ..actors.route import StagePlacement
from ..actors.stage import StageActor
from ..actors.worker_pool import CONTROL_LIMITS, ControlPlace
from ..transport.interface import Link, Transport
from ..transport.memory import MemoryNetwork

FIRST_PID = 100
"""Process ids of simulated processes count up from here."""


class TaskProcess:
    """A simulated process: the tasks of one stage actor, in a scope that can be killed."""

    def __init__(self, pid: int, name: str, network: MemoryNetwork) -> None:
        self.pid = pid
        self.name = name
        self.scope = trio.CancelScope()
        self._network = network
        self._code: int | None = None
        self._ended = trio.Event()

    async def wait(self) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        await self._ended.wait()
        assert self._code is not None
        return self._code

    def signal(self, *, kill: bool) -> None:
        """End the process without a word; the two signals differ in the exit code only, as for a real stage."""
        if self._code is None:
            self._code = -int(signal.SIGKILL if kill else signal.SIGTERM)
            self._network.crash(self.name)
            self.scope.cancel()

    def ended(self, code: int) -> None:
        """The tasks are over; ``code`` counts unless a signal came first."""
        self._code = code if self._code is None else self._code
        self._ended.set()


class TaskLauncher:
    """Launches workers as tasks of ``nursery``. ``processes`` holds those that run, by worker, for a test to kill.

    Worker N is ``name``-N on the network and in the log.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        nursery: trio.Nursery,
        make_engine: Callable[[], EnginePort],
        log: LogStream,
        name: str = "worker",
    ) -> None:
        self.processes: dict[int, TaskProcess] = {}
        self.actors: dict[int, StageActor] = {}
        self._network = network
        self._nursery = nursery
        self._make_engine = make_engine
        self._log = log
        self._name = name

    async def launch(self, placement: StagePlacement, control: ControlPlace) -> TaskProcess:
        """Start a worker that connects to ``control``."""
        worker = placement.worker
        process = TaskProcess(FIRST_PID + worker, f"{self._name}-{worker}", self._network)
        self.processes[worker] = process
        self._nursery.start_soon(self._live, process, worker, control)
        return process

    def make_actor(self, worker: int, link: Link, transport: Transport, process: TaskProcess) -> StageActor:
        """The actor that is to live in ``process``."""
        log = EventLog(self._log, process=process.name, pid=process.pid)
        return StageActor(worker, link, transport, self._make_engine(), log)

    async def _live(self, process: TaskProcess, worker: int, control: ControlPlace) -> None:
        failed = False
        with process.scope:
            async with self._network.open(process.name) as transport:
                link = await transport.connect(
                    control.address, name="control", limits=CONTROL_LIMITS, purpose=control.purpose
                )
                actor = self.actors[worker] = self.make_actor(worker, link, transport, process)
                await actor.run()
                failed = actor.failed
        del self.processes[worker]
        self.actors.pop(worker, None)
        process.ended(int(failed))
