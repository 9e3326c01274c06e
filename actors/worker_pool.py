"""The worker processes of one daemon: starts them, holds their control links, and says who came and who went.

The only reader of those links: step results go to the scheduler, reports stay here, everything else goes to the coordinator.
It decides nothing; the life of each process is a `worker_machine`. It outlives a coordinator that starts anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import trio

from ..transport.interface import FrameError, Link, LinkLimits, PeerLostError, Transport, TransportError
from .coordinator_events import FromWorker, ToWorker
from .event_log import EventLog
from .messages import FROM_STAGE, TO_STAGE, Drain, FromStage, Hello, StageReport, StepResult
from .route import StagePlacement
from .worker_machine import (
    Event,
    Exited,
    Instruction,
    LinkLost,
    ReportGone,
    ReportUp,
    Retire,
    SendDrain,
    SetTimer,
    Signal,
    TimerFired,
    WorkerLimits,
    WorkerMachine,
)

OUTGOING_MESSAGES_MAX = 64
"""Commands that may wait for one worker's link. More mean that it does not read: it is as good as lost."""
UNKNOWN_EXIT = 255
"""The exit code of a process whose end nobody saw."""
LAST_WORDS_S_MAX = 1.0
"""How long after the end of a process its last messages may take to arrive."""
CONTROL_LIMITS = LinkLimits(heartbeat_interval_s=0.5, silence_s_max=10.0)
"""A worker on this host that dies is noticed by its exit at once; silence only tells of one that hangs."""


class HostLostError(Exception):
    """The host of a process is lost, and with it the process; the sentence says which and why."""


class WorkerProcess(Protocol):
    """A running worker process."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    async def wait(self) -> int:
        """Wait for its end; the exit code, negative for a signal. Raises `HostLostError` where nobody can say any more."""
        ...

    def signal(self, *, kill: bool) -> None:
        """SIGTERM, or SIGKILL; nothing where it has ended."""
        ...


@dataclass(frozen=True, slots=True)
class ControlPlace:
    """Where a worker finds its pool: an address, and what it says there that it wants, "" where nobody else can come."""

    address: str
    purpose: str = ""


class ControlDoors(Protocol):
    """Lets workers reach their pool."""

    async def open(self, placement: StagePlacement, name: str) -> tuple[ControlPlace, Link]:
        """A place for the worker of ``placement``, and the link to it, which may come later. Raises `TransportError`."""
        ...


class BoundDoors:
    """A place of its own for each worker on this host; ``address`` is a pattern with {worker}."""

    def __init__(self, transport: Transport, address: str) -> None:
        self._transport = transport
        self._address = address

    async def open(self, placement: StagePlacement, name: str) -> tuple[ControlPlace, Link]:
        """See `ControlDoors.open`."""
        address = self._address.format(worker=placement.worker)
        return ControlPlace(address), await self._transport.bind(address, name=name, limits=CONTROL_LIMITS)


class WorkerLauncher(Protocol):
    """Starts worker processes; real ones in the daemon, actors in one loop in tests and simulation."""

    async def launch(self, placement: StagePlacement, control: ControlPlace) -> WorkerProcess:
        """Start one; it will connect to ``control``. Raises `OSError` where it cannot be."""
        ...


class PoolListener(Protocol):
    """Who must know of workers: the coordinator."""

    def worker_up(self, worker: int) -> None:
        """It said hello."""
        ...

    def worker_gone(self, worker: int, sentence: str) -> None:
        """It is gone, or as good as gone. Comes once."""
        ...

    def worker_said(self, message: FromWorker) -> None:
        """It sent something."""
        ...


class StepListener(Protocol):
    """Who waits for the results of steps: the scheduler."""

    def step_done(self, result: StepResult) -> None:
        """A step's tokens are here."""
        ...


class _Worker:
    """The pool's hold on one process, from before it is launched until it has ended."""

    def __init__(self, limits: WorkerLimits, device: str) -> None:
        self.device = device
        self.link: Link | None = None
        self.machine = WorkerMachine(limits)
        self.outgoing, self._unsent = trio.open_memory_channel[ToWorker | Drain](OUTGOING_MESSAGES_MAX)
        self.report: StageReport | None = None
        self.read_ended = trio.Event()
        self.process: WorkerProcess | None = None
        self._condemned: list[bool] = []

    def launched(self, process: WorkerProcess) -> None:
        """Take hold of the process, and pass on the signals that were meant for it while it was being launched."""
        self.process = process
        for kill in self._condemned:
            process.signal(kill=kill)

    def signal(self, *, kill: bool) -> None:
        """SIGTERM or SIGKILL, as soon as there is a process."""
        if self.process is None:
            self._condemned.append(kill)
        else:
            self.process.signal(kill=kill)

    async def write(self, link: Link) -> None:
        """Send what `outgoing` is given, in order."""
        with suppress(PeerLostError):  # the reader hears of it too
            async for message in self._unsent:
                await link.send([TO_STAGE.encode(message)])


class WorkerPool:
    """See the module."""

    def __init__(
        self, launcher: WorkerLauncher, doors: ControlDoors, steps: StepListener, limits: WorkerLimits, log: EventLog
    ) -> None:
        self.listener: PoolListener | None = None
        self._launcher = launcher
        self._doors = doors
        self._steps = steps
        self._limits = limits
        self._log = log
        self._workers: dict[int, _Worker] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the workers until cancelled; then none is left."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            for worker in self._workers.values():
                worker.signal(kill=True)

    # --- what the coordinator asks ---

    def spawn(self, placement: StagePlacement) -> None:
        """Start a worker."""
        assert self._nursery is not None
        hold = self._workers[placement.worker] = _Worker(self._limits, placement.device)
        self._nursery.start_soon(self._host, placement, hold)

    def tell(self, worker: int, message: ToWorker) -> None:
        """Send a command, without waiting. To a worker that is gone: nothing."""
        if (hold := self._workers.get(worker)) is not None:
            self._send(worker, hold, message)

    def retire(self, worker: int, *, kill: bool, reason: str) -> None:
        """Let a worker go, gracefully or at once."""
        if (hold := self._workers.get(worker)) is not None:
            self._handle(worker, hold, Retire(kill, reason))

    def links(self, workers: Iterable[int]) -> tuple[Link, ...]:
        """The control links of workers, for plans and cuts; without those that are gone."""
        holds = (self._workers.get(worker) for worker in workers)
        return tuple(hold.link for hold in holds if hold is not None and hold.link is not None)

    def alive(self) -> tuple[int, ...]:
        """The workers that live and were not told to leave."""
        return tuple(worker for worker, hold in self._workers.items() if hold.machine.stays)

    def leaving(self) -> tuple[int, ...]:
        """The workers that were told to leave and whose end was not reported yet."""
        return tuple(worker for worker, hold in self._workers.items() if hold.machine.is_leaving)

    def devices(self) -> dict[int, str]:
        """Where each of them runs."""
        return {worker: hold.device for worker, hold in self._workers.items()}

    def pid(self, worker: int) -> int:
        """Its process id, 0 while it has none."""
        hold = self._workers.get(worker)
        return hold.process.pid if hold is not None and hold.process is not None else 0

    def report(self, worker: int) -> StageReport | None:
        """Its latest report."""
        hold = self._workers.get(worker)
        return hold.report if hold is not None else None

    # --- one worker's life ---

    async def _host(self, placement: StagePlacement, hold: _Worker) -> None:
        """Launch one process, talk to it until it ends, and report its end."""
        worker = placement.worker
        try:
            control, link = await self._doors.open(placement, f"control of worker {worker}")
        except TransportError as error:
            self._handle(worker, hold, LinkLost(f"nobody can reach its pool: {error}"))
            self._handle(worker, hold, Exited(UNKNOWN_EXIT))
            del self._workers[worker]
            return
        hold.link = link
        try:
            process = await self._launcher.launch(placement, control)
        except OSError as error:
            self._handle(worker, hold, LinkLost(f"its process could not be started: {error}"))
        else:
            await self._live(placement, hold, link, process)
        await link.aclose()
        del self._workers[worker]

    async def _live(self, placement: StagePlacement, hold: _Worker, link: Link, process: WorkerProcess) -> None:
        worker = placement.worker
        hold.launched(process)
        self._log.emit("worker_spawned", worker=worker, device=placement.device, pid=process.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, worker, hold, link)
            nursery.start_soon(hold.write, link)
            code = await self._ended(worker, hold, process)
            with trio.move_on_after(LAST_WORDS_S_MAX):  # what it said before it left is still under way
                await hold.read_ended.wait()
            nursery.cancel_scope.cancel()
        self._log.emit("worker_exited", worker=worker, code=code)
        self._handle(worker, hold, Exited(code))

    async def _ended(self, worker: int, hold: _Worker, process: WorkerProcess) -> int:
        """Wait for the process's end."""
        try:
            return await process.wait()
        except HostLostError as error:
            self._handle(worker, hold, LinkLost(str(error)))
            return UNKNOWN_EXIT

    async def _read(self, worker: int, hold: _Worker, link: Link) -> None:
        """Take what the worker says until its link ends."""
        try:
            while True:
                (payload,) = await link.receive()
                self._take(worker, hold, FROM_STAGE.decode(payload))
        except (PeerLostError, FrameError) as error:
            self._log.emit("worker_lost", worker=worker, sentence=str(error))
            self._handle(worker, hold, LinkLost(str(error)))
        finally:
            hold.read_ended.set()

    def _take(self, worker: int, hold: _Worker, message: FromStage) -> None:
        match message:
            case StepResult():
                self._steps.step_done(message)
            case StageReport():
                hold.report = message
            case Hello():
                self._handle(worker, hold, message)
            case _:
                if self.listener is not None:
                    self.listener.worker_said(message)

    def _handle(self, worker: int, hold: _Worker, event: Event) -> None:
        for instruction in hold.machine.handle(event):
            self._perform(worker, hold, instruction)

    def _perform(self, worker: int, hold: _Worker, instruction: Instruction) -> None:
        assert self._nursery is not None
        match instruction:
            case SendDrain(reason):
                self._send(worker, hold, Drain(reason))
            case Signal(kill):
                hold.signal(kill=kill)
            case SetTimer(after_s):
                self._nursery.start_soon(self._time, worker, hold, after_s)
            case ReportUp():
                if self.listener is not None:
                    self.listener.worker_up(worker)
            case ReportGone(sentence):
                if self.listener is not None:
                    self.listener.worker_gone(worker, sentence)

    def _send(self, worker: int, hold: _Worker, message: ToWorker | Drain) -> None:
        try:
            hold.outgoing.send_nowait(message)
        except trio.WouldBlock:
            self._handle(worker, hold, LinkLost(f"it left {OUTGOING_MESSAGES_MAX} commands unread"))

    async def _time(self, worker: int, hold: _Worker, after_s: float) -> None:
        await trio.sleep(after_s)
        self._handle(worker, hold, TimerFired())
