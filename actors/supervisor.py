"""The supervisor actor: carries out `supervisor_machine`'s instructions on real (or simulated) stage processes.

It owns the processes and their control links, and is the only reader of those links: step results go to the scheduler,
everything else to the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import trio

from ..transport.interface import FrameError, Link, LinkLimits, PeerLostError, Transport
from .event_log import EventLog
from .generation import FailureKind
from .messages import FROM_STAGE, TO_STAGE, Drain, FromStage, Load, Serve, StageReport, StepResult
from .supervisor_machine import (
    AnnounceDown,
    AnnounceUp,
    Event,
    Exited,
    Finish,
    FromStageArrived,
    Instruction,
    SetTimer,
    Signal,
    Spawn,
    StageLost,
    Start,
    Stop,
    SupervisorMachine,
    Tell,
    TimerFired,
)

OUTGOING_MESSAGES_MAX = 8
"""Life-cycle messages that may wait for one stage's link; a stage is told three in its life."""
CONTROL_LIMITS = LinkLimits(heartbeat_interval_s=0.5, silence_s_max=10.0)
"""A stage on this host that dies is noticed by its exit at once; silence only tells of one that hangs."""


class StageProcess(Protocol):
    """A running stage process."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    async def wait(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        ...

    def signal(self, *, kill: bool) -> None:
        """SIGTERM, or SIGKILL; nothing where it has ended."""
        ...


class StageLauncher(Protocol):
    """Starts stage processes; real ones in the daemon, actors in one loop in tests and simulation."""

    async def launch(self, epoch: int, stage: int, control_address: str) -> StageProcess:
        """Start one; it will connect to ``control_address``."""
        ...


class PipelineListener(Protocol):
    """Who must know when the pipeline serves and what its steps gave: the scheduler."""

    def pipeline_up(self, epoch: int, kv_blocks: int, links: Sequence[Link]) -> None:
        """The stages behind ``links`` serve ``epoch``."""
        ...

    def pipeline_down(self, kind: FailureKind, sentence: str) -> None:
        """They no longer do."""
        ...

    def step_done(self, result: StepResult) -> None:
        """A step's tokens are here."""
        ...


class _Host:
    """The supervisor's hold on one stage process, from before it is launched until it has ended."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.outgoing, self._unsent = trio.open_memory_channel[Load | Serve | Drain](OUTGOING_MESSAGES_MAX)
        self._process: StageProcess | None = None
        self._condemned: list[bool] = []

    def launched(self, process: StageProcess) -> None:
        """Take hold of the process, and pass on the signals that were meant for it while it was being launched."""
        self._process = process
        for kill in self._condemned:
            process.signal(kill=kill)

    def signal(self, *, kill: bool) -> None:
        """SIGTERM or SIGKILL, as soon as there is a process."""
        if self._process is None:
            self._condemned.append(kill)
        else:
            self._process.signal(kill=kill)

    async def write(self) -> None:
        """Send what `outgoing` is given, in order."""
        with suppress(PeerLostError):  # `Supervisor._read` hears of it too
            async for message in self._unsent:
                await self.link.send([TO_STAGE.encode(message)])


class Supervisor:
    """See the module. ``run`` ends when the pipeline was stopped, or was given up."""

    def __init__(
        self,
        machine: SupervisorMachine,
        launcher: StageLauncher,
        transport: Transport,
        listener: PipelineListener,
        log: EventLog,
        control_address: str,
    ) -> None:
        self.machine = machine
        self.reports: dict[int, StageReport] = {}
        self._launcher = launcher
        self._transport = transport
        self._listener = listener
        self._log = log
        self._control_address = control_address
        self._hosts: dict[int, _Host] = {}
        self._nursery: trio.Nursery | None = None
        self.finish: Finish | None = None

    async def run(self) -> Finish:
        """Start the pipeline and keep it alive. Cancelling kills the stages."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._handle(Start())
        finally:
            for host in self._hosts.values():
                host.signal(kill=True)
        assert self.finish is not None
        return self.finish

    def stop(self) -> None:
        """Ask for a graceful end; `run` returns when it is done."""
        self._handle(Stop())

    def _handle(self, event: Event) -> None:
        for instruction in self.machine.handle(event):
            self._perform(instruction)

    def _perform(self, instruction: Instruction) -> None:
        assert self._nursery is not None
        match instruction:
            case Spawn(epoch, stage):
                self._nursery.start_soon(self._host_stage, epoch, stage)
            case Tell(stage, message):
                self._hosts[stage].outgoing.send_nowait(message)
            case Signal(stage, kill):
                self._hosts[stage].signal(kill=kill)
            case SetTimer():
                self._nursery.start_soon(self._time, instruction)
            case AnnounceUp(epoch, kv_blocks):
                links = [self._hosts[stage].link for stage in range(len(self.machine.stages))]
                self._log.emit("pipeline_up", epoch=epoch, stages=len(links), kv_blocks=kv_blocks)
                self._listener.pipeline_up(epoch, kv_blocks, links)
            case AnnounceDown(epoch, lost, sentence):
                self._log.emit("pipeline_down", epoch=epoch, sentence=sentence)
                self._listener.pipeline_down("stage_lost" if lost else "shutting_down", sentence)
            case Finish(failed, sentence):
                if failed:
                    self._log.emit("supervisor_gave_up", sentence=sentence)
                self.finish = instruction
                self._nursery.cancel_scope.cancel()

    async def _time(self, timer: SetTimer) -> None:
        await trio.sleep(timer.after_s)
        self._handle(TimerFired(timer.epoch, timer.timer))

    async def _host_stage(self, epoch: int, stage: int) -> None:
        """Launch one stage process, talk to it until it ends, and report its end."""
        address = self._control_address.format(epoch=epoch, stage=stage)
        host = _Host(await self._transport.bind(address, name=f"control of stage {stage}", limits=CONTROL_LIMITS))
        self._hosts[stage] = host
        process = await self._launcher.launch(epoch, stage, address)
        host.launched(process)
        self._log.emit("stage_spawned", epoch=epoch, stage=stage, pid=process.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, epoch, stage, host.link)
            nursery.start_soon(host.write)
            code = await process.wait()
            nursery.cancel_scope.cancel()
        await host.link.aclose()
        self._log.emit("stage_exited", epoch=epoch, stage=stage, code=code)
        self._handle(Exited(epoch, stage, code))

    async def _read(self, epoch: int, stage: int, link: Link) -> None:
        try:
            while True:
                (payload,) = await link.receive()
                self._take(epoch, stage, FROM_STAGE.decode(payload))
        except (PeerLostError, FrameError) as error:
            self._log.emit("stage_lost", epoch=epoch, stage=stage, sentence=str(error))
            self._handle(StageLost(epoch, stage, str(error)))

    def _take(self, epoch: int, stage: int, message: FromStage) -> None:
        match message:
            case StepResult():
                self._listener.step_done(message)
            case StageReport():
                self.reports[stage] = message
            case _:
                self._handle(FromStageArrived(epoch, stage, message))
